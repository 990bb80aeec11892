/**
 * TarWriter: archives of files with all their attributes, for any reader of pax: POSIX.1-2017, pax, "pax Interchange Format"; sparse files as GNU tar's format 1.0,
 * attributes as star's SCHILY.xattr and SCHILY.acl. Members come out in the order in which they are given.
 */
import { VarveError } from '../errors.ts'
import type { Timestamp } from '../filesystems/filesystem.ts'
import type { Xattr } from '../tree/tree.ts'
import { aclToText } from './posix-acl.ts'
import { TAR_BLOCK_BYTES } from './tar-header.ts'

export interface TarMember {
  /** Bytes in latin1, without a leading slash. */
  path: string
  /** Of the header: `0` file, `1` hard link, `2` symlink, `3` character, `4` block, `5` directory, `6` fifo. */
  type: string
  mode: number
  uid: number
  gid: number
  modified: Timestamp
  /** Of a file. */
  sizeBytes: number
  /** Of links, bytes in latin1. */
  target?: string
  deviceMajor?: number
  deviceMinor?: number
  xattrs: readonly Xattr[]
  /** Of a file that has holes: where its data is, bytes, in order. */
  data?: readonly { offset: number; length: number }[]
}

const OCTAL_7_MAX = 0o7777777
const OCTAL_11_MAX = 0o77777777777
const NAME_BYTES_MAX = 100
const ACLS: Readonly<Record<string, string>> = { 'system.posix_acl_access': 'SCHILY.acl.access', 'system.posix_acl_default': 'SCHILY.acl.default' }
/** Two blocks of zeroes, and as many as fill a record of 20 blocks, are what tapes wanted; two are what readers look for. */
export const TAR_END = Buffer.alloc(2 * TAR_BLOCK_BYTES)

/** What stands before the content of a member: its headers, and the map of a sparse file. */
export function tarHead(member: TarMember): Buffer {
  const map = member.data === undefined ? undefined : sparseMap(member.data, member.sizeBytes)
  const storedBytes = member.data === undefined ? member.sizeBytes : member.data.reduce((sum, { length }) => sum + length, 0) + map!.length
  const records = paxRecords(member, storedBytes)
  const head = header(member, { name: member.data === undefined ? member.path : `GNUSparseFile.0/${member.path}`, storedBytes })
  const parts = records.length === 0 ? [head] : [header({ ...member, type: 'x', mode: 0o644, modified: { seconds: 0, nanoseconds: 0 }, target: undefined }, { name: 'PaxHeaders/0', storedBytes: records.length }), records, tarPadding(records.length), head]
  return Buffer.concat(map === undefined ? parts : [...parts, map])
}

/** What fills the last block of a content of `length` bytes. */
export function tarPadding(length: number): Buffer {
  return Buffer.alloc((TAR_BLOCK_BYTES - (length % TAR_BLOCK_BYTES)) % TAR_BLOCK_BYTES)
}

/** Bytes that follow the head of a member, without padding: data between holes, or all. */
export function tarContentBytes({ data, sizeBytes }: TarMember): number {
  return data === undefined ? sizeBytes : data.reduce((sum, { length }) => sum + length, 0)
}

/** GNU.sparse 1.0: numbers in lines, at the start of the content, filled up to a block. */
function sparseMap(data: readonly { offset: number; length: number }[], sizeBytes: number): Buffer {
  const last = data.at(-1)
  // The end of a file that ends with a hole is an empty part.
  const parts = last === undefined || last.offset + last.length < sizeBytes ? [...data, { offset: sizeBytes, length: 0 }] : data
  const text = Buffer.from([String(parts.length), ...parts.flatMap(({ offset, length }) => [String(offset), String(length)]), ''].join('\n'))
  return Buffer.concat([text, tarPadding(text.length)])
}

