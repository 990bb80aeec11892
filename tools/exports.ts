/**
 * Exports of a home: `CVD` is writable, `CVD@SNAPSHOT` and `layer:NAME@N` are not, nor are images of those, `image:FORMAT:CVD@SNAPSHOT`,
 * which are not listed. What the NBD server asks for by name is opened here.
 * While a CVD is open, a control socket lets other processes ask its owner for a snapshot.
 */
import { closeSync, openSync, rmSync } from 'node:fs'
import path from 'node:path'
import type { Logger } from 'pino'
import { controlRequest } from '@varve/blockserver/control/client.ts'
import type { ControlHandler, SnapshotAnswer } from '@varve/blockserver/control/protocol.ts'
import { ControlServer } from '@varve/blockserver/control/server.ts'
import { formatImageName, parseImageName } from '@varve/blockserver/nbd/image-name.ts'
import type { ExportInfo, ExportNames, ExportSource, MetaContext, OpenedExport } from '@varve/blockserver/nbd/export.ts'
import type { BlockDevice } from '@varve/images/device/block-device.ts'
import type { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { MapDevice } from '@varve/images/device/map-device.ts'
import { OverlayStack } from '@varve/images/device/overlay-stack.ts'
import { isVarveError, VarveError } from '@varve/images/errors.ts'
import type { Cvd, Snapshot } from '@varve/images/store/catalog.ts'
import type { Home } from '@varve/images/store/home.ts'
import type { Lease } from '@varve/images/store/lease.ts'
import { formatLayerName, parseCvdName } from '@varve/images/store/names.ts'
import { CvdDisk } from './cvd-disk.ts'
import { HomeImages, checkImageDisk } from './home-images.ts'
import { snapshotDocument } from './names.ts'
import { LAYER_PREFIX, layerMap } from './settled-disk.ts'
import { readMap } from './settlement.ts'
import { DiskLearning } from './streaming/disk-learning.ts'

type Opened = Omit<OpenedExport, 'name'>

/** What the exports of a home are called. */
export class HomeExportNames implements ExportNames {
  readonly #home: Home

  constructor(home: Home) {
    this.#home = home
  }

  async list(): Promise<ExportInfo[]> {
    const exports: ExportInfo[] = []
    for (const cvd of await this.#home.catalog.cvds()) {
      exports.push({ name: cvd.name, description: `CVD of ${cvd.layers.map(formatLayerName).join(', ')}` })
      for (const snapshot of await this.#home.catalog.snapshots(cvd.name)) {
        exports.push({ name: `${cvd.name}@${snapshot.name}`, description: `snapshot of ${snapshotDocument(snapshot).createdAt}` })
      }
    }
    for (const layer of await this.#home.catalog.layers()) exports.push({ name: `${LAYER_PREFIX}${formatLayerName(layer)}`, description: `${layer.kind} layer` })
    return exports
  }

  /** A layer without a version is its latest. The empty name is the only CVD, if there is one. */
  async canonicalName(name: string): Promise<string> {
    try {
      const image = parseImageName(name)
      if (image !== undefined) {
        checkImageDisk(image.disk)
        return formatImageName({ ...image, disk: await this.canonicalName(image.disk) })
      }
      if (name.startsWith(LAYER_PREFIX)) return `${LAYER_PREFIX}${formatLayerName(await this.#home.catalog.layer(name.slice(LAYER_PREFIX.length)))}`
      if (name !== '') {
        parseCvdName(name)
        return name
      }
    } catch (cause) {
      if (isVarveError(cause, 'NOT_FOUND', 'NAME_INVALID')) throw new VarveError('EXPORT_NOT_FOUND', `there is no export ${JSON.stringify(name)}`, { cause })
      throw cause
    }
    const cvds = await this.#home.catalog.cvds()
    if (cvds.length !== 1) throw new VarveError('EXPORT_NOT_FOUND', `there are ${cvds.length} CVDs; name the one that is wanted`)
    return cvds[0].name
  }
}

export class HomeExports extends HomeExportNames implements ExportSource {
  readonly #home: Home
  readonly #log: Logger
  readonly #cache: ChunkCache
  readonly #disks = new Map<string, CvdDisk>()
  readonly #images: HomeImages

  /** @param cache borrowed, as the home */
  constructor(home: Home, log: Logger, cache: ChunkCache) {
    super(home)
    this.#home = home
    this.#log = log
    this.#cache = cache
    this.#images = new HomeImages(home, cache)
  }

  /** A CVD, which writes: its overlay has one owner. */
  exclusive(name: string): boolean {
    return parseImageName(name) === undefined && !name.startsWith(LAYER_PREFIX) && parseCvdName(name).snapshot === undefined
  }

  async open(name: string): Promise<OpenedExport> {
    try {
      const image = parseImageName(name)
      if (image !== undefined) return { name, ...(await this.#openImage(image)) }
      if (name.startsWith(LAYER_PREFIX)) return { name, ...(await this.#openLayer(name.slice(LAYER_PREFIX.length))) }
      const { cvd, snapshot } = parseCvdName(name)
      return { name, ...(snapshot === undefined ? await this.#openCvd(cvd) : await this.#openSnapshot(cvd, snapshot)) }
    } catch (cause) {
      if (isVarveError(cause, 'NOT_FOUND')) throw new VarveError('EXPORT_NOT_FOUND', cause.message, { cause })
      throw cause
    }
  }

  async #openCvd(name: string): Promise<Opened> {
    await using opened = new AsyncDisposableStack()
    const learning = opened.use(new DiskLearning({ home: this.#home, log: this.#log, name }))
    const disk = opened.use(await CvdDisk.open(name, { home: this.#home, cache: this.#cache, lowerOf: (device, map) => learning.over(device, map) }))
    opened.use(await listenForControl(this.#home, disk.cvd, this.#log, this.#handler(disk)))
    this.#disks.set(name, disk)
    // What an earlier owner froze and did not come to settle.
    this.#settle(disk)
    const parts = opened.move()
    const close = async (): Promise<void> => {
      this.#disks.delete(name)
      await parts[Symbol.asyncDispose]()
    }
    return { device: disk.device, fastZeroes: true, contexts: [dirtyContext(disk)], close, description: `CVD ${name}` }
  }

  async #openSnapshot(cvdName: string, name: string): Promise<Opened> {
    // Before the catalog is asked: what it names then stays, also when the snapshot is settled or removed.
    const lease = this.#home.store.lease()
    try {
      const snapshot = await this.#home.catalog.snapshot(cvdName, name)
      const device = await this.#snapshotDevice(await this.#home.catalog.cvd(cvdName), snapshot)
      return { device, close: () => closeLeased(device, lease), description: `snapshot ${name} of ${cvdName}` }
    } catch (error) {
      lease.release()
      throw error
    }
  }

  /** A snapshot may be settled while it is opened: then its overlay is gone, and the catalog names its map. */
  async #snapshotDevice(cvd: Cvd, snapshot: Snapshot): Promise<BlockDevice> {
    const digest = snapshot.map ?? snapshot.baseMap!
    const lower = new MapDevice(await readMap(this.#home, digest), this.#home.store, this.#cache)
    if (snapshot.map !== null) return lower
    const directory = this.#home.overlayDirectory(cvd.id, snapshot.overlay!)
    try {
      return await OverlayStack.openFrozen({ directory, lower, lowerDigest: digest, generation: snapshot.generation! })
    } catch (error) {
      const now = await this.#home.catalog.snapshot(cvd.name, snapshot.name)
      if (now.map === null && Buffer.compare(now.baseMap!, digest) === 0) throw error
      return this.#snapshotDevice(cvd, now)
    }
  }

  async #openLayer(reference: string): Promise<Opened> {
    const { store, catalog } = this.#home
    const lease = store.lease()
    try {
      const layer = await catalog.layer(reference)
      const device = new MapDevice(await readMap(this.#home, await layerMap(layer, this.#home)), store, this.#cache)
      return { device, close: () => closeLeased(device, lease), description: `layer ${formatLayerName(layer)}` }
    } catch (error) {
      lease.release()
      throw error
    }
  }

  async #openImage({ format, disk }: { format: string; disk: string }): Promise<Opened> {
    const { device, release } = await this.#images.hold(disk, format)
    return { device, close: release, description: `${format} image of ${disk}` }
  }

  #handler(disk: CvdDisk): ControlHandler {
    return {
      snapshot: async (cvd, name) => {
        if (cvd !== disk.cvd.name) throw new VarveError('NOT_FOUND', `this socket is for CVD ${disk.cvd.name}`)
        const snapshot = await disk.snapshot(name ?? snapshotName())
        this.#settle(disk)
        return { ...snapshotDocument(snapshot) } satisfies SnapshotAnswer
      },
      status: async () => ({ pid: process.pid, cvds: [...this.#disks.keys()] }),
    }
  }

  /** In the background; a failure leaves the snapshot frozen, which is readable too, and the next opening tries again. */
  #settle(disk: CvdDisk): void {
    disk.settle().catch((error: unknown) => this.#log.error({ err: error, cvd: disk.cvd.name }, 'a snapshot could not be settled'))
  }
}

/** `varve:dirty`: bit 0 of what was written, trimmed or zeroed since the map below the CVD's overlays. */
function dirtyContext(disk: CvdDisk): MetaContext {
  return {
    name: 'varve:dirty',
    extents: (offset, length, most) => disk.changedRuns(offset, length, most).map((run) => ({ length: run.length, flags: run.changed ? 1 : 0 })),
  }
}

/** `2026-11-22T10.00.05Z` */
export function snapshotName(timeMs = Date.now()): string {
  return new Date(timeMs).toISOString().replace(/\.\d{3}Z$/, 'Z').replaceAll(':', '.')
}

async function closeLeased(device: BlockDevice, lease: Lease): Promise<void> {
  await device[Symbol.asyncDispose]()
  lease.release()
}

/** Asks the process that owns a CVD. @returns undefined if none does */
export async function requestSnapshot(home: Home, cvd: Cvd, name: string, signal: AbortSignal): Promise<SnapshotAnswer | undefined> {
  return withSocketPath(home, cvd, (socket) => controlRequest(socket, 'snapshot', { cvd: cvd.name, name }, { signal }))
}

function listenForControl(home: Home, cvd: Cvd, log: Logger, handler: ControlHandler): Promise<AsyncDisposable> {
  return withSocketPath(home, cvd, async (socket) => {
    // Whoever holds the CVD's lock may remove what a dead owner left.
    rmSync(path.join(home.runDirectory, socketFile(cvd)), { force: true })
    const server = await ControlServer.listen(socket, { handler, log })
    return {
      [Symbol.asyncDispose]: async () => {
        await server.close()
        rmSync(path.join(home.runDirectory, socketFile(cvd)), { force: true })
      },
    }
  })
}

function socketFile(cvd: Cvd): string {
  return `${cvd.id}.sock`
}

/** The path of a socket has 107 bytes at most, that of a home may have more: it goes by way of an open directory. */
async function withSocketPath<Result>(home: Home, cvd: Cvd, use: (socket: string) => Promise<Result>): Promise<Result> {
  const fd = openSync(home.runDirectory, 'r')
  try {
    return await use(`/proc/self/fd/${fd}/${socketFile(cvd)}`)
  } finally {
    closeSync(fd)
  }
}
