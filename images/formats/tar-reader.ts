/**
 * Tar reader: the members of a tar archive one after the other, as they stand in it. What they make together is the importer's matter.
 * v7, ustar, PAX, GNU long names, sparse files of all kinds. POSIX.1-2017, pax; GNU tar manual, "Tar Internals"; libarchive tar(5).
 */
import { VarveError } from '../errors.ts'
import { PATH_BYTES_MAX } from '../tree/limits.ts'
import type { Xattr } from '../tree/tree.ts'
import type { ByteStream } from './byte-stream.ts'
import { PaxRecords, paxNumber, paxTime, paxXattrs, readPaxRecords } from './pax.ts'
import { TAR_BLOCK_BYTES, isZeroBlock, readTarHeader } from './tar-header.ts'
import type { TarHeader } from './tar-header.ts'
import { SparseParts, readDataMap, readOldGnuMap, readPaxMap } from './tar-sparse.ts'
import type { SparseMap } from './tar-sparse.ts'

/** Largest extended header, bytes: room for the attributes of one inode, or the map of a file in some 100,000 parts. */
export const EXTENDED_BYTES_MAX = 4 << 20

export type TarType = 'file' | 'directory' | 'symlink' | 'link' | 'character' | 'block' | 'fifo'

export interface TarMember {
  type: TarType
  /** As it stands in the archive, bytes in latin1. */
  path: string
  mode: number
  uid: number
  gid: number
  mtimeSeconds: number
  mtimeNanoseconds: number
  /** Target of a symlink, or path of the member that a link is another name of; bytes in latin1. */
  target: string
  deviceMajor: number
  deviceMinor: number
  xattrs: Xattr[]
  /** ACLs as text, in latin1. */
  accessAcl?: string
  defaultAcl?: string
  /** Of a file, holes included. */
  sizeBytes: number
  /** Of a file: parts that hold data, ascending; `readData` gives them one after the other. */
  parts: SparseParts
}

const NO_PARTS = new SparseParts(new Float64Array())

const TYPES: Record<string, TarType> = { '0': 'file', '7': 'file', S: 'file', '1': 'link', '2': 'symlink', '3': 'character', '4': 'block', '5': 'directory', '6': 'fifo', D: 'directory' }

export interface TarReaderOptions {
  /** An archive that ends without its mark of the end is refused: it may have been cut short. */
  endRequired: boolean
}

export class TarReader {
  readonly #stream: ByteStream
  readonly #options: TarReaderOptions
  #global = new PaxRecords()
  /** Of the member at hand: data not read yet, and what fills its last block. */
  #dataBytes = 0
  #paddingBytes = 0

  constructor(stream: ByteStream, options: TarReaderOptions) {
    this.#stream = stream
    this.#options = options
  }

