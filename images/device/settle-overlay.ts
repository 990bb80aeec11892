/**
 * Settling: what an overlay holds becomes chunks, and the disk that it shows becomes a block map.
 */
import { BlockCutter, windowStart } from '../blockmap/block-cutter.ts'
import { BELOW, BlockMap, BlockMapBuilder } from '../blockmap/block-map.ts'
import { FIXED_BYTES } from '../chunk/limits.ts'
import type { ChunkWriter } from '../store/chunk-store.ts'
import { BlockState, OVERLAY_BLOCK_BYTES } from './overlay-blocks.ts'
import type { OverlayDevice } from './overlay-device.ts'

/** Bytes that are read and put before others get a turn of the event loop. */
const TURN_BYTES = 4 << 20

/**
 * The map of what `overlay` shows over `lowerMap`. Reads only what the overlay holds; blocks of zeroes become zero extents.
 * The same content gives the same chunks, however it came to be written.
 * @param overlay one that nobody writes to: frozen
 * @param writer gets the chunks; the caller commits it before anything refers to the map
 */
export async function settleOverlay(lowerMap: BlockMap, overlay: OverlayDevice, writer: ChunkWriter, { signal }: { signal?: AbortSignal } = {}): Promise<BlockMap> {
  if (!overlay.readOnly) throw new RangeError('an overlay is settled when it is frozen')
  const builder = new BlockMapBuilder(overlay.sizeBytes, { unmentioned: BELOW })
  const cutter = new BlockCutter(builder, writer, { zeroes: 'mention' })
  const buffer = new Uint8Array(FIXED_BYTES)
  const runs: number[] = []
  overlay.forRuns((first, count, state) => {
    const offset = first * OVERLAY_BLOCK_BYTES
    const length = Math.min(count * OVERLAY_BLOCK_BYTES, overlay.sizeBytes - offset)
    if (state === BlockState.zero) builder.zero(offset, length)
    else runs.push(offset, offset + length)
  })
  let turnBytes = 0
  for (let index = 0; index < runs.length; index += 2) {
    for (let at = runs[index]; at < runs[index + 1];) {
      const bytes = buffer.subarray(0, Math.min(runs[index + 1], windowStart(at) + FIXED_BYTES) - at)
      const answer = overlay.read(bytes, at)
      if (answer !== undefined) await answer
      cutter.put(bytes, at)
      at += bytes.length
      turnBytes += bytes.length
      if (turnBytes < TURN_BYTES) continue
      turnBytes = 0
      await new Promise<void>(resolve => { setImmediate(resolve) })
      signal?.throwIfAborted()
    }
  }
  return BlockMap.overlay(lowerMap, builder.build())
}
