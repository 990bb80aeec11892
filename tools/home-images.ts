/**
 * Images of the disks of a home, as they are served: each is computed once for all who read it, and kept open for a while after that.
 */
import { digestToHex } from '@varve/images/chunk/digest.ts'
import type { BlockDevice } from '@varve/images/device/block-device.ts'
import type { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { VarveError, isVarveError } from '@varve/images/errors.ts'
import { computeImage } from '@varve/images/formats/compute-image.ts'
import { DISK_FORMATS } from '@varve/images/formats/disk-image.ts'
import type { DiskFormat } from '@varve/images/formats/disk-image.ts'
import type { Home } from '@varve/images/store/home.ts'
import { parseCvdName } from '@varve/images/store/names.ts'
import { LAYER_PREFIX, lastingMap, openSettledDisk } from './settled-disk.ts'
import type { SettledDisk } from './settled-disk.ts'

/** An image that nobody reads stays open for so long: whoever asks for range after range does not wait for its tables. */
const IDLE_MS = 60_000
/** Images that are open at one time. */
const OPEN_MAX = 64

interface OpenImage {
  image: Promise<{ device: BlockDevice; disk: SettledDisk }>
  users: number
  idle: NodeJS.Timeout | undefined
}

export interface HeldImage {
  device: BlockDevice
  /** Quoted: the same disk in the same format has the same. */
  etag: string
  release: () => Promise<void>
}

export class HomeImages implements AsyncDisposable {
  readonly #home: Home
  readonly #cache: ChunkCache
  readonly #open = new Map<string, OpenImage>()
  readonly #abort = new AbortController()

  /** Both are borrowed. */
  constructor(home: Home, cache: ChunkCache) {
    this.#home = home
    this.#cache = cache
  }

  /**
   * @param disk `CVD@SNAPSHOT` or `layer:NAME[@N]`
   * @throws VarveError EXPORT_NOT_FOUND, LIMIT_EXCEEDED, and what opening the disk throws
   */
  async hold(disk: string, format: string): Promise<HeldImage> {
    if (!DISK_FORMATS.some((known) => known === format)) throw new VarveError('EXPORT_NOT_FOUND', `${format} is not a format of images; there are ${DISK_FORMATS.join(', ')}`)
    checkImageDisk(disk)
    try {
      const digest = await lastingMap(disk, this.#home, this.#abort.signal)
      this.#abort.signal.throwIfAborted()
      const key = `${digestToHex(digest!)}.${format}`
      if (!this.#open.has(key) && this.#open.size >= OPEN_MAX) await this.#closeIdle()
      // Somebody else may have opened it meanwhile.
      if (!this.#open.has(key)) this.#open.set(key, { image: this.#compute(disk, format as DiskFormat), users: 0, idle: undefined })
      return await this.#hold(key, this.#open.get(key)!)
    } catch (cause) {
      if (isVarveError(cause, 'NOT_FOUND', 'NAME_INVALID')) throw new VarveError('EXPORT_NOT_FOUND', cause.message, { cause })
      throw cause
    }
  }

  async #compute(disk: string, format: DiskFormat): Promise<{ device: BlockDevice; disk: SettledDisk }> {
    await using opened = new AsyncDisposableStack()
    const settled = opened.use(await openSettledDisk(disk, { home: this.#home, cache: this.#cache, signal: this.#abort.signal }))
    const device = await computeImage(format, settled.device, { digest: settled.digest })
    opened.move()
    return { device, disk: settled }
  }

  async #hold(key: string, open: OpenImage): Promise<HeldImage> {
    open.users++
    clearTimeout(open.idle)
    let isHeld = true
    const release = async (): Promise<void> => {
      if (!isHeld) return
      isHeld = false
      if (--open.users === 0) open.idle = setTimeout(() => void this.#close(key), IDLE_MS).unref()
    }
    try {
      return { device: (await open.image).device, etag: `"${key}"`, release }
    } catch (error) {
      if (this.#open.get(key) === open) this.#open.delete(key)
      throw error
    }
  }

  async #closeIdle(): Promise<void> {
    for (const [key, { users }] of this.#open) if (users === 0) await this.#close(key)
    if (this.#open.size >= OPEN_MAX) throw new VarveError('LIMIT_EXCEEDED', `${OPEN_MAX} images are open; more are not served at one time`)
  }

  async #close(key: string): Promise<void> {
    const open = this.#open.get(key)
    if (open === undefined) return
    this.#open.delete(key)
    clearTimeout(open.idle)
    // Whoever asked for one that cannot be opened hears of it.
    const image = await open.image.catch(() => undefined)
    await image?.device[Symbol.asyncDispose]()
    await image?.disk[Symbol.asyncDispose]()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#abort.abort()
    for (const key of [...this.#open.keys()]) await this.#close(key)
  }
}

/** What a CVD shows changes while it is written to: of that there is no image. @throws VarveError EXPORT_NOT_FOUND, NAME_INVALID */
export function checkImageDisk(disk: string): void {
  if (disk.startsWith(LAYER_PREFIX) || parseCvdName(disk).snapshot !== undefined) return
  throw new VarveError('EXPORT_NOT_FOUND', `CVD ${disk} changes, and has no image; name a snapshot of it, ${disk}@SNAPSHOT`)
}
