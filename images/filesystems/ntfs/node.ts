/**
 * NtfsNode: what a record of the MFT stands for: file, directory, link or special file, with its content.
 */
import type { FileNode, Timestamp } from '../filesystem.ts'
import { Kind } from '../../tree/tree.ts'
import type { Content } from './content.ts'
import { ATTRIBUTE, ATTRIBUTE_FLAG, FILE_ATTRIBUTE, RECORD_FLAG, invalid, readReference, readTime, unsupported } from './format.ts'
import type { RecordReference } from './format.ts'
import { posixTarget } from './link-target.ts'
import type { Directories } from './link-target.ts'
import type { MftFile } from './mft.ts'
import { attributeBytes, residentValue } from './mft-record.ts'
import type { Attribute } from './mft-record.ts'
import { REPARSE_BYTES_MAX, REPARSE_TAG, linkTarget, readReparsePoint } from './reparse-point.ts'
import type { ReparsePoint } from './reparse-point.ts'
import { interixFile, linuxFile } from './special-file.ts'
import type { SpecialFile } from './special-file.ts'
import { openWofContent } from './wof-content.ts'

const STANDARD_INFORMATION_BYTES = 0x24
const SECURITY_ID_AT = 0x34
const FILE_NAME_BYTES = 0x42
const NAMESPACE_DOS = 2
/** The most that Windows allows. */
export const EXTENDED_ATTRIBUTES_BYTES_MAX = 64 << 10

const EMPTY: Content = { sizeBytes: 0, runs: 0, extents: () => [], read: async () => undefined }

export interface StandardInformation {
  modified: Timestamp
  changed: Timestamp
  accessed: Timestamp
  /** FILE_ATTRIBUTE. */
  attributes: number
  /** 0 if the descriptor is in the file itself. */
  securityId: number
}

/** $FILE_NAME: in a record, and as the key of a directory's index. */
export interface FileName {
  parent: RecordReference
  /** FILE_ATTRIBUTE, and what only stands here. */
  attributes: number
  /** In UTF-16. */
  name: string
  /** Windows made it for DOS; the same file has a longer one. */
  isShort: boolean
}

/** @throws VarveError FORMAT_INVALID */
export function readFileName(bytes: Buffer): FileName {
  const end = FILE_NAME_BYTES + 2 * (bytes[0x40] ?? 0)
  if (end > bytes.length) throw invalid('a name is cut short')
  return { parent: readReference(bytes, 0), attributes: bytes.readUInt32LE(0x38), name: bytes.toString('utf16le', FILE_NAME_BYTES, end), isShort: bytes[0x41] === NAMESPACE_DOS }
}

export class NtfsNode {
  readonly id: number
  readonly file: MftFile
  readonly standard: StandardInformation
  /** undefined for what is shown as the link or special file that it stands for. */
  readonly reparse: ReparsePoint | undefined
  readonly kind: Kind
  /** Of symlinks. */
  readonly target: Buffer | undefined
  /** Names, those made for DOS left out. */
  readonly #links: number
  readonly #special: SpecialFile | undefined
  readonly #sizeBytes: number

  private constructor(id: number, file: MftFile, facts: { standard: StandardInformation; links: number; reparse?: ReparsePoint; special?: SpecialFile; sizeBytes: number }) {
    this.id = id
    this.file = file
    this.standard = facts.standard
    this.#links = facts.links
    this.reparse = facts.special === undefined ? facts.reparse : undefined
    this.#special = facts.special
    this.kind = facts.special?.kind ?? (isDirectory(file) ? Kind.directory : Kind.file)
    this.target = this.kind === Kind.symlink ? Buffer.from(facts.special!.target!, 'latin1') : undefined
    this.#sizeBytes = this.target?.length ?? (this.kind === Kind.file ? facts.sizeBytes : 0)
  }