  /**
   * The next member; undefined after the last. Data of the one before that was not read is skipped.
   * @throws VarveError FORMAT_INVALID, FORMAT_UNSUPPORTED, LIMIT_EXCEEDED
   */
  async next(): Promise<TarMember | undefined> {
    await this.#skipRest()
    let records: PaxRecords | undefined
    let longName: string | undefined
    let longLink: string | undefined
    for (;;) {
      const offset = this.#stream.position
      const block = this.#stream.take(TAR_BLOCK_BYTES) ?? (await this.#stream.read(TAR_BLOCK_BYTES))
      if (await this.#isEnd(block)) {
        if (records !== undefined || longName !== undefined || longLink !== undefined) throw new VarveError('FORMAT_INVALID', 'the tar archive ends after the extended header of a member')
        return undefined
      }
      const header = readTarHeader(block, offset)
      if (header.sizeBytes < 0) throw new VarveError('FORMAT_INVALID', `the tar header at byte ${offset} has a negative size`)
      switch (header.type) {
        case 'x':
        case 'X':
          records = readPaxRecords(await this.#extended(header.sizeBytes))
          continue
        case 'g':
          this.#global = readPaxRecords(await this.#extended(header.sizeBytes)).over(this.#global)
          continue
        case 'L':
          longName = await this.#longText(header.sizeBytes)
          continue
        case 'K':
          longLink = await this.#longText(header.sizeBytes)
          continue
        // Volume label; Solaris ACLs of the next member.
        case 'V':
        case 'A':
          this.#setData(header.sizeBytes)
          await this.#skipRest()
          continue
      }
      if (longName !== undefined) header.name = longName
      if (longLink !== undefined) header.linkName = longLink
      // What follows is read over the block: only the map of a sparse file is still to be read from it.
      return this.#member(header, header.type === 'S' ? Buffer.from(block) : block, offset, records === undefined ? this.#global : records.over(this.#global))
    }
  }

  /** Bytes of the member's data that have not been read. */
  get dataBytes(): number {
    return this.#dataBytes
  }

  /**
   * Fills `target` with the next bytes of the member's data.
   * @throws VarveError FORMAT_INVALID if the archive ends before; RangeError if the member has fewer
   */
  async readData(target: Uint8Array): Promise<void> {
    if (target.length > this.#dataBytes) throw new RangeError('a member has no more data')
    const bytes = await this.#stream.readInto(target)
    this.#dataBytes -= bytes
    if (bytes < target.length) throw cutShort()
  }

  /** The next bytes of the data, which stay to be read: `length` of them, fewer only where it ends. */
  async peekData(length: number): Promise<Uint8Array> {
    return this.#stream.peek(Math.min(length, this.#dataBytes))
  }

  async #skipRest(): Promise<void> {
    const rest = this.#dataBytes + this.#paddingBytes
    if (rest > 0 && this.#stream.take(rest) === undefined) {
      const skipped = await this.#stream.skip(rest)
      if (skipped < this.#dataBytes || (skipped < rest && this.#options.endRequired)) throw cutShort()
    }
    this.#dataBytes = 0
    this.#paddingBytes = 0
  }

  #setData(bytes: number): void {
    this.#dataBytes = bytes
    this.#paddingBytes = (TAR_BLOCK_BYTES - (bytes % TAR_BLOCK_BYTES)) % TAR_BLOCK_BYTES
  }

  async #isEnd(block: Uint8Array): Promise<boolean> {
    if (block.length === 0) {
      if (this.#options.endRequired) throw new VarveError('FORMAT_INVALID', 'the tar archive ends without its mark of the end: it may have been cut short')
      return true
    }
    if (block.length < TAR_BLOCK_BYTES) throw cutShort()
    return isZeroBlock(block)
  }

  async #extended(bytes: number): Promise<Uint8Array> {
    if (bytes > EXTENDED_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `an extended header of ${bytes} bytes in the tar archive; at most ${EXTENDED_BYTES_MAX} are accepted`)
    this.#setData(bytes)
    const content = Buffer.alloc(bytes)
    await this.readData(content)
    await this.#skipRest()
    return content
  }

  async #longText(bytes: number): Promise<string> {
    if (bytes > PATH_BYTES_MAX + TAR_BLOCK_BYTES) throw new VarveError('LIMIT_EXCEEDED', `a name of ${bytes} bytes in the tar archive; at most ${PATH_BYTES_MAX} are accepted`)
    const text = Buffer.from(await this.#extended(bytes)).toString('latin1')
    const end = text.indexOf('\0')
    return end < 0 ? text : text.slice(0, end)
  }

