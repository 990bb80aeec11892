/** Stub. */
import type { Content } from './content.ts'
import { unsupported } from './format.ts'
import type { MftFile } from './mft.ts'

export const WOF_STREAM = 'WofCompressedData'

export async function openWofContent(file: MftFile, data: Buffer, sizeBytes: number): Promise<Content> {
  throw unsupported(`record ${file.number} of ${sizeBytes} bytes is compressed by Windows ${data.length}`)
}
