/**
 * Difference of two block maps: where the disks are not known to be the same. Chunks are compared by their names, and no content is read.
 */
import { ChunkTable, digestWords } from '../chunk/chunk-table.ts'
import type { BlockMap } from './block-map.ts'
import { SPECIAL_MIN } from './extent-columns.ts'
import { RangesBuilder } from './ranges.ts'
import type { Ranges } from './ranges.ts'

const ZEROES = -1

/** Ranges in which `map` is not as `base`, whose holes and zeroes are the same; what only `map` has, its end, is among them. Linear in their extents. */
export function differenceOfMaps(map: BlockMap, base: BlockMap): Ranges {
  const chunks = new ChunkTable(map.chunkCount + base.chunkCount)
  const [numbers, baseNumbers] = [numbersIn(chunks, map), numbersIn(chunks, base)]
  const changed = new RangesBuilder()
  const shared = Math.min(map.sizeBytes, base.sizeBytes)
  for (let at = 0, index = 0, baseIndex = 0; at < shared; ) {
    const end = Math.min(map.endOf(index), base.endOf(baseIndex), shared)
    const [ref, baseRef] = [map.refs[index], base.refs[baseIndex]]
    const [chunk, baseChunk] = [ref >= SPECIAL_MIN ? ZEROES : numbers[ref], baseRef >= SPECIAL_MIN ? ZEROES : baseNumbers[baseRef]]
    const isSame = chunk === baseChunk && (chunk === ZEROES || map.chunkOffsets[index] + at - map.starts[index] === base.chunkOffsets[baseIndex] + at - base.starts[baseIndex])
    if (!isSame) changed.add(at, end - at)
    if (end === map.endOf(index)) index++
    if (end === base.endOf(baseIndex)) baseIndex++
    at = end
  }
  changed.add(shared, map.sizeBytes - shared)
  return changed.build()
}

function numbersIn(chunks: ChunkTable, { chunkDigests, chunkBytes, chunkCount }: BlockMap): Uint32Array {
  const words = digestWords(chunkDigests)
  return Uint32Array.from({ length: chunkCount }, (_, chunk) => chunks.addFrom(words, chunk, chunkBytes[chunk]))
}
