/**
 * GET /v1/exports: what is offered over NBD, and how it is used.
 */
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from 'typebox'
import { ErrorAnswer } from '../error-answer.ts'
import type { ServiceView } from '../service-view.ts'

const count = (description: string) => Type.Integer({ minimum: 0, description })

const Export = Type.Object({
  name: Type.String({ description: 'as an NBD client asks for it' }),
  description: Type.String(),
  connections: count('that use it now'),
  requestsInFlight: count('now'),
  bytesRead: count('since the server was started'),
  bytesWritten: count('since the server was started'),
})

const schema = {
  summary: 'All exports',
  response: { 200: Type.Object({ exports: Type.Array(Export) }, { description: 'sorted as the server lists them' }), 500: ErrorAnswer },
}

export const exportsRoute: FastifyPluginAsyncTypebox<{ view: ServiceView }> = async (app, { view }) => {
  app.get('/v1/exports', { schema }, async () => {
    const { nbd } = await view.figures()
    const used = new Map(nbd.exports.map((figures) => [figures.name, figures]))
    const exports = (await view.exports()).map(({ name, description }) => {
      const { connections = 0, requestsInFlight = 0, bytesRead = 0, bytesWritten = 0 } = used.get(name) ?? {}
      return { name, description, connections, requestsInFlight, bytesRead, bytesWritten }
    })
    return { exports }
  })
}
