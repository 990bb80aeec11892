/**
 * Chunk places: where on a disk each chunk of its block map lies; the map itself says it the other way round.
 */
import type { BlockMap } from '@varve/images/blockmap/block-map.ts'
import { SPECIAL_MIN } from '@varve/images/blockmap/block-map.ts'

export class ChunkPlaces {
  /** Extents of chunk c: #extents[#starts[c]] .. #extents[#starts[c + 1] - 1], by their place on the disk. */
  readonly #starts: Uint32Array
  readonly #extents: Uint32Array

  constructor(map: BlockMap) {
    const starts = new Uint32Array(map.chunkCount + 1)
    for (const ref of map.refs) if (ref < SPECIAL_MIN) starts[ref + 1]++
    for (let chunk = 0; chunk < map.chunkCount; chunk++) starts[chunk + 1] += starts[chunk]
    const next = starts.slice()
    const extents = new Uint32Array(starts[map.chunkCount])
    for (let index = 0; index < map.extentCount; index++) {
      const ref = map.refs[index]
      if (ref < SPECIAL_MIN) extents[next[ref]++] = index
    }
    this.#starts = starts
    this.#extents = extents
  }

  /** Numbers of the extents that hold parts of a chunk; a view. */
  extentsOf(chunk: number): Uint32Array {
    return this.#extents.subarray(this.#starts[chunk], this.#starts[chunk + 1])
  }
}
