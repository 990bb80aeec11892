/**
 * Settlement: turns the frozen generations of one overlay stack of a CVD into chunks, in step with the catalog (docs/formats/overlay.md#catalog).
 */
import { BlockMap } from '@varve/images/blockmap/block-map.ts'
import type { Digest } from '@varve/images/chunk/digest.ts'
import type { BlockDevice } from '@varve/images/device/block-device.ts'
import type { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { MapDevice } from '@varve/images/device/map-device.ts'
import { OverlayStack } from '@varve/images/device/overlay-stack.ts'
import type { Home } from '@varve/images/store/home.ts'
import type { Lease } from '@varve/images/store/lease.ts'
import { getObject, putObject } from '@varve/images/store/object.ts'

export interface SettlementParts {
  home: Home
  cache: ChunkCache
  cvd: { id: string; name: string }
  /** Number of the stack. */
  overlay: number
  /** What it lies on. */
  baseMap: Digest
  /** Puts something between the stack and each disk of a block map that comes to lie below it. */
  lowerOf?: (device: MapDevice, map: Digest) => BlockDevice
}

export class Settlement implements AsyncDisposable {
  readonly stack: OverlayStack
  readonly #parts: SettlementParts
  /** The map below the stack. */
  #map: BlockMap
  /** What the stack has adopted and the catalog does not name yet: until it does, only the lease keeps its chunks. */
  #adopted: { generation: number; mapDigest: Digest; lease: Lease } | undefined

  private constructor(parts: SettlementParts, stack: OverlayStack, map: BlockMap) {
    this.#parts = parts
    this.stack = stack
    this.#map = map
  }

  /** Opens the stack for its one owner, who owns the CVD. @throws VarveError OVERLAY_INVALID, STORE_LOCKED */
  static async open(parts: SettlementParts): Promise<Settlement> {
    const { home, cvd, overlay, baseMap } = parts
    const map = await readMap(home, baseMap)
    const lower = lowerDisk(parts, map, baseMap)
    home.makeOverlaysDirectory(cvd.id)
    const stack = await OverlayStack.open({ directory: home.overlayDirectory(cvd.id, overlay), lower, lowerDigest: baseMap })
    return new Settlement(parts, stack, map)
  }

  /** Settles frozen generations, lowest first. @param options.last the last one; all unless given */
  async settle({ last = Infinity, signal }: { last?: number; signal?: AbortSignal } = {}): Promise<void> {
    await this.#recordAdopted()
    for (;;) {
      const [lowest] = this.stack.frozenGenerations()
      if (lowest === undefined || lowest > last) return
      await this.#settleLowest(signal)
      await this.#recordAdopted()
    }
  }

  async #settleLowest(signal: AbortSignal | undefined): Promise<void> {
    const { store } = this.#parts.home
    // Older than the writer's, so that it protects what that finds, and goes on when that has ended.
    const lease = store.lease()
    try {
      await using writer = store.writer({ signal })
      const { generation, map } = await this.stack.settle(this.#map, writer, { signal })
      const mapDigest = putObject(writer, map.encode())
      await writer.commit()
      // From here on the stack opens over the old map and the new one, so that the catalog may name either.
      await this.stack.adopt({ generation, lower: lowerDisk(this.#parts, map, mapDigest), lowerDigest: mapDigest })
      this.#map = map
      this.#adopted = { generation, mapDigest, lease }
    } finally {
      if (this.#adopted?.lease !== lease) lease.release()
    }
  }

  /** If it fails, the next settling begins with it: a later generation's would drop this one while the catalog still needs it. */
  async #recordAdopted(): Promise<void> {
    if (this.#adopted === undefined) return
    const { home, cvd, overlay } = this.#parts
    const { generation, mapDigest, lease } = this.#adopted
    await home.catalog.settle(cvd.name, { overlay, generation, map: mapDigest })
    await this.stack.drop()
    this.#adopted = undefined
    lease.release()
  }

  /** Makes everything durable, and lets go of the stack. */
  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.stack[Symbol.asyncDispose]()
    } finally {
      // The catalog names the old map still, over which the next opening finds the generation frozen.
      this.#adopted?.lease.release()
    }
  }
}

function lowerDisk({ home, cache, lowerOf }: SettlementParts, map: BlockMap, digest: Digest): BlockDevice {
  const device = new MapDevice(map, home.store, cache)
  return lowerOf === undefined ? device : lowerOf(device, digest)
}

/** The map that an object of the store holds. @throws VarveError CHUNK_MISSING, FORMAT_INVALID */
export async function readMap(home: Home, digest: Digest): Promise<BlockMap> {
  return BlockMap.decode(await getObject(home.store, digest))
}
