/**
 * Disks to stream, for tests: a random block map with its chunks. Extents begin and end anywhere, chunks are used in part and more than once.
 */
import { BlockMapBuilder } from '@varve/images/blockmap/block-map.ts'
import type { BlockMap } from '@varve/images/blockmap/block-map.ts'
import { digestOf, digestToHex } from '@varve/images/chunk/digest.ts'
import type { Random } from '../../random.ts'

export interface SourceDisk {
  map: BlockMap
  /** By number in the map. */
  chunks: Buffer[]
  content: Buffer
}

/** @param options.aligned extents begin at multiples of this, bytes */
export function randomDisk(random: Random, { sizeBytes, aligned = 1, chunkBytesMax = 40_000 }: { sizeBytes: number; aligned?: number; chunkBytesMax?: number }): SourceDisk {
  const content = Buffer.alloc(sizeBytes)
  const builder = new BlockMapBuilder(sizeBytes)
  const made: { bytes: Buffer; number: number }[] = []
  for (let at = 0; at < sizeBytes;) {
    const length = Math.min(sizeBytes - at, Math.ceil(random.between(1, random.pick([3000, 9000, chunkBytesMax])) / aligned) * aligned)
    const kind = random.below(10)
    if (kind === 0) builder.zero(at, length)
    else if (kind > 2) {
      let chunk = made.length > 0 && random.chance(0.2) ? random.pick(made) : undefined
      if (chunk === undefined) {
        const bytes = random.bytes(random.chance(0.8) ? length : length + random.below(5000))
        made.push((chunk = { bytes, number: builder.addChunk(digestOf(bytes), bytes.length) }))
      }
      const from = random.chance(0.8) ? 0 : random.below(chunk.bytes.length)
      const part = Math.min(length, chunk.bytes.length - from)
      const used = part === sizeBytes - at ? part : Math.floor(part / aligned) * aligned
      if (used > 0) {
        builder.data(at, used, chunk.number, from)
        chunk.bytes.copy(content, at, from, from + used)
        at += used
        continue
      }
    }
    at += length
  }
  const map = builder.build()
  const byDigest = new Map(made.map(({ bytes }) => [digestToHex(digestOf(bytes)), bytes]))
  const chunks = Array.from({ length: map.chunkCount }, (_, chunk) => byDigest.get(digestToHex(map.chunkDigest(chunk)))!)
  return { map, chunks, content }
}
