/**
 * Neighbours: what is likely wanted next to a chunk that a guest has missed. Files of one directory lie together, and a program that starts reads
 * several: so what follows on the disk, and more of it, on both sides, that is known to be used.
 */
import { SPECIAL_MIN } from '@varve/images/blockmap/block-map.ts'
import type { BlockMap } from '@varve/images/blockmap/block-map.ts'
import type { ChunkPlaces } from './chunk-places.ts'

/** Chunks behind it, whatever is known of them. Found by replaying recorded days (`bench streams`): more delay what is better known. */
const FOLLOWING_CHUNKS = 8
/** Chunks on either side among which those that are known to be used are taken. */
const NEAR_CHUNKS = 16
/** Extents that are looked at on either side: holes, and chunks that lie there many times. */
const EXTENTS_LOOKED_AT = 4 * NEAR_CHUNKS

export class Neighbours {
  readonly #map: BlockMap
  readonly #places: ChunkPlaces
  /** Chunks that are known to be used. */
  known: ReadonlySet<number> = new Set()

  constructor(map: BlockMap, places: ChunkPlaces) {
    this.#map = map
    this.#places = places
  }

  /** Those that follow first, in the order of the disk. @returns numbers of chunks, each once, without `chunk` */
  of(chunk: number): number[] {
    const [at] = this.#places.extentsOf(chunk)
    const after = this.#along(chunk, at, 1)
    const before = this.#along(chunk, at, -1)
    return [...new Set([...after.filter((near, index) => index < FOLLOWING_CHUNKS || this.known.has(near)), ...before.filter((near) => this.known.has(near))])]
  }

  #along(chunk: number, at: number, step: 1 | -1): number[] {
    const { refs, extentCount } = this.#map
    const found = new Set<number>()
    for (let looked = 1; looked <= EXTENTS_LOOKED_AT && found.size < NEAR_CHUNKS; looked++) {
      const index = at + step * looked
      if (index < 0 || index >= extentCount) break
      if (refs[index] < SPECIAL_MIN && refs[index] !== chunk) found.add(refs[index])
    }
    return [...found]
  }
}
