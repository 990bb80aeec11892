/**
 * $Bitmap: which clusters of the volume are in use.
 */
import { clearRuns } from '../clear-runs.ts'
import type { ClearRun } from '../clear-runs.ts'
import type { Content } from './content.ts'
import { invalid } from './format.ts'

const WINDOW_BYTES = 64 << 10

/** Clusters that are not in use. @param clusters of the volume @throws VarveError FORMAT_INVALID */
export function freeClusters(bitmap: Content, clusters: number): AsyncGenerator<ClearRun, void> {
  const bitmapBytes = Math.ceil(clusters / 8)
  if (bitmap.sizeBytes < bitmapBytes) throw invalid(`the map of ${clusters} clusters has ${bitmap.sizeBytes} bytes`)
  return clearRuns(windows(bitmap, bitmapBytes), clusters)
}

async function* windows(bitmap: Content, bitmapBytes: number): AsyncGenerator<Buffer, void> {
  const window = Buffer.alloc(Math.min(WINDOW_BYTES, bitmapBytes))
  for (let at = 0; at < bitmapBytes; at += window.length) {
    const bytes = window.subarray(0, Math.min(window.length, bitmapBytes - at))
    await bitmap.read(bytes, at)
    yield bytes
  }
}
