/**
 * Settling: what an overlay holds becomes chunks, and the disk that it shows becomes a block map.
 */
import { BlockCutter, windowStart } from '../blockmap/block-cutter.ts'
import { BELOW, BlockMap, BlockMapBuilder } from '../blockmap/block-map.ts'
import { FIXED_BYTES } from '../chunk/limits.ts'
import type { ChunkWriter } from '../store/chunk-store.ts'
import { OVERLAY_BLOCK_BYTES } from './overlay-device.ts'
import type { OverlayDevice } from './overlay-device.ts'
import { OVERLAY_SECTOR_BYTES, SectorState } from './overlay-sectors.ts'

/** Bytes that are read and put before others get a turn of the event loop. */
const TURN_BYTES = 4 << 20

/**
 * The map of what `overlay` shows over `lowerMap`. Reads only blocks that the overlay holds something of; blocks of zeroes become zero extents.
 * The same content gives the same chunks, however it came to be written.
 * @param overlay one that nobody writes to: frozen
 * @param writer gets the chunks; the caller commits it before anything refers to the map
 */
export async function settleOverlay(lowerMap: BlockMap, overlay: OverlayDevice, writer: ChunkWriter, { signal }: { signal?: AbortSignal } = {}): Promise<BlockMap> {
  if (!overlay.readOnly) throw new RangeError('an overlay is settled when it is frozen')
  const builder = new BlockMapBuilder(overlay.sizeBytes, { unmentioned: BELOW })
  const cutter = new BlockCutter(builder, writer, { zeroes: 'mention' })
  const buffer = new Uint8Array(FIXED_BYTES)
  const runs = wholeBlocks(overlay, builder)
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

/**
 * Blocks that are to be read, start and end of each run in bytes, in order: the map is one of whole blocks, so that all with the same content become one chunk.
 * Those that are zero to the overlay are told to the builder.
 */
function wholeBlocks(overlay: OverlayDevice, builder: BlockMapBuilder): number[] {
  const runs: number[] = []
  const read = (from: number, to: number): void => {
    if (from >= to) return
    const start = from - (from % OVERLAY_BLOCK_BYTES)
    const end = Math.min(overlay.sizeBytes, Math.ceil(to / OVERLAY_BLOCK_BYTES) * OVERLAY_BLOCK_BYTES)
    if (runs.length > 0 && start <= runs[runs.length - 1]) runs[runs.length - 1] = Math.max(runs[runs.length - 1], end)
    else runs.push(start, end)
  }
  overlay.forRuns((first, count, state) => {
    const from = first * OVERLAY_SECTOR_BYTES
    const to = Math.min(from + count * OVERLAY_SECTOR_BYTES, overlay.sizeBytes)
    if (state === SectorState.data) return read(from, to)
    const wholeFrom = Math.ceil(from / OVERLAY_BLOCK_BYTES) * OVERLAY_BLOCK_BYTES
    const wholeTo = to === overlay.sizeBytes ? to : to - (to % OVERLAY_BLOCK_BYTES)
    if (wholeFrom >= wholeTo) return read(from, to)
    read(from, wholeFrom)
    builder.zero(wholeFrom, wholeTo - wholeFrom)
    read(wholeTo, to)
  })
  return runs
}