  async #member(header: TarHeader, block: Uint8Array, offset: number, records: PaxRecords): Promise<TarMember> {
    const { values } = records
    let type = TYPES[header.type] as TarType | undefined
    if (type === undefined) {
      const what = header.type === 'M' ? 'is continued from another volume' : `has the type ${JSON.stringify(header.type)}`
      throw new VarveError('FORMAT_UNSUPPORTED', `${JSON.stringify(header.name)} in the tar archive ${what}, which is not read; write the archive again with GNU tar's --format=posix`)
    }
    const path = values.get('GNU.sparse.name') ?? values.get('path') ?? header.name
    // A way of v7 to write directories.
    if (type === 'file' && header.type !== 'S' && path.endsWith('/')) type = 'directory'
    const number = (key: string, fallback: number) => {
      const value = values.get(key)
      return value === undefined ? fallback : paxNumber(value, key)
    }
    const time = values.get('mtime')
    const { seconds, nanoseconds } = time === undefined ? { seconds: header.mtimeSeconds, nanoseconds: 0 } : paxTime(time, 'mtime')
    const member: TarMember = {
      type,
      path,
      mode: header.mode,
      uid: number('uid', header.uid),
      gid: number('gid', header.gid),
      mtimeSeconds: seconds,
      mtimeNanoseconds: nanoseconds,
      target: type === 'symlink' || type === 'link' ? (values.get('linkpath') ?? header.linkName) : '',
      deviceMajor: number('SCHILY.devmajor', header.deviceMajor),
      deviceMinor: number('SCHILY.devminor', header.deviceMinor),
      xattrs: paxXattrs(records),
      accessAcl: values.get('SCHILY.acl.access'),
      defaultAcl: values.get('SCHILY.acl.default'),
      sizeBytes: 0,
      parts: NO_PARTS,
    }
    checkNumbers(member, offset)
    await this.#locateData(member, header, block, records)
    return member
  }

  /** Where the member's data is, and what parts of the file it holds. */
  async #locateData(member: TarMember, header: TarHeader, block: Uint8Array, records: PaxRecords): Promise<void> {
    const { values } = records
    const size = values.get('size')
    const storedBytes = size === undefined ? header.sizeBytes : paxNumber(size, 'size')
    if (member.type !== 'file') {
      // Only these types may have data, which says nothing: the list of names in GNU's incremental archives, a link's content again.
      const hasData = header.type === 'D' || (member.type === 'directory' && header.type !== '5') || (member.type === 'link' && size !== undefined)
      this.#setData(hasData ? storedBytes : 0)
      return
    }
    this.#setData(storedBytes)
    const map = await this.#sparseMap(header, block, records, storedBytes)
    member.sizeBytes = map?.sizeBytes ?? storedBytes
    member.parts = map?.parts ?? (storedBytes > 0 ? new SparseParts(Float64Array.of(0, storedBytes)) : NO_PARTS)
  }

  async #sparseMap(header: TarHeader, block: Uint8Array, records: PaxRecords, storedBytes: number): Promise<SparseMap | undefined> {
    const { values } = records
    if (header.type === 'S') return readOldGnuMap(block, this.#stream, storedBytes)
    const major = values.get('GNU.sparse.major')
    if (major !== undefined && major !== '0') {
      if (major !== '1' || (values.get('GNU.sparse.minor') ?? '0') !== '0') throw new VarveError('FORMAT_UNSUPPORTED', `${JSON.stringify(header.name)} in the tar archive is sparse in GNU format ${major}.${values.get('GNU.sparse.minor')}, which is not read`)
      const { map, mapBytes } = await readDataMap(records, this.#stream, storedBytes)
      this.#dataBytes -= mapBytes
      return map
    }
    return values.has('GNU.sparse.map') || values.has('GNU.sparse.size') ? readPaxMap(records, storedBytes) : undefined
  }
}

function checkNumbers(member: TarMember, offset: number): void {
  for (const field of ['uid', 'gid', 'deviceMajor', 'deviceMinor'] as const) {
    if (member[field] >>> 0 !== member[field]) throw new VarveError('FORMAT_INVALID', `the tar header at byte ${offset} has ${field} ${member[field]}, which is not of 32 bits`)
  }
  for (const field of ['path', 'target'] as const) {
    if (member[field].length > PATH_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `a ${field} of ${member[field].length} bytes in the tar archive; at most ${PATH_BYTES_MAX} are accepted`)
    if (member[field].includes('\0')) throw new VarveError('FORMAT_INVALID', `the tar header at byte ${offset} has a ${field} with a NUL`)
  }
}

function cutShort(): VarveError {
  return new VarveError('FORMAT_INVALID', 'the tar archive is cut short')
}