function paxRecords(member: TarMember, storedBytes: number): Buffer {
  const { path, target = '', uid, gid, modified, xattrs, data } = member
  const records: [string, string | Uint8Array][] = []
  const name = data === undefined ? 'path' : 'GNU.sparse.name'
  if (data !== undefined) records.push(['GNU.sparse.major', '1'], ['GNU.sparse.minor', '0'], ['GNU.sparse.realsize', String(member.sizeBytes)])
  if (data !== undefined || path.length > NAME_BYTES_MAX || !isAscii(path)) records.push([name, Buffer.from(path, 'latin1')])
  if (target.length > NAME_BYTES_MAX || !isAscii(target)) records.push(['linkpath', Buffer.from(target, 'latin1')])
  if (storedBytes > OCTAL_11_MAX) records.push(['size', String(storedBytes)])
  if (uid > OCTAL_7_MAX) records.push(['uid', String(uid)])
  if (gid > OCTAL_7_MAX) records.push(['gid', String(gid)])
  if (modified.nanoseconds !== 0 || modified.seconds < 0 || modified.seconds > OCTAL_11_MAX) records.push(['mtime', paxTime(modified)])
  for (const { name: key, value } of xattrs) {
    const acl = ACLS[key]
    if (acl !== undefined) records.push([acl, aclToText(value)])
    else if (key.includes('=')) throw new VarveError('SOURCE_UNSUPPORTED', `the extended attribute ${JSON.stringify(key)} of ${path} has a name that no archive can hold`)
    else records.push([`SCHILY.xattr.${key}`, value])
  }
  return Buffer.concat(records.map(([key, value]) => paxRecord(key, value)))
}

function paxRecord(key: string, value: string | Uint8Array): Buffer {
  const rest = Buffer.concat([Buffer.from(` ${key}=`, 'latin1'), typeof value === 'string' ? Buffer.from(value) : value, Buffer.from('\n')])
  let length = rest.length + 1
  while (String(length).length + rest.length > length) length++
  return Buffer.concat([Buffer.from(String(length)), rest])
}

/** Decimal seconds. */
function paxTime({ seconds, nanoseconds }: Timestamp): string {
  const digits = (value: number): string => (value === 0 ? '' : `.${String(value).padStart(9, '0').replace(/0+$/, '')}`)
  return seconds >= 0 || nanoseconds === 0 ? `${seconds}${digits(nanoseconds)}` : `-${-(seconds + 1)}${digits(1_000_000_000 - nanoseconds)}`
}

/** What does not fit a field is in a record, and cut here. */
function header({ type, mode, uid, gid, modified, target = '', deviceMajor = 0, deviceMinor = 0 }: TarMember, { name, storedBytes }: { name: string; storedBytes: number }): Buffer {
  const block = Buffer.alloc(TAR_BLOCK_BYTES)
  const octal = (value: number, at: number, length: number, most: number): void => {
    block.write((value > most || value < 0 ? 0 : value).toString(8).padStart(length - 1, '0'), at, 'latin1')
  }
  block.write(name, 0, NAME_BYTES_MAX, 'latin1')
  octal(mode, 100, 8, OCTAL_7_MAX)
  octal(uid, 108, 8, OCTAL_7_MAX)
  octal(gid, 116, 8, OCTAL_7_MAX)
  octal(storedBytes, 124, 12, OCTAL_11_MAX)
  octal(modified.seconds, 136, 12, OCTAL_11_MAX)
  block.write(type, 156, 'latin1')
  block.write(target, 157, NAME_BYTES_MAX, 'latin1')
  block.write('ustar\x0000', 257, 'latin1')
  octal(deviceMajor, 329, 8, OCTAL_7_MAX)
  octal(deviceMinor, 337, 8, OCTAL_7_MAX)
  block.fill(' ', 148, 156)
  block.write(`${block.reduce((sum, byte) => sum + byte, 0).toString(8).padStart(6, '0')}\0 `, 148, 'latin1')
  return block
}

function isAscii(text: string): boolean {
  return /^[\x20-\x7e]*$/.test(text)
}
