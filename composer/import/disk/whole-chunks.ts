/**
 * Whole chunks: what a run of a file is, as an earlier map of its disk has it.
 */
import { SPECIAL_MIN } from '@varve/images/blockmap/block-map.ts'
import type { BlockMap } from '@varve/images/blockmap/block-map.ts'
import { CUT_BYTES_MAX, CUT_BYTES_MIN } from '@varve/images/chunk/limits.ts'
import type { DiskPart } from './disk-files.ts'

/**
 * Chunks of the map that a run consists of, each of them whole, in the order of the file.
 * @param parts all of them on the disk
 * @returns undefined if the map does not have the run so: it was no file when that was made, or cut otherwise
 */
export function wholeChunks(map: BlockMap, parts: readonly DiskPart[]): number[] | undefined {
  const chunks: number[] = []
  let runBytes = 0
  let chunk = -1
  let filled = 0
  for (const { diskOffset, length } of parts) {
    runBytes += length
    const end = diskOffset + length
    for (let index = map.indexAt(diskOffset), at = diskOffset; at < end; index++) {
      const ref = map.refs[index]
      if (ref >= SPECIAL_MIN) return undefined
      const from = map.chunkOffsets[index] + at - map.starts[index]
      const stop = Math.min(end, map.endOf(index))
      if (filled === 0) chunk = ref
      if (ref !== chunk || from !== filled) return undefined
      filled += stop - at
      if (filled === map.chunkBytes[chunk]) {
        chunks.push(chunk)
        filled = 0
      }
      at = stop
    }
  }
  return filled === 0 && isCutAsFile(map, chunks, runBytes) ? chunks : undefined
}

/** Short runs are one chunk; of longer ones, only the last chunk may be small. */
function isCutAsFile({ chunkBytes }: BlockMap, chunks: readonly number[], runBytes: number): boolean {
  if (runBytes <= CUT_BYTES_MAX) return chunks.length === 1
  return chunks.every((chunk, index) => chunkBytes[chunk] >= CUT_BYTES_MIN || index === chunks.length - 1)
}
