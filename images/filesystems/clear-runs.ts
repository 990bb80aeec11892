/**
 * Bitmaps of blocks or clusters, as ext4, NTFS and exFAT have them: a bit for each, the lowest of a byte first, set if it is in use.
 */

/** Neighbours that are all not in use. */
export interface ClearRun {
  first: number
  count: number
}

/** Runs of bits that are not set, in order, none beside another. @param windows the bitmap, in pieces of whole bytes @param bits of it that count */
export async function* clearRuns(windows: AsyncIterable<Uint8Array>, bits: number): AsyncGenerator<ClearRun, void> {
  let start: number | undefined
  let at = 0
  for await (const bytes of windows) {
    const count = Math.min(8 * bytes.length, bits - at)
    for (let bit = 0; bit < count;) {
      const byte = bytes[bit >>> 3]
      // What goes on as it was, eight bits at once: free space is long, and so is what is in use.
      if ((bit & 7) === 0 && byte === (start === undefined ? 0xff : 0)) {
        bit += 8
        continue
      }
      const isUsed = (byte & (1 << (bit & 7))) !== 0
      if (!isUsed) start ??= at + bit
      else if (start !== undefined) {
        yield { first: start, count: at + bit - start }
        start = undefined
      }
      bit++
    }
    at += count
    if (at === bits) break
  }
  if (start !== undefined) yield { first: start, count: at - start }
}
