/**
 * The HTTP server: metrics, health, the API, streams of agents, and /openapi.json, which is made from the schemas of the routes.
 * Each route is a plugin in routes/; what it needs of the rest of the server is in ServiceView.
 */
import http from 'node:http'
import https from 'node:https'
import swagger from '@fastify/swagger'
import { type FastifyBaseLogger, type FastifyInstance, LogController, fastify } from 'fastify'
import { type Logger, pino } from 'pino'
import { formatAddress, listenOn, parseAddress } from '../listen-address.ts'
import type { TlsCredentials } from '../nbd/tls-credentials.ts'
import type { StreamServer } from '../stream/server.ts'
import { closeInOrder } from './closing.ts'
import { answerErrors } from './error-answer.ts'
import { HTTP_ANSWER_MS_MAX, HTTP_BODY_BYTES_MAX, HTTP_CLOSE_MS_MAX, HTTP_CONNECTIONS_MAX, HTTP_HEADER_BYTES_MAX, HTTP_IDLE_MS_MAX, HTTP_REQUEST_MS_MAX, HTTP_SILENCE_MS_MAX } from './limits.ts'
import { agentsRoute } from './routes/agents.ts'
import { bootFilesRoute } from './routes/boot-files.ts'
import { exportsRoute } from './routes/exports.ts'
import { healthRoute } from './routes/health.ts'
import { imagesRoute } from './routes/images.ts'
import { metricsRoute } from './routes/metrics.ts'
import { streamRoute } from './routes/stream.ts'
import type { ServiceView } from './service-view.ts'
import { isStreamUpgrade, upgradeTo } from './upgrade.ts'

export interface HttpServerOptions {
  view: ServiceView
  /** Borrowed; is closed before this server. */
  streams: StreamServer
  /** Nothing but TLS is spoken with it. */
  credentials?: TlsCredentials
  /** Directory of what `varve recovery build` made; without it, nothing is offered under /boot/. */
  recovery?: string
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
  static async listen(address: string, { view, streams, credentials, recovery, log = pino({ level: 'silent' }) }: HttpServerOptions): Promise<HttpServer> {
    const parsed = parseAddress(address)
    const app = await application({ view, streams, credentials, recovery, log })
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

  /** For connections that come. @param credentials of a server that has had some from its start */
  reconfigure(credentials: TlsCredentials): void {
    if (this.#app.server instanceof https.Server) this.#app.server.setSecureContext(credentials.contextOptions)
  }

  /** Accepts no more, and completes when what was asked is answered; who does not take the answer is cut. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#app.close()
    this.#log.info('http stopped')
  }
}

async function application({ view, streams, credentials, recovery, log }: HttpServerOptions & { log: Logger }): Promise<FastifyInstance> {
  // Fastify's own type of a logger, so that routes need not know ours.
  const loggerInstance: FastifyBaseLogger = log
  const app = fastify({
    loggerInstance,
    // One line for each answer, below, instead of Fastify's two.
    logController: new LogController({ disableRequestLogging: true }),
    bodyLimit: HTTP_BODY_BYTES_MAX,
    handlerTimeout: HTTP_ANSWER_MS_MAX,
    serverFactory: (handler) => nodeServer(handler, credentials),
  })
  limitConnections(app.server, streams)
  upgradeTo(app.server, streams)
  answerErrors(app)
  closeInOrder(app, HTTP_CLOSE_MS_MAX)
  app.addHook('onResponse', (request, reply, done) => {
    request.log.debug({ method: request.method, url: request.url, status: reply.statusCode, durationMs: Math.round(reply.elapsedTime) }, 'http request')
    done()
  })
  await app.register(swagger, {
    openapi: { openapi: '3.1.0', info: { title: 'Varve', description: 'Metrics, health and exports of a Varve server, and streams of its agents.', version: '1' } },
  })
  await app.register(metricsRoute, { view })
  await app.register(healthRoute, { view })
  await app.register(exportsRoute, { view })
  await app.register(agentsRoute, { view })
  await app.register(streamRoute)
  const { image } = view
  if (image !== undefined) await app.register(imagesRoute, { open: image })
  if (recovery !== undefined) await app.register(bootFilesRoute, { directory: recovery })
  app.get('/openapi.json', { schema: { hide: true } }, () => app.swagger())
  return app
}

function nodeServer(handler: http.RequestListener, credentials: TlsCredentials | undefined): http.Server {
  const options: http.ServerOptions = {
    maxHeaderSize: HTTP_HEADER_BYTES_MAX, headersTimeout: HTTP_REQUEST_MS_MAX, requestTimeout: HTTP_REQUEST_MS_MAX, keepAliveTimeout: HTTP_IDLE_MS_MAX,
    shouldUpgradeCallback: isStreamUpgrade,
  }
  const server = credentials === undefined
    ? http.createServer(options, handler)
    : https.createServer({ ...options, ...credentials.contextOptions, handshakeTimeout: HTTP_REQUEST_MS_MAX }, handler)
  return server.setTimeout(HTTP_SILENCE_MS_MAX)
}

/** Streams have a limit of their own, and are no connections of HTTP any more. */
function limitConnections(server: http.Server, streams: StreamServer): void {
  server.maxConnections = HTTP_CONNECTIONS_MAX
  streams.connectionsChanged = (connections) => { server.maxConnections = HTTP_CONNECTIONS_MAX + connections }
}
