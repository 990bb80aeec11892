/**
 * How the HTTP server ends: it accepts no more, and what is being answered is answered. To Node a connection is idle already when the end
 * of its answer is written, though much of it may not be with the kernel; so answers are counted here.
 */
import net from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyInstance } from 'fastify'

/** @param waitMsMax for those that do not take their answer */
export function closeInOrder(app: FastifyInstance, waitMsMax: number): void {
  let answers = 0
  let none: (() => void) | undefined
  app.addHook('onRequest', (_request, reply, done) => {
    answers++
    reply.raw.once('close', () => {
      if (--answers === 0) none?.()
    })
    done()
  })
  app.addHook('preClose', async () => {
    // http.Server's own would cut the answers that it takes for finished.
    const closed = new Promise<void>((resolve) => net.Server.prototype.close.call(app.server, () => resolve()))
    if (answers > 0) await Promise.race([new Promise<void>((resolve) => { none = resolve }), sleep(waitMsMax, undefined, { ref: false })])
    app.server.closeAllConnections()
    await closed
  })
}
