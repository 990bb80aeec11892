/**
 * Streaming: a disk comes to a target while it is used: the boot set first, what a guest misses before everything, then the rest, until the target
 * is a plain disk. What happens to a target that was begun is in the target: nothing else is needed to go on.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { pino } from 'pino'
import type { Logger } from 'pino'
import type { MetaContext, ServedExport, StatusRun } from '@varve/blockserver/nbd/export.ts'
import { NbdServer } from '@varve/blockserver/nbd/server.ts'
import { AgentFrame, Priority } from '@varve/blockserver/stream/frames.ts'
import { encodeBoot, encodeHeat } from '@varve/blockserver/stream/reports.ts'
import { BlockMap } from '@varve/images/blockmap/block-map.ts'
import { decodeChunkList } from '@varve/images/chunk/chunk-list.ts'
import { ChunkTable, digestWords } from '@varve/images/chunk/chunk-table.ts'
import { DIGEST_BYTES } from '@varve/images/chunk/digest.ts'
import { ReadRecorder } from '@varve/images/device/read-recorder.ts'
import { UseWatch } from '@varve/images/device/use-watch.ts'
import { isVarveError, VarveError } from '@varve/images/errors.ts'
import { ChunkFetcher } from './chunk-fetcher.ts'
import type { FetcherFigures, WantOptions } from './chunk-fetcher.ts'
import { fetchObject } from './remote-object.ts'
import type { ServerAddress } from './server-socket.ts'
import type { AgentIdentity } from './stream-connection.ts'
import { Neighbours } from './neighbours.ts'
import { Seeds } from './seeds.ts'
import type { SeedReport } from './seeds.ts'
import { StreamedDisk } from './streamed-disk.ts'
import { BLOCK_BYTES, Target } from './target.ts'

/** A guest's read waits so long for the server, then fails. */
export const MISS_MS_MAX = 60_000
/** Chunks of one request. */
const BOOT_CHUNKS = 16_384
const FILL_CHUNKS_MAX = 2048
/** Of their content. */
const FILL_BYTES_MIN = 1 << 20
/** Requests that are under way. */
const FILL_REQUESTS = 2
/** A boot that has used so much of the boot set, and next to nothing of the rest for so long, is over. */
const BOOT_SHARE_MOST = 0.8
const BOOT_PAUSE_MS = 3000
/** One that uses nothing of it for so long before is taken for none: it may be slow for want of what a fill would take. */
const BOOT_STALL_MS = 20_000
const BOOT_LOOK_MS = 200
/** One that takes longer has to share. */
const BOOT_MS_MAX = 300_000
/** What was filled is made durable after so many bytes. */
const DURABLE_EVERY_BYTES = 64 << 20
/** Blocks of zeroes that are made at a time, before others have their turn. */
const ZERO_BLOCKS = 4096
/** What the server does not give is asked for again after so long, doubled each time. */
const RETRY_MS_FIRST = 5000
const RETRY_MS_MAX = 300_000

export interface StreamingOptions {
  target: Target
  fetcher: ChunkFetcher
  /** Name of the export. */
  cvd: string
  /** Where the disk is served: `HOST:PORT`, `unix:PATH`. None: nowhere. */
  nbd: readonly string[]
  missMsMax?: number
  /** Objects that are on their way already, by digest in hexadecimal. */
  objects?: ReadonlyMap<string, Promise<Uint8Array>>
  /** Directories, disk images and devices of this machine that may hold parts of the disk. */
  seeds?: readonly string[]
  log?: Logger
}

export type StreamPhase = 'boot set' | 'fill' | 'verify' | 'complete' | 'failed'

export interface StreamStatus {
  cvd: string
  target: string
  nbd: readonly string[]
  phase: StreamPhase
  /** Why it failed. */
  error: string | null
  diskBytes: number
  presentBytes: number
  /** Of chunks, without what is zero. */
  dataBytes: number
  lackingBytes: number
  bootChunks: number
  bootChunksPresent: number
  verifiedBytes: number
  unverifiableBytes: number
  etaSeconds: number | null
  seeds: SeedReport
  server: FetcherFigures
}

export interface BeginOptions {
  /** As the server knows it: `CVD` or `CVD@SNAPSHOT`. */
  cvd: string
  path: string
  server: ServerAddress
  identity: AgentIdentity
  overwrite: boolean
  log: Logger
  signal?: AbortSignal
}

