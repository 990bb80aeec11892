/**
 * $Bitmap: a bit for each cluster of the volume, the lowest first, set if it is in use.
 */
import type { Content } from './content.ts'
import { invalid } from './format.ts'

const WINDOW_BYTES = 64 << 10

/** Runs of clusters that are not in use, in order, none beside another. @param clusters of the volume @throws VarveError FORMAT_INVALID */
export async function* clearRuns(bitmap: Content, clusters: number): AsyncGenerator<{ first: number; count: number }, void> {
  const bitmapBytes = Math.ceil(clusters / 8)
  if (bitmap.sizeBytes < bitmapBytes) throw invalid(`the map of ${clusters} clusters has ${bitmap.sizeBytes} bytes`)
  let start: number | undefined
  const window = Buffer.alloc(Math.min(WINDOW_BYTES, bitmapBytes))
  for (let at = 0; at < bitmapBytes; at += window.length) {
    const bytes = window.subarray(0, Math.min(window.length, bitmapBytes - at))
    await bitmap.read(bytes, at)
    for (const { cluster, isUsed } of changes(bytes, start === undefined)) {
      const first = Math.min(at * 8 + cluster, clusters)
      if (!isUsed) start = first
      else if (start !== undefined) {
        if (first > start) yield { first: start, count: first - start }
        start = undefined
      }
    }
  }
  if (start !== undefined && start < clusters) yield { first: start, count: clusters - start }
}

/** Where bits begin to be set, or clear. @param isUsed what the bit before the first was */
function* changes(bytes: Buffer, isUsed: boolean): Generator<{ cluster: number; isUsed: boolean }, void> {
  let was = isUsed
  for (const [index, byte] of bytes.entries()) {
    if (byte === (was ? 0xff : 0)) continue
    for (let bit = 0; bit < 8; bit++) {
      const is = ((byte >> bit) & 1) !== 0
      if (is === was) continue
      yield { cluster: index * 8 + bit, isUsed: is }
      was = is
    }
  }
}
