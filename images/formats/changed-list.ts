/**
 * Changed lists: which ranges of a disk have changed since some moment, as others tell it. Lines of text, or JSON as `qemu-img map` and `nbdinfo --map` print it.
 * docs/formats/changed-list.md
 */
import { RangesBuilder } from '../blockmap/ranges.ts'
import type { Ranges } from '../blockmap/ranges.ts'
import { VarveError } from '../errors.ts'

/** Longest list, bytes. */
export const CHANGED_LIST_BYTES_MAX = 256 << 20

/** @throws VarveError FORMAT_INVALID, LIMIT_EXCEEDED */
export function parseChangedList(bytes: Uint8Array): Ranges {
  if (bytes.length > CHANGED_LIST_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `a changed list of ${bytes.length} bytes; at most ${CHANGED_LIST_BYTES_MAX} are read`)
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('latin1')
  const ranges = new RangesBuilder()
  if (text.trimStart().startsWith('[')) addJson(text, ranges)
  else addLines(text, ranges)
  return ranges.build()
}

/** `OFFSET LENGTH`, bytes, decimal; `#` begins a comment. */
function addLines(text: string, ranges: RangesBuilder): void {
  let number = 0
  for (const line of text.split('\n')) {
    number++
    const words = line.replace(/#.*/, '').trim().split(/\s+/)
    if (words.length === 1 && words[0] === '') continue
    if (words.length !== 2 || !words.every((word) => /^\d{1,16}$/.test(word))) throw invalid(`line ${number} is not OFFSET LENGTH in bytes`)
    addRange(ranges, Number(words[0]), Number(words[1]), `line ${number}`)
  }
}

function addJson(text: string, ranges: RangesBuilder): void {
  let list: unknown
  try {
    list = JSON.parse(text)
  } catch (cause) {
    throw new VarveError('FORMAT_INVALID', `changed list: ${(cause as Error).message}`, { cause })
  }
  for (const [index, item] of (list as unknown[]).entries()) {
    const where = `item ${index}`
    if (typeof item !== 'object' || item === null) throw invalid(`${where} is not an object`)
    const { offset, start = offset, length, depth, present, type, description } = item as Record<string, unknown>
    if (depth !== undefined) {
      // qemu-img map: `offset` is a place in the file; what the topmost image has is of depth 0.
      if (depth === 0 && present !== false) addRange(ranges, start, length, where)
      continue
    }
    if (typeof description === 'string' && /data|hole|zero|allocated/.test(description)) throw invalid(`it says what is allocated (${description}), not what has changed; ask for the map of a dirty bitmap`)
    if (typeof type === 'number' ? (type & 1) !== 0 : description !== 'clean') addRange(ranges, start, length, where)
  }
}

function addRange(ranges: RangesBuilder, offset: unknown, length: unknown, where: string): void {
  const isRange = Number.isSafeInteger(offset) && Number.isSafeInteger(length) && (offset as number) >= 0 && (length as number) >= 0 && Number.isSafeInteger((offset as number) + (length as number))
  if (!isRange) throw invalid(`${where} is not a range of bytes`)
  ranges.add(offset as number, length as number)
}

function invalid(what: string): VarveError {
  return new VarveError('FORMAT_INVALID', `changed list: ${what}`)
}