/** What a target keeps, so that whoever opens it can go on. */
export interface StreamNote {
  cvd: string
  /** What is opened on the server: of a snapshot, if it is one. */
  open: string
  /** Object of the block map, hexadecimal. */
  map: string
  url: string
  ca?: string
  /** Hexadecimal. */
  fingerprint?: string
  agent: string
  /** PEM. */
  privateKey: string
}

/** Begins a target with what the server says of the disk. @throws VarveError as the server says; TARGET_INVALID, CONNECTION_LOST */
export async function beginTarget({ cvd, path, server, identity, overwrite, log, signal }: BeginOptions): Promise<Pick<Required<StreamingOptions>, 'target' | 'fetcher' | 'objects'>> {
  const fetcher = new ChunkFetcher({ address: server, identity, disk: cvd, log })
  try {
    const info = await (signal === undefined ? fetcher.first : Promise.race([fetcher.first, fetcher.opened(signal)]))
    // All at once: over a long line each would cost round trips of its own.
    const objects = new Map([info.map, info.bootSet].filter((digest) => digest !== null).map((digest) => [digest, fetchObject(fetcher, Buffer.from(digest, 'hex'), signal)]))
    for (const object of objects.values()) object.catch(() => {})
    const map = BlockMap.decode(await objects.get(info.map)!)
    if (map.sizeBytes !== info.sizeBytes || map.partial) throw new VarveError('PROTOCOL_INVALID', `the server's block map is of ${map.sizeBytes} bytes, not ${info.sizeBytes}`)
    const open = info.snapshot ?? cvd
    fetcher.disk = open
    const note: StreamNote = {
      cvd, open, map: info.map, url: server.url.href, ca: server.ca, fingerprint: server.fingerprint?.toString('hex'),
      agent: identity.agent, privateKey: identity.privateKey.export({ type: 'pkcs8', format: 'pem' }) as string,
    }
    return { target: await Target.create({ path, map, note, overwrite }), fetcher, objects }
  } catch (error) {
    await fetcher[Symbol.asyncDispose]()
    throw error
  }
}

export class Streaming implements AsyncDisposable {
  readonly #target: Target
  readonly #fetcher: ChunkFetcher
  readonly #disk: StreamedDisk
  readonly #recorder: ReadRecorder
  readonly #uses = new UseWatch()
  readonly #nbd: NbdServer | undefined
  readonly #cvd: string
  readonly #objects: ReadonlyMap<string, Promise<Uint8Array>>
  readonly #log: Logger
  readonly #stop = new AbortController()
  readonly #filling: Promise<void>
  readonly #chunkOf: ChunkTable
  readonly #seeds: Seeds
  readonly #seeding: Promise<void>
  #phase: StreamPhase = 'boot set'
  #error: string | null = null
  #bootSet: number[] = []
  #bootUses: ReadonlySet<number> = new Set()
  readonly #neighbours: Neighbours
  /** Chunks that were asked for as neighbours, and are on their way. */
  readonly #neighboursUnderWay = new Set<number>()
  #verified = { verifiedBytes: 0, unverifiableBytes: 0 }
  #filledBytes = 0
  /** Since when the fill gives way to a guest that boots. */
  #gaveWayMs: number | undefined
  #durable: Promise<void> | undefined
  /** Resolves when the target is complete and verified, or cannot be so. */
  readonly ended: Promise<StreamStatus>

  /** Serves the disk, and fills it. Target and fetcher are its own from now on. @throws VarveError ADDRESS_INVALID */
  static async start(options: StreamingOptions): Promise<Streaming> {
    const { target, fetcher, cvd, nbd, missMsMax = MISS_MS_MAX, objects = new Map<string, Promise<Uint8Array>>(), seeds = [], log = pino({ level: 'silent' }) } = options
    const { map } = target
    const recorder = new ReadRecorder(map)
    let streaming: Streaming | undefined
    const disk: StreamedDisk = new StreamedDisk({
      target,
      noteRead: (offset, length) => recorder.note(offset, length),
      want: (chunks) => {
        const came = fetcher.want(chunks.map((chunk) => map.chunkDigest(chunk)), (index, content) => disk.install(chunks[index], content), { priority: Priority.MISS, msMax: missMsMax })
        if (streaming !== undefined) streaming.#fetchNeighbours(chunks)
        return came
      },
    })
    const served: Omit<ServedExport, 'release'> = { name: cvd, description: `${cvd}, as it comes to ${target.path}`, device: disk, contexts: [residentContext(disk)] }
    try {
      const server = nbd.length === 0 ? undefined : await NbdServer.listen(nbd, {
        log,
        provider: {
          list: () => Promise.resolve([{ name: cvd, description: served.description }]),
          canonicalName: (name) => {
            if (name === '' || name === cvd) return cvd
            throw new VarveError('EXPORT_NOT_FOUND', `there is no export ${JSON.stringify(name)}`)
          },
          open: () => Promise.resolve({ ...served, release: () => Promise.resolve() }),
        },
      })
      return (streaming = new Streaming({ target, fetcher, disk, recorder, server, cvd, objects, seeds, log }))
    } catch (error) {
      await fetcher[Symbol.asyncDispose]()
      await target[Symbol.asyncDispose]()
      throw error
    }
  }

