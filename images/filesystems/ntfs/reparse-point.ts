/**
 * Reparse points: what stands in the place of a file or directory ([MS-FSCC] 2.1.2): symlinks, junctions, special files of WSL, files compressed by Windows.
 */
import { invalid } from './format.ts'

export const REPARSE_TAG = {
  mountPoint: 0xa0000003,
  symlink: 0xa000000c,
  dedup: 0x80000013,
  windowsOverlay: 0x80000017,
  linuxSymlink: 0xa000001d,
  linuxSocket: 0x80000023,
  linuxFifo: 0x80000024,
  linuxCharacter: 0x80000025,
  linuxBlock: 0x80000026,
} as const

/** [MS-FSCC] 2.1.2.2 */
export const REPARSE_BYTES_MAX = 16 << 10

const HEAD_BYTES = 8
const SYMLINK_RELATIVE = 1
const LINUX_SYMLINK_VERSION = 2

export interface ReparsePoint {
  tag: number
  /** Behind the tag and the length. */
  data: Buffer
}

/** @param bytes content of $REPARSE_POINT @throws VarveError FORMAT_INVALID */
export function readReparsePoint(bytes: Buffer): ReparsePoint {
  if (bytes.length < HEAD_BYTES) throw invalid('a reparse point is cut short')
  return { tag: bytes.readUInt32LE(0), data: bytes.subarray(HEAD_BYTES) }
}

/**
 * Where a link leads, as Windows means it:
 * `relative` to the directory of the link; `absolute` on a drive, or if it names none on the volume of the link; `named`, to what is no path of a drive; all with backslashes.
 * `linux`: bytes in latin1.
 */
export interface WindowsTarget {
  kind: 'relative' | 'absolute' | 'named' | 'linux'
  drive?: string
  path: string
}

/** @returns undefined for what is no link @throws VarveError FORMAT_INVALID */
export function linkTarget({ tag, data }: ReparsePoint): WindowsTarget | undefined {
  if (tag === REPARSE_TAG.mountPoint) return fullTarget(substituteName(data, 8))
  if (tag === REPARSE_TAG.linuxSymlink) {
    if (data.length <= 4 || data.readUInt32LE(0) !== LINUX_SYMLINK_VERSION || data.includes(0, 4)) throw invalid('a symlink of WSL is damaged')
    return { kind: 'linux', path: data.toString('latin1', 4) }
  }
  if (tag !== REPARSE_TAG.symlink) return undefined
  const name = substituteName(data, 12)
  if ((data.readUInt32LE(8) & SYMLINK_RELATIVE) === 0) return fullTarget(name)
  return absoluteTarget(name) ?? (name.startsWith('\\') ? { kind: 'absolute', path: name.slice(1) } : { kind: 'relative', path: name })
}

function substituteName(data: Buffer, headBytes: number): string {
  const offset = data.length < headBytes ? Infinity : headBytes + data.readUInt16LE(0)
  const length = data.length < headBytes ? 0 : data.readUInt16LE(2)
  if (length === 0 || offset + length > data.length) throw invalid('the target of a link is damaged')
  const name = data.toString('utf16le', offset, offset + length)
  if (name.includes('\0')) throw invalid('the target of a link is damaged')
  return name
}

/** `\??\` is the root of the names of Windows, where drives and volumes are. */
const FULL_NAME = /^\\(?:\?\?|\\\?)\\/

function fullTarget(name: string): WindowsTarget {
  const inner = name.replace(FULL_NAME, '')
  if (/^Volume\{/i.test(inner)) return { kind: 'named', path: inner.replace(/\\$/, '') }
  return absoluteTarget(inner) ?? { kind: 'named', path: inner }
}

function absoluteTarget(name: string): WindowsTarget | undefined {
  const match = /^([^\\]):\\/.exec(name)
  return match === null ? undefined : { kind: 'absolute', drive: `${match[1].toUpperCase()}:`, path: name.slice(3) }
}
