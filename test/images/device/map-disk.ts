/** A disk's content as chunks and a block map, cut unevenly, for tests. */
import { BlockMapBuilder } from '@varve/images/blockmap/block-map.ts'
import type { BlockMap } from '@varve/images/blockmap/block-map.ts'
import { MemoryStore } from '@varve/images/store/memory-store.ts'
import type { Random } from '../../random.ts'

/** Runs of zeroes become holes or zero extents; the rest chunks, of which the disk shows parts. */
export async function mapDisk(content: Uint8Array, random: Random): Promise<{ map: BlockMap; store: MemoryStore }> {
  const store = new MemoryStore()
  const writer = store.writer()
  const builder = new BlockMapBuilder(content.length)
  for (let at = 0; at < content.length;) {
    const length = Math.min(content.length - at, random.pick([1, 100, 4096, 10_000, random.between(1, 40_000)]))
    const part = content.subarray(at, at + length)
    if (part.every(byte => byte === 0)) {
      if (random.chance(0.5)) builder.zero(at, length)
    } else {
      const before = random.below(3) * 10
      const chunk = Buffer.concat([Buffer.alloc(before, 7), part, Buffer.alloc(random.below(3) * 10, 9)])
      builder.data(at, length, builder.addChunk(writer.put(chunk), chunk.length), before)
    }
    at += length
  }
  await writer.commit()
  return { map: builder.build(), store }
}