  private constructor({ target, fetcher, disk, recorder, server, cvd, objects, seeds, log }: { target: Target; fetcher: ChunkFetcher; disk: StreamedDisk; recorder: ReadRecorder; server: NbdServer | undefined; cvd: string; objects: ReadonlyMap<string, Promise<Uint8Array>>; seeds: readonly string[]; log: Logger }) {
    this.#target = target
    this.#fetcher = fetcher
    this.#disk = disk
    this.#recorder = recorder
    this.#neighbours = new Neighbours(target.map, disk.places)
    this.#nbd = server
    this.#cvd = cvd
    this.#objects = objects
    this.#log = log
    this.#chunkOf = new ChunkTable(target.map.chunkCount)
    const words = digestWords(target.map.chunkDigests)
    for (let chunk = 0; chunk < target.map.chunkCount; chunk++) this.#chunkOf.addFrom(words, chunk, target.map.chunkBytes[chunk])
    this.#uses.over(recorder, {
      boot: (chunks) => fetcher.report(AgentFrame.BOOT, encodeBoot(chunks)),
      uses: (chunks) => fetcher.report(AgentFrame.HEAT, encodeHeat(chunks)),
    })
    this.#seeds = new Seeds(disk, { chunkOf: this.#chunkOf, supplied: (chunk, content) => fetcher.supply(target.map.chunkDigest(chunk), content), signal: this.#stop.signal })
    this.#seeding = this.#takeSeeds(seeds)
    this.#filling = this.#fill().catch((error: unknown) => {
      if (this.#stop.signal.aborted) return
      this.#phase = 'failed'
      this.#error = (error as Error).message
      log.error({ err: error }, 'the disk cannot be completed')
    })
    this.ended = this.#filling.then(() => this.status())
  }

  get nbdAddresses(): readonly string[] {
    return this.#nbd?.addresses ?? []
  }

  /** That use the disk now. */
  async connections(): Promise<number> {
    return (await this.#nbd?.metrics())?.connectionsOpen ?? 0
  }

  status(): StreamStatus {
    const { map } = this.#target
    const lackingBytes = (this.#target.blockCount - this.#target.presentBlocks) * BLOCK_BYTES
    const server = this.#fetcher.figures
    const isMoving = server.lineBytesPerSecond > 0 && server.connected
    return {
      cvd: this.#cvd,
      target: this.#target.path,
      nbd: this.nbdAddresses,
      phase: this.#phase,
      error: this.#error,
      diskBytes: map.sizeBytes,
      presentBytes: this.#target.presentBlocks * BLOCK_BYTES,
      dataBytes: map.dataBytes,
      lackingBytes,
      bootChunks: this.#bootSet.length,
      bootChunksPresent: this.#bootSet.filter((chunk) => !this.#disk.needs(chunk)).length,
      ...this.#verified,
      etaSeconds: lackingBytes === 0 ? 0 : isMoving && this.#filledBytes > 0 ? Math.round(lackingBytes / (server.lineBytesPerSecond * (this.#filledBytes / server.receivedBytes))) : null,
      seeds: this.#seeds.report,
      server,
    }
  }

  /** Stops serving and filling, and makes everything durable; a complete target is a plain disk then. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#nbd?.close()
    this.#uses[Symbol.dispose]()
    this.#stop.abort(new VarveError('CONNECTION_LOST', 'the agent has stopped'))
    await this.#fetcher[Symbol.asyncDispose]()
    await this.#filling
    await this.#seeding
    await this.#durable
    await this.#target[Symbol.asyncDispose]()
  }

  async #takeSeeds(seeds: readonly string[]): Promise<void> {
    for (const seed of seeds) {
      try {
        await this.#seeds.take(seed)
      } catch (error) {
        if (this.#stop.signal.aborted) return
        this.#log.warn({ err: error, seed }, 'a seed cannot be used')
      }
    }
  }

  async #fill(): Promise<void> {
    const { signal } = this.#stop
    const target = this.#target
    for (let round = 0; ; round++) {
      if (round > 0) await sleep(Math.min(RETRY_MS_MAX, RETRY_MS_FIRST * 2 ** (round - 1)), undefined, { signal })
      if (!target.isComplete) await this.#fillOnce()
      if (!target.isComplete) continue
      this.#phase = 'verify'
      await this.#disk.settleSuspects(signal)
      this.#verified = { verifiedBytes: 0, unverifiableBytes: 0 }
      const { wrongBytes, ...verified } = await this.#disk.verify({ signal, report: (bytes) => { this.#verified.verifiedBytes += bytes } })
      this.#verified = verified
      if (wrongBytes > 0) this.#log.warn({ wrongBytes }, 'the target has lost what it was given; it comes again')
      if (target.isComplete) break
    }
    await target.complete()
    this.#phase = 'complete'
    this.#log.info({ ...this.#verified }, 'complete')
  }

  async #fillOnce(): Promise<void> {
    this.#phase = 'boot set'
    // As the server has them now.
    const info = await this.#fetcher.opened(this.#stop.signal)
    this.#bootSet = await this.#list(info.bootSet)
    this.#bootUses = new Set(this.#bootSet)
    await this.#fetchAll(this.#bootSet, Priority.BOOT)
    this.#phase = 'fill'
    await Promise.all([this.#makeZeroes(), this.#list(info.order).then((order) => {
      this.#neighbours.known = new Set(order)
      return this.#fetchRest(order)
    })])
  }

  async #fetchRest(order: readonly number[]): Promise<void> {
    await this.#fetchAll(order, Priority.FILL)
    await this.#fetchAll(Array.from({ length: this.#target.map.chunkCount }, (_, chunk) => chunk), Priority.FILL)
  }

  /** A chunk list, as numbers of chunks of this disk. */
  async #list(digest: string | null): Promise<number[]> {
    if (digest === null) return []
    try {
      const digests = decodeChunkList(await (this.#objects.get(digest) ?? fetchObject(this.#fetcher, Buffer.from(digest, 'hex'), this.#stop.signal)))
      const words = digestWords(digests)
      const chunks: number[] = []
      for (let index = 0; index < digests.length / DIGEST_BYTES; index++) {
        const chunk = this.#chunkOf.findAny(words, index)
        if (chunk >= 0) chunks.push(chunk)
      }
      return chunks
    } catch (error) {
      this.#stop.signal.throwIfAborted()
      // It comes in another order then.
      this.#log.warn({ err: error }, 'a list of chunks cannot be used')
      return []
    }
  }

  /** Fetches what of `chunks` the disk lacks, in their order; what the server does not give is left for the next round. */
  async #fetchAll(chunks: readonly number[], priority: Priority): Promise<void> {
    const underWay = new Set<Promise<void>>()
    const { map } = this.#target
    for (let at = 0; at < chunks.length;) {
      if (priority === Priority.FILL) await this.#whileBooting()
      const [chunksMax, bytesMax] = priority === Priority.BOOT ? [BOOT_CHUNKS, Infinity] : [FILL_CHUNKS_MAX, this.#fillBytes()]
      const batch: number[] = []
      for (let bytes = 0; at < chunks.length && batch.length < chunksMax && bytes < bytesMax; at++) {
        if (!this.#disk.needs(chunks[at])) continue
        batch.push(chunks[at])
        bytes += map.chunkBytes[chunks[at]]
      }
      if (batch.length === 0) break
      const request: Promise<void> = this.#want(batch, { priority, signal: this.#stop.signal })
        .catch((error: unknown) => {
          this.#stop.signal.throwIfAborted()
          if (!isVarveError(error, 'CHUNK_MISSING', 'CHUNK_CORRUPT')) throw error
          this.#log.warn({ err: error }, 'some chunks did not come')
        })
        .finally(() => underWay.delete(request))
      underWay.add(request)
      if (underWay.size >= FILL_REQUESTS) await Promise.race(underWay)
    }
    await Promise.all(underWay)
  }

  /** What is likely wanted next comes before the fill; but for what was missed of the boot set, which is on its way as it is. */
  #fetchNeighbours(missed: readonly number[]): void {
    const chunks = new Set(missed.filter((chunk) => !this.#bootUses.has(chunk)).flatMap((chunk) => this.#neighbours.of(chunk)))
    const wanted = [...chunks].filter((chunk) => !this.#neighboursUnderWay.has(chunk) && this.#disk.needs(chunk))
    for (const chunk of wanted) this.#neighboursUnderWay.add(chunk)
    this.#want(wanted, { priority: Priority.BOOT, signal: this.#stop.signal })
      // What does not come as a neighbour comes with the fill, or is missed.
      .catch(() => {})
      .finally(() => { for (const chunk of wanted) this.#neighboursUnderWay.delete(chunk) })
  }

  #want(chunks: readonly number[], options: WantOptions): Promise<void> {
    return this.#fetcher.want(chunks.map((chunk) => this.#target.map.chunkDigest(chunk)), (index, content) => this.#install(chunks[index], content), options)
  }

  /** While a guest boots, nothing takes the line but what it waits for, and the processor neither. */
  async #whileBooting(): Promise<void> {
    while (this.#isBooting()) {
      const now = performance.now()
      this.#gaveWayMs ??= now
      if (now - this.#gaveWayMs > BOOT_MS_MAX) return
      await sleep(BOOT_LOOK_MS, undefined, { signal: this.#stop.signal })
    }
  }

  /** True until the guest has gone through the boot set, or as good as stopped to. What it uses besides is work, unless nothing is known of the boot. */
  #isBooting(): boolean {
    const { boot, firstUseMs } = this.#recorder
    if (boot === undefined || firstUseMs === undefined) return false
    const { chunks, timesMs } = boot
    const known = this.#bootUses.size
    const uses = [...timesMs].filter((_, index) => known === 0 || this.#bootUses.has(chunks[index]))
    const isNearEnd = uses.length >= known * BOOT_SHARE_MOST
    // Near the end, as many as a boot of the longest kind uses in a pause: a stray use of the rest is none.
    const lately = uses.at(isNearEnd ? -Math.max(1, Math.ceil(known * BOOT_PAUSE_MS / BOOT_MS_MAX)) : -1)
    const nowMs = timesMs[timesMs.length - 1] + performance.now() - firstUseMs
    return lately !== undefined && nowMs - lately < (isNearEnd ? BOOT_PAUSE_MS : BOOT_STALL_MS)
  }

  /** Content of a request: what the line carries in a second, or compressed in half of one, however small its chunks are: not much more than what is on its way. */
  #fillBytes(): number {
    return Math.max(FILL_BYTES_MIN, this.#fetcher.figures.lineBytesPerSecond)
  }

  #install(chunk: number, content: Uint8Array): void {
    this.#disk.install(chunk, content)
    const before = this.#filledBytes
    this.#filledBytes += content.length
    // So that no flush of the guest has to wait for all of it at once.
    if (Math.floor(before / DURABLE_EVERY_BYTES) === Math.floor(this.#filledBytes / DURABLE_EVERY_BYTES) || this.#durable !== undefined) return
    this.#durable = this.#target.flush({ all: true }).catch(() => {}).finally(() => { this.#durable = undefined })
  }

  async #makeZeroes(): Promise<void> {
    const { blockCount } = this.#target
    for (let block = 0; block < blockCount; block += ZERO_BLOCKS) {
      this.#disk.installZeroes(block, Math.min(blockCount, block + ZERO_BLOCKS))
      await new Promise<void>((resolve) => setImmediate(resolve))
      this.#stop.signal.throwIfAborted()
    }
  }
}

/** `varve:resident`: bit 0 of what is there and needs no server. */
function residentContext(disk: StreamedDisk): MetaContext {
  return {
    name: 'varve:resident',
    extents: (offset, length, most) => {
      const runs: StatusRun[] = []
      const end = offset + length
      for (let at = offset; at < end;) {
        const flags = disk.isResident(Math.floor(at / BLOCK_BYTES)) ? 1 : 0
        const stop = Math.min(end, (Math.floor(at / BLOCK_BYTES) + 1) * BLOCK_BYTES)
        const last = runs.at(-1)
        if (last?.flags === flags) last.length += stop - at
        else if (runs.length === most) break
        else runs.push({ length: stop - at, flags })
        at = stop
      }
      return runs
    },
  }
}