  /** @throws VarveError FORMAT_INVALID, LIMIT_EXCEEDED */
  static async open(directories: Directories, file: MftFile, id: number): Promise<NtfsNode> {
    const standard = readStandardInformation(await file.find(ATTRIBUTE.standardInformation), file.number)
    const names = (await file.all(ATTRIBUTE.fileName)).map((attribute) => readFileName(residentOf(attribute))).filter(({ isShort }) => !isShort)
    const data = await file.find(ATTRIBUTE.data)
    const reparseBytes = (standard.attributes & FILE_ATTRIBUTE.reparsePoint) === 0 ? undefined : await file.value(ATTRIBUTE.reparsePoint, REPARSE_BYTES_MAX)
    // The flag alone, without data, is left by a link that was removed.
    const reparse = reparseBytes === undefined || reparseBytes.length === 0 ? undefined : readReparsePoint(reparseBytes)
    const special = await specialFile({ directories, file, id, standard, reparse, data })
    return new NtfsNode(id, file, { standard, links: names.length, reparse, special, sizeBytes: data === undefined ? 0 : attributeBytes(data) })
  }

  describe(): FileNode {
    const isReadOnly = (this.standard.attributes & FILE_ATTRIBUTE.readOnly) !== 0
    const writable = this.kind === Kind.directory ? 0o755 : this.kind === Kind.symlink ? 0o777 : 0o644
    return {
      id: this.id,
      kind: this.kind,
      mode: isReadOnly && this.kind !== Kind.symlink ? writable & 0o555 : writable,
      uid: 0,
      gid: 0,
      sizeBytes: this.#sizeBytes,
      links: this.kind === Kind.directory ? 1 : Math.max(1, this.#links),
      modified: this.standard.modified,
      accessed: this.standard.accessed,
      changed: this.standard.changed,
      deviceMajor: this.#special?.deviceMajor ?? 0,
      deviceMinor: this.#special?.deviceMinor ?? 0,
    }
  }

  /** Content of a file, opened. @throws VarveError FORMAT_INVALID, LIMIT_EXCEEDED, FORMAT_UNSUPPORTED */
  async content(): Promise<Content> {
    if (this.reparse?.tag === REPARSE_TAG.dedup) throw unsupported('the file is deduplicated by Windows, which is not read')
    if (this.reparse?.tag === REPARSE_TAG.windowsOverlay) return openWofContent(this.file, this.reparse.data, this.#sizeBytes)
    return await this.file.content(ATTRIBUTE.data, '', this.file.mft.disk) ?? EMPTY
  }
}

function isDirectory(file: MftFile): boolean {
  return (file.record.flags & RECORD_FLAG.directory) !== 0
}

function residentOf(attribute: Attribute): Buffer {
  if (!attribute.isResident) throw invalid('a name is not in a record')
  return residentValue(attribute)
}

function readStandardInformation(attribute: Attribute | undefined, number: number): StandardInformation {
  const bytes = attribute === undefined ? Buffer.alloc(0) : residentOf(attribute)
  if (bytes.length < STANDARD_INFORMATION_BYTES) throw invalid(`record ${number} of the MFT has no standard information`)
  return {
    modified: readTime(bytes, 8),
    changed: readTime(bytes, 0x10),
    accessed: readTime(bytes, 0x18),
    attributes: bytes.readUInt32LE(0x20),
    // NTFS 1.2 had none.
    securityId: bytes.length >= SECURITY_ID_AT + 4 ? bytes.readUInt32LE(SECURITY_ID_AT) : 0,
  }
}

interface SpecialFacts {
  directories: Directories
  file: MftFile
  id: number
  standard: StandardInformation
  reparse: ReparsePoint | undefined
  /** First part of its content. */
  data: Attribute | undefined
}

async function specialFile({ directories, file, id, standard, reparse, data }: SpecialFacts): Promise<SpecialFile | undefined> {
  if (reparse === undefined) {
    if (isDirectory(file) || data === undefined || (standard.attributes & FILE_ATTRIBUTE.system) === 0) return undefined
    const isReadable = (data.flags & ~(ATTRIBUTE_FLAG.compressed | ATTRIBUTE_FLAG.sparse)) === 0
    return isReadable ? interixFile(standard.attributes, await file.content(ATTRIBUTE.data) ?? EMPTY) : undefined
  }
  const link = linkTarget(reparse)
  if (link !== undefined) return { kind: Kind.symlink, target: await posixTarget(directories, id, link) }
  return linuxFile(reparse.tag, await file.value(ATTRIBUTE.extendedAttributes, EXTENDED_ATTRIBUTES_BYTES_MAX))
}
