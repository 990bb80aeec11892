/**
 * Service: what `varve serve` runs, from the settings that it is given: exports of a home over NBD, HTTP beside them, and there the streams of agents.
 */
import type { Logger } from 'pino'
import type { HttpServer } from '@varve/blockserver/http/server.ts'
import type { ImageRequest, ServiceView } from '@varve/blockserver/http/service-view.ts'
import type { ExportInfo } from '@varve/blockserver/nbd/export.ts'
import { NbdServer } from '@varve/blockserver/nbd/server.ts'
import { StreamServer } from '@varve/blockserver/stream/server.ts'
import { isVarveError, VarveError } from '@varve/images/errors.ts'
import { type Home, packsDirectory } from '@varve/images/store/home.ts'
import { CacheFiller } from '@varve/images/device/cache-filler.ts'
import { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { AccessRules } from '@varve/blockserver/nbd/access.ts'
import { HomeExportNames } from '../exports.ts'
import { HomeImages } from '../home-images.ts'
import type { HeldImage } from '../home-images.ts'
import { exportsOfHome } from '../served-exports.ts'
import { tokenHash } from '../streaming/agent-token.ts'
import { HomeStreams } from '../streaming/home-streams.ts'
import { httpCredentials, policyOptions, streamSettings } from './policy-settings.ts'
import type { Settings } from './settings.ts'

/** Settings that are what they were at the start until the next start. */
const FIXED = [
  ['home', (settings: Settings) => settings.home],
  ['nbd.listen', (settings: Settings) => settings.nbd.listen],
  ['nbd.threads', (settings: Settings) => settings.nbd.threads],
  ['cache.bytes-max', (settings: Settings) => settings.cache.bytesMax],
  ['http.listen', (settings: Settings) => settings.http.listen],
  ['http.tls', (settings: Settings) => settings.http.tls],
  ['http.recovery', (settings: Settings) => settings.http.recovery],
  ['http.images', (settings: Settings) => settings.http.images],
] as const

export class Service implements AsyncDisposable {
  /** They are opened in the threads. */
  readonly #exports: HomeExportNames
  readonly #cache: ChunkCache
  readonly #nbd: NbdServer
  readonly #home: Home
  readonly #streamed: HomeStreams
  readonly #streams: StreamServer
  readonly #images: HomeImages
  readonly #log: Logger
  /** What is closed last. */
  #opened: AsyncDisposable | undefined
  #http: HttpServer | undefined
  #settings: Settings
  #stopping = false

  /** @throws VarveError ADDRESS_INVALID, CREDENTIALS_INVALID */
  static async start(settings: Settings, { home, log }: { home: Home; log: Logger }): Promise<Service> {
    const { listen, threads } = settings.nbd
    await using opened = new AsyncDisposableStack()
    // After the server's threads the one that fills the cache, and this one.
    const cache = ChunkCache.create({ bytesMax: settings.cache.bytesMax, threads: threads + 2, hasFiller: true })
    opened.use(new CacheFiller({ packsDirectory: packsDirectory(home.directory), memory: cache.memory, thread: threads }, (error) => {
      log.error({ err: error }, 'the thread that reads ahead failed')
      cache.threadEnded(threads)
    }))
    const nbd = opened.use(await NbdServer.listen(listen, {
      threads, exports: exportsOfHome(home.directory, cache), threadEnded: (thread) => cache.threadEnded(thread), log, limits: settings.limits, ...policyOptions(settings),
    }))
    const service = new Service(settings, { exports: new HomeExportNames(home), cache, nbd, home, log })
    opened.use(service.#images)
    opened.use(service.#streamed)
    opened.use(service.#streams)
    await service.#listenHttp()
    service.#opened = opened.move()
    return service
  }

  private constructor(settings: Settings, { exports, cache, nbd, home, log }: { exports: HomeExportNames; cache: ChunkCache; nbd: NbdServer; home: Home; log: Logger }) {
    this.#settings = settings
    this.#exports = exports
    this.#cache = cache
    this.#nbd = nbd
    this.#home = home
    this.#log = log
    this.#images = new HomeImages(home, cache)
    this.#streamed = new HomeStreams(home)
    this.#streams = new StreamServer({ source: this.#streamed, settings: streamSettings(settings), log })
  }

  get nbdAddresses(): readonly string[] {
    return this.#nbd.addresses
  }

  /** undefined if it is off. */
  get httpAddress(): string | undefined {
    return this.#http?.address
  }

  exports(): Promise<ExportInfo[]> {
    return this.#exports.list()
  }

  /** Takes over what can change while serving; connections that are there keep theirs. What cannot is logged. */
  apply(settings: Settings): void {
    const policy = policyOptions(settings)
    const credentials = httpCredentials(settings)
    for (const [setting, of] of FIXED) {
      if (JSON.stringify(of(settings)) !== JSON.stringify(of(this.#settings))) this.#log.warn({ setting }, 'this setting changes with the next start only')
    }
    this.#log.level = settings.log.level
    this.#nbd.reconfigure({ limits: settings.limits, ...policy })
    this.#streams.reconfigure(streamSettings(settings))
    if (credentials !== undefined) this.#http?.reconfigure(credentials)
    this.#settings = settings
  }

  /** Accepts no more, answers what is in flight, makes everything durable. HTTP is there to the last: it tells what goes on. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping = true
    this.#log.info('stopping')
    await Promise.all([this.#nbd.close({ drainMs: this.#settings.nbd.drainMsMax }), this.#streams[Symbol.asyncDispose]()])
    await this.#http?.[Symbol.asyncDispose]()
    await this.#opened?.[Symbol.asyncDispose]()
  }

  /** As over NBD: the rules of access hold, for the disk by its canonical name. */
  async #image({ disk, format, client }: ImageRequest): Promise<HeldImage> {
    const name = await this.#exports.canonicalName(disk)
    const { access } = this.#settings
    if (access.length > 0 && new AccessRules(access).allowance(name, client) === 'deny') throw new VarveError('EXPORT_NOT_FOUND', `there is no export ${JSON.stringify(disk)}`)
    return this.#images.hold(name, format)
  }

  async #listenHttp(): Promise<void> {
    const { listen, recovery, images } = this.#settings.http
    if (listen === 'off') return
    const view: ServiceView = {
      exports: () => this.exports(),
      figures: async () => {
        const nbd = await this.#nbd.metrics()
        const { cacheHits: hits = 0, cacheMisses: misses = 0 } = nbd.source
        return { nbd, cache: { hits, misses, bytesMax: this.#cache.figures.bytesMax }, stream: this.#streams.figures() }
      },
      enrol: async ({ token, publicKey, name }) => {
        const { id } = await this.#home.catalog.enrolAgent({ tokenHash: tokenHash(token), publicKey, name })
        this.#log.info({ agent: id, name }, 'an agent was enrolled')
        await this.#streamed.prepare()
        return id
      },
      ...(images ? { image: (request: ImageRequest) => this.#image(request) } : {}),
      stopping: () => this.#stopping,
    }
    // Fastify and its schemas take longer to load than all the rest: only for those who want them.
    this.#streamed.prepare().catch((error: unknown) => this.#log.error({ err: error }, 'agents could not be looked up'))
    const { HttpServer: Http } = await import('@varve/blockserver/http/server.ts')
    this.#http = await Http.listen(listen, { view, streams: this.#streams, credentials: httpCredentials(this.#settings), recovery, log: this.#log }).catch((cause: unknown) => {
      if (!isVarveError(cause, 'ADDRESS_INVALID')) throw cause
      throw new VarveError('ADDRESS_INVALID', `${cause.message}; --http gives another address for metrics and API, or off`, { cause })
    })
  }
}
