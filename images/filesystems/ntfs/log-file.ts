/**
 * $LogFile: whether its restart pages say that the volume was unmounted cleanly. What it logs is not replayed.
 */
import { isVarveError } from '../../errors.ts'
import type { Content } from './content.ts'
import { invalid, readUInt64 } from './format.ts'
import { restoreUpdateSequence } from './update-sequence.ts'

const PAGE_BYTES_MIN = 512
const PAGE_BYTES_MAX = 64 << 10
/** Where the second page is if the first cannot say it. */
const PAGE_BYTES_USUAL = 4096
const HEAD_BYTES = 0x20
const AREA_BYTES = 0x10
const NO_CLIENT = 0xffff
const VOLUME_IS_CLEAN = 2

interface RestartPage {
  pageBytes: number
  sequenceNumber: number
  isClean: boolean
}

/** The later of two restart pages tells. A log that was emptied (all ones) was clean. */
export async function isLogClean(log: Content): Promise<boolean> {
  const start = Buffer.alloc(Math.min(PAGE_BYTES_MIN, log.sizeBytes))
  await log.read(start, 0)
  if (start.every((byte) => byte === 0xff)) return true
  const first = await restartPage(log, 0)
  const second = await restartPage(log, first?.pageBytes ?? PAGE_BYTES_USUAL)
  const last = first !== undefined && (second === undefined || first.sequenceNumber >= second.sequenceNumber) ? first : second
  return last?.isClean ?? false
}

async function restartPage(log: Content, offset: number): Promise<RestartPage | undefined> {
  try {
    return await readRestartPage(log, offset)
  } catch (error) {
    if (!isVarveError(error, 'FORMAT_INVALID')) throw error
    return undefined
  }
}

async function readRestartPage(log: Content, offset: number): Promise<RestartPage> {
  const head = Buffer.alloc(HEAD_BYTES)
  if (offset + head.length > log.sizeBytes) throw invalid('the log ends before its restart page')
  await log.read(head, offset)
  const magic = head.toString('latin1', 0, 4)
  const pageBytes = head.readUInt32LE(0x10)
  const isPossible = (magic === 'RSTR' || magic === 'CHKD') && pageBytes >= PAGE_BYTES_MIN && pageBytes <= PAGE_BYTES_MAX && (pageBytes & (pageBytes - 1)) === 0
  if (!isPossible || offset + pageBytes > log.sizeBytes) throw invalid('the log has no restart page')
  const page = Buffer.alloc(pageBytes)
  await log.read(page, offset)
  restoreUpdateSequence(page, 'a restart page of the log')
  const area = page.readUInt16LE(0x18)
  if (area < HEAD_BYTES || area + AREA_BYTES > pageBytes) throw invalid('a restart page of the log is damaged')
  const isClean = page.readUInt16LE(area + 0x0c) === NO_CLIENT || (page.readUInt16LE(area + 0x0e) & VOLUME_IS_CLEAN) !== 0
  return { pageBytes, sequenceNumber: readUInt64(page, area), isClean }
}
