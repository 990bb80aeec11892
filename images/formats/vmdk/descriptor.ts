/**
 * Descriptor of a VMDK disk: text that says of which extents it is made, and over which other disk it lies. Virtual Disk Format 5.0, "The Descriptor File".
 */
import { VarveError } from '../../errors.ts'

export const SECTOR_BYTES = 512
/** As in QEMU. */
export const VMDK_DESCRIPTOR_BYTES_MAX = 1 << 20
/** CID of no disk: there is no parent. */
export const NO_PARENT = 'ffffffff'

/** FLAT and VMFS: bytes as they are. SPARSE, VMFSSPARSE: grains. ZERO: nothing. */
export type VmdkExtentType = 'FLAT' | 'VMFS' | 'SPARSE' | 'VMFSSPARSE' | 'ZERO'
const EXTENT_TYPES: readonly string[] = ['FLAT', 'VMFS', 'SPARSE', 'VMFSSPARSE', 'ZERO'] satisfies VmdkExtentType[]

export interface VmdkExtentLine {
  type: VmdkExtentType
  /** Bytes. */
  length: number
  /** '' for ZERO. */
  fileName: string
  /** Bytes from the start of the file; only of what is flat. */
  offset: number
}

export interface VmdkDescriptor {
  /** Eight hexadecimal digits, lower case: changes whenever the disk does. */
  cid: string
  parentCid: string
  parentName?: string
  extents: VmdkExtentLine[]
}

/** True for a sparse extent of either kind, or a descriptor. @param start of the file */
export function isVmdk(start: Buffer, fileBytes: number): boolean {
  const magic = start.toString('latin1', 0, 4)
  if (magic === 'KDMV' || magic === 'COWD') return true
  return fileBytes <= VMDK_DESCRIPTOR_BYTES_MAX && /^(?:#[^\n]*\n|[ \t]*\r?\n)*version[ \t]*=[ \t]*\d/i.test(start.toString('latin1'))
}

/**
 * @param bytes the descriptor; it ends with the first NUL, if there is one
 * @throws VarveError FORMAT_INVALID, FORMAT_UNSUPPORTED, LIMIT_EXCEEDED
 */
export function parseDescriptor(bytes: Buffer): VmdkDescriptor {
  const end = bytes.indexOf(0)
  const raw = end < 0 ? bytes : bytes.subarray(0, end)
  const text = decoded(raw)
  const values = new Map<string, string>()
  const extents: VmdkExtentLine[] = []
  for (const untrimmed of text.split('\n')) {
    const line = untrimmed.trim()
    const equals = line.indexOf('=')
    if (line.startsWith('#')) continue
    if (/^(RW|RDONLY|NOACCESS)\s/.test(line)) extents.push(parseExtent(line))
    else if (equals > 0) values.set(line.slice(0, equals).trimEnd().toLowerCase(), line.slice(equals + 1).trimStart().replace(/^"(.*)"$/, '$1'))
  }
  return { cid: cidOf(values, 'cid'), parentCid: values.has('parentcid') ? cidOf(values, 'parentcid') : NO_PARENT, parentName: values.get('parentfilenamehint'), extents }
}

/** Written in the encoding that it names itself. */
function decoded(bytes: Buffer): string {
  const label = /^[ \t]*encoding[ \t]*=[ \t]*"?([\w.-]{1,40})"?/im.exec(bytes.toString('latin1'))?.[1] ?? 'utf-8'
  try {
    return new TextDecoder(label).decode(bytes)
  } catch {
    return bytes.toString('utf8')
  }
}

function cidOf(values: Map<string, string>, key: string): string {
  const value = values.get(key)
  if (value === undefined || !/^[0-9a-f]{1,8}$/i.test(value)) throw invalid(`its descriptor has no ${key}`)
  return value.toLowerCase().padStart(8, '0')
}

function parseExtent(line: string): VmdkExtentLine {
  const match = /^(RW|RDONLY|NOACCESS)\s+(\d{1,16})\s+(\w+)(?:\s+"([^"]*)"(?:\s+(\d{1,16}))?.*)?$/.exec(line)
  if (match === null) throw invalid(`an extent cannot be understood: ${JSON.stringify(line.slice(0, 200))}`)
  const [, access, sectors, type, fileName = '', offset = '0'] = match
  if (!EXTENT_TYPES.includes(type) || access === 'NOACCESS') throw new VarveError('FORMAT_UNSUPPORTED', `VMDK: an extent ${access} ${type}, which is not read; convert the disk with 'qemu-img convert' or 'vmware-vdiskmanager -r'`)
  if (type !== 'ZERO' && fileName === '') throw invalid(`an extent is in no file: ${JSON.stringify(line.slice(0, 200))}`)
  return { type: type as VmdkExtentType, length: checkedBytes(Number(sectors)), fileName, offset: checkedBytes(Number(offset)) }
}

/** @throws VarveError LIMIT_EXCEEDED */
export function checkedBytes(sectors: number): number {
  const bytes = sectors * SECTOR_BYTES
  if (!Number.isSafeInteger(bytes)) throw new VarveError('LIMIT_EXCEEDED', `VMDK: ${sectors} sectors are more than ${Math.floor(Number.MAX_SAFE_INTEGER / SECTOR_BYTES)}`)
  return bytes
}

export function invalid(problem: string): VarveError {
  return new VarveError('FORMAT_INVALID', `VMDK: ${problem}`)
}
