/**
 * The HTTP server: metrics, health, the API, and /openapi.json, which is made from the schemas of the routes.
 * Each route is a plugin in routes/; what it needs of the rest of the server is in ServiceView.
 */
import swagger from '@fastify/swagger'
import { type FastifyBaseLogger, type FastifyInstance, LogController, fastify } from 'fastify'
import { type Logger, pino } from 'pino'
import { formatAddress, listenOn, parseAddress } from '../listen-address.ts'
import { closeInOrder } from './closing.ts'
import { answerErrors } from './error-answer.ts'
import { HTTP_ANSWER_MS_MAX, HTTP_BODY_BYTES_MAX, HTTP_CLOSE_MS_MAX, HTTP_CONNECTIONS_MAX, HTTP_HEADER_BYTES_MAX, HTTP_IDLE_MS_MAX, HTTP_REQUEST_MS_MAX, HTTP_SILENCE_MS_MAX } from './limits.ts'
import { exportsRoute } from './routes/exports.ts'
import { healthRoute } from './routes/health.ts'
import { metricsRoute } from './routes/metrics.ts'
import type { ServiceView } from './service-view.ts'

export interface HttpServerOptions {
  view: ServiceView
  log?: Logger
}

export class HttpServer implements AsyncDisposable {
  /** As bound: a port 0 is replaced by the one that was chosen. */
  readonly address: string
  readonly #app: FastifyInstance
  readonly #log: Logger

  /**
   * @param address `HOST:PORT`, `[IPV6]:PORT` or `unix:PATH`
   * @throws VarveError ADDRESS_INVALID
   */
  static async listen(address: string, { view, log = pino({ level: 'silent' }) }: HttpServerOptions): Promise<HttpServer> {
    const parsed = parseAddress(address)
    const app = await application(view, log)
    try {
      await app.ready()
      const bound = formatAddress(await listenOn(app.server, parsed))
      app.server.on('error', (error) => log.error({ err: error, address: bound }, 'cannot accept a connection'))
      log.info({ address: bound }, 'http listens')
      return new HttpServer(app, bound, log)
    } catch (error) {
      await app.close()
      throw error
    }
  }

  private constructor(app: FastifyInstance, address: string, log: Logger) {
    this.#app = app
    this.address = address
    this.#log = log
  }

  /** Accepts no more, and completes when what was asked is answered; who does not take the answer is cut. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#app.close()
    this.#log.info('http stopped')
  }
}

async function application(view: ServiceView, log: Logger): Promise<FastifyInstance> {
  // Fastify's own type of a logger, so that routes need not know ours.
  const loggerInstance: FastifyBaseLogger = log
  const app = fastify({
    loggerInstance,
    // One line for each answer, below, instead of Fastify's two.
    logController: new LogController({ disableRequestLogging: true }),
    bodyLimit: HTTP_BODY_BYTES_MAX,
    connectionTimeout: HTTP_SILENCE_MS_MAX,
    requestTimeout: HTTP_REQUEST_MS_MAX,
    handlerTimeout: HTTP_ANSWER_MS_MAX,
    keepAliveTimeout: HTTP_IDLE_MS_MAX,
    http: { maxHeaderSize: HTTP_HEADER_BYTES_MAX, headersTimeout: HTTP_REQUEST_MS_MAX },
  })
  app.server.maxConnections = HTTP_CONNECTIONS_MAX
  answerErrors(app)
  closeInOrder(app, HTTP_CLOSE_MS_MAX)
  app.addHook('onResponse', (request, reply, done) => {
    request.log.debug({ method: request.method, url: request.url, status: reply.statusCode, durationMs: Math.round(reply.elapsedTime) }, 'http request')
    done()
  })
  await app.register(swagger, {
    openapi: { openapi: '3.1.0', info: { title: 'Varve', description: 'Metrics, health and exports of a Varve server.', version: '1' } },
  })
  await app.register(metricsRoute, { view })
  await app.register(healthRoute, { view })
  await app.register(exportsRoute, { view })
  app.get('/openapi.json', { schema: { hide: true } }, () => app.swagger())
  return app
}
