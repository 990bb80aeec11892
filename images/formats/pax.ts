/**
 * PAX extended headers: records `LENGTH KEY=VALUE\n` before an entry of a tar archive.
 * POSIX.1-2017, pax, "pax Extended Header"; names of vendors: GNU tar manual, "Storing sparse files"; libarchive-formats(5); star(5).
 */
import { VarveError } from '../errors.ts'
import type { Xattr } from '../tree/tree.ts'

const SCHILY = 'SCHILY.xattr.'
const LIBARCHIVE = 'LIBARCHIVE.xattr.'

/** Values by keyword, in latin1; a keyword that comes twice has its last value. */
export class PaxRecords {
  readonly values = new Map<string, string>()
  /** GNU.sparse.offset and GNU.sparse.numbytes in their order: the only ones that repeat. */
  readonly sparse: string[] = []

  /** These records over others (of global headers). An empty value takes away what the others say, but an attribute may be empty. */
  over(global: PaxRecords): PaxRecords {
    const merged = new PaxRecords()
    for (const [key, value] of [...global.values, ...this.values]) {
      if (value === '' && !key.startsWith(SCHILY)) merged.values.delete(key)
      else merged.values.set(key, value)
    }
    merged.sparse.push(...this.sparse)
    return merged
  }
}

/** @throws VarveError FORMAT_INVALID */
export function readPaxRecords(bytes: Uint8Array): PaxRecords {
  const records = new PaxRecords()
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('latin1')
  let at = 0
  while (at < text.length) {
    // Padding that some writers leave.
    if (text.charCodeAt(at) === 0) break
    const space = text.indexOf(' ', at)
    const length = space < 0 || space - at > 20 ? NaN : decimal(text.slice(at, space))
    const end = at + length
    const equals = text.indexOf('=', space + 1)
    if (!(end <= text.length) || text[end - 1] !== '\n' || equals < 0 || equals >= end) {
      throw new VarveError('FORMAT_INVALID', `a PAX record at byte ${at} of its header is not LENGTH KEY=VALUE`)
    }
    const key = text.slice(space + 1, equals)
    const value = text.slice(equals + 1, end - 1)
    if (key === 'GNU.sparse.offset' || key === 'GNU.sparse.numbytes') records.sparse.push(value)
    records.values.set(key, value)
    at = end
  }
  return records
}

/** A whole number of a record. @throws VarveError FORMAT_INVALID */
export function paxNumber(value: string, key: string): number {
  const number = decimal(value)
  if (!Number.isSafeInteger(number)) throw new VarveError('FORMAT_INVALID', `PAX record ${key}: ${JSON.stringify(value.slice(0, 100))} is not a number that Varve can hold`)
  return number
}

/** A time of a record, decimal seconds: whole seconds rounded down, and nanoseconds. @throws VarveError FORMAT_INVALID */
export function paxTime(value: string, key: string): { seconds: number; nanoseconds: number } {
  const match = /^(-?)(\d{1,16})(?:[.,](\d*))?$/.exec(value)
  if (match === null) throw new VarveError('FORMAT_INVALID', `PAX record ${key}: ${JSON.stringify(value.slice(0, 100))} is not a time`)
  const whole = Number(match[2])
  const nanoseconds = Number((match[3] ?? '').slice(0, 9).padEnd(9, '0'))
  if (!Number.isSafeInteger(whole)) throw new VarveError('FORMAT_INVALID', `PAX record ${key}: ${value} is out of range`)
  if (match[1] === '') return { seconds: whole, nanoseconds }
  return nanoseconds === 0 ? { seconds: -whole + 0, nanoseconds: 0 } : { seconds: -whole - 1, nanoseconds: 1_000_000_000 - nanoseconds }
}

/** Extended attributes that the records hold. @throws VarveError FORMAT_INVALID */
export function paxXattrs({ values }: PaxRecords): Xattr[] {
  const xattrs = new Map<string, Uint8Array>()
  for (const [key, value] of values) {
    if (!key.startsWith(LIBARCHIVE)) continue
    xattrs.set(percentDecoded(key.slice(LIBARCHIVE.length)), Uint8Array.from(Buffer.from(value, 'base64')))
  }
  // RHT.security.selinux is the label as text; the attribute ends it with NUL.
  const label = values.get('RHT.security.selinux')
  if (label !== undefined) xattrs.set('security.selinux', Uint8Array.from(Buffer.from(`${label}\0`, 'latin1')))
  for (const [key, value] of values) {
    if (key.startsWith(SCHILY)) xattrs.set(key.slice(SCHILY.length), Uint8Array.from(Buffer.from(value, 'latin1')))
  }
  for (const name of xattrs.keys()) {
    if (name === '' || name.length > 255 || name.includes('\0')) throw new VarveError('FORMAT_INVALID', `${JSON.stringify(name.slice(0, 300))} is not the name of an extended attribute`)
  }
  return [...xattrs].map(([name, value]) => ({ name, value }))
}

function percentDecoded(text: string): string {
  return text.replace(/%([0-9a-fA-F]{2})/g, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)))
}

function decimal(text: string): number {
  return /^\d{1,16}$/.test(text) ? Number(text) : NaN
}
