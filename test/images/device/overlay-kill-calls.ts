/** The calls of overlay-writer.ts, which the test that kills it knows as well: a function of seed and number. */
import { digestOf } from '@varve/images/chunk/digest.ts'
import { MemoryDevice } from '@varve/images/device/memory-device.ts'
import { Random } from '../../random.ts'
import { fillSector, SECTOR_BYTES } from './sector-history.ts'

export const DISK_SECTORS = 512 * 8
export const LOWER_DIGEST = digestOf(Buffer.from('the disk below'))
/** Versions of the disk below start here; calls have lower numbers. */
const LOWER_VERSIONS = 0x8000_0000

export interface WriterCall {
  sector: number
  count: number
  /** What follows the write; `zero` writes zeroes. */
  kind: 'write' | 'zero' | 'flush' | 'snapshot'
}

/** @param call at least 1: it is the version that fills the sectors */
export function callAt(seed: number, call: number): WriterCall {
  const random = new Random(seed ^ Math.imul(call, 0x9e3779b1))
  const sector = random.below(DISK_SECTORS)
  const count = Math.min(DISK_SECTORS - sector, random.pick([1, 8, 8, 16, random.between(1, 100)]))
  const kind = random.chance(0.001) ? 'snapshot' : random.chance(0.05) ? 'flush' : random.chance(0.15) ? 'zero' : 'write'
  return { sector, count, kind }
}

export function lowerDisk(): MemoryDevice {
  const content = new Uint8Array(DISK_SECTORS * SECTOR_BYTES)
  for (let sector = 0; sector < DISK_SECTORS; sector++) fillSector(content, sector, LOWER_VERSIONS + sector)
  return MemoryDevice.of(content, { readOnly: true })
}
