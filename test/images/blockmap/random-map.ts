/** Random block maps for tests, and what they show byte by byte. */
import { BELOW, BlockMapBuilder, HOLE, ZERO } from '@varve/images/blockmap/block-map.ts'
import type { BlockMap } from '@varve/images/blockmap/block-map.ts'
import { digestOf } from '@varve/images/chunk/digest.ts'
import type { Random } from '../../random.ts'

/** @param options.partial some of it is BELOW */
export function randomMap(random: Random, sizeBytes: number, { partial = false } = {}): BlockMap {
  const builder = new BlockMapBuilder(sizeBytes, { unmentioned: partial ? BELOW : HOLE })
  const chunks = Array.from({ length: random.between(1, 12) }, () => {
    const bytes = random.between(1, 300)
    return { bytes, number: builder.addChunk(digestOf(Buffer.from(`chunk of ${bytes} bytes`)), bytes) }
  })
  for (let at = random.below(100); at < sizeBytes;) {
    const chunk = random.pick(chunks)
    const chunkOffset = random.chance(0.5) ? 0 : random.below(chunk.bytes)
    const length = Math.min(sizeBytes - at, random.between(1, chunk.bytes - chunkOffset))
    const kind = random.below(6)
    if (kind === 0) builder.zero(at, length)
    else if (kind === 1) builder.hole(at, length)
    else builder.data(at, length, chunk.number, chunkOffset)
    at += length + (random.chance(0.5) ? 0 : random.below(100))
  }
  return builder.build()
}

/** For each byte of the disk: `below`, `hole`, `zero`, or digest and offset of the chunk's byte. */
export function shownBytes(map: BlockMap): string[] {
  return Array.from({ length: map.sizeBytes }, (_, at) => {
    const index = map.indexAt(at)
    const ref = map.refs[index]
    if (ref === BELOW) return 'below'
    if (ref === HOLE) return 'hole'
    if (ref === ZERO) return 'zero'
    return `${Buffer.from(map.chunkDigest(ref)).toString('hex', 0, 8)}+${map.chunkOffsets[index] + at - map.starts[index]}`
  })
}
