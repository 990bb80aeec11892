/**
 * Update sequence array: the last two bytes of each 512 of a record are replaced by a number when it is written, and stand in an array in its head.
 * If they differ, the record was torn.
 */
import { invalid } from './format.ts'

/** Whatever the size of the disk's sectors. */
const STRIDE_BYTES = 512

/**
 * Puts back what the array holds, in place.
 * @param record FILE, INDX or RSTR, whole
 * @throws VarveError FORMAT_INVALID, naming `what`
 */
export function restoreUpdateSequence(record: Buffer, what: string): void {
  const offset = record.readUInt16LE(4)
  const count = record.readUInt16LE(6)
  if (count !== record.length / STRIDE_BYTES + 1 || offset % 2 !== 0 || offset + 2 * count > STRIDE_BYTES - 2) throw invalid(`${what} has an update sequence that cannot be`)
  const number = record.readUInt16LE(offset)
  for (let index = 1; index < count; index++) {
    const end = index * STRIDE_BYTES - 2
    if (record.readUInt16LE(end) !== number) throw invalid(`${what} was written in part`)
    record.writeUInt16LE(record.readUInt16LE(offset + 2 * index), end)
  }
}
