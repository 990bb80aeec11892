/**
 * Master file table: the records of all files, itself a file.
 */
import type { ReadableDisk } from '../../device/block-device.ts'
import { RecentlyUsed } from '../recently-used.ts'
import { CachedDisk } from '../cached-disk.ts'
import type { Geometry } from './boot-sector.ts'
import { openContent } from './content.ts'
import type { Content } from './content.ts'
import { ANY_SEQUENCE, ATTRIBUTE, RECORD, invalid, exceeded, readReference, readUInt64 } from './format.ts'
import type { RecordReference } from './format.ts'
import { attributeBytes, mappingPairs, readRecord } from './mft-record.ts'
import type { Attribute, MftRecord } from './mft-record.ts'
import { RunList, readRuns } from './run-list.ts'

/** The most that Windows makes. */
const ATTRIBUTE_LIST_BYTES_MAX = 256 << 10
const LIST_ENTRY_BYTES = 0x1a
/** Records that are kept, read. */
const RECORDS_KEPT_MAX = 2048

/** Entry of an attribute list: where a part of an attribute stands. */
interface ListEntry {
  type: number
  name: string
  firstCluster: number
  record: RecordReference
  id: number
}

export class Mft {
  readonly geometry: Geometry
  /** For content, and for metadata. */
  readonly disk: ReadableDisk
  readonly cached: CachedDisk
  readonly #runs = new RunList()
  readonly #kept = new RecentlyUsed<MftRecord>(RECORDS_KEPT_MAX)
  #records = 0

  private constructor(disk: ReadableDisk, geometry: Geometry) {
    this.disk = disk
    this.cached = new CachedDisk(disk)
    this.geometry = geometry
  }

  /** @throws VarveError FORMAT_INVALID, LIMIT_EXCEEDED */
  static async open(disk: ReadableDisk, geometry: Geometry): Promise<Mft> {
    const mft = new Mft(disk, geometry)
    const start = Buffer.alloc(geometry.recordBytes)
    if ((geometry.mftCluster * geometry.clusterBytes) + start.length > disk.sizeBytes) throw invalid('the volume ends before its MFT')
    await disk.read(start, geometry.mftCluster * geometry.clusterBytes)
    const file = new MftFile(mft, readRecord(start, RECORD.mft), RECORD.mft)
    const data = file.record.attributes.find(({ type, name, firstCluster }) => type === ATTRIBUTE.data && name === '' && firstCluster === 0)
    if (data === undefined || data.isResident) throw invalid('the MFT has no content')
    // Each part of its runs stands in a record that the parts before it have given a place.
    mft.#append(data)
    for await (const part of file.parts(ATTRIBUTE.data, '')) if (part.firstCluster > 0) mft.#append(part)
    mft.#records = Math.min(mft.#records, Math.floor(attributeBytes(data) / geometry.recordBytes))
    return mft
  }

  /** Numbers of records are below it. */
  get records(): number {
    return this.#records
  }

  #append(part: Attribute): void {
    if (part.isResident || part.firstCluster !== this.#runs.clusters) throw invalid('parts of the MFT are missing')
    this.#runs.append(mappingPairs(part), this.geometry.clusters)
    this.#records = Math.floor((this.#runs.clusters * this.geometry.clusterBytes) / this.geometry.recordBytes)
  }

  /** @throws VarveError FORMAT_INVALID, also if the record is of another generation than is meant */
  async record({ number, sequence }: RecordReference): Promise<MftRecord> {
    const record = this.#kept.get(number) ?? await this.#read(number)
    if (sequence !== ANY_SEQUENCE && record.sequence !== sequence) throw invalid(`record ${number} of the MFT is of generation ${record.sequence}, and ${sequence} is referred to`)
    return record
  }

  async #read(number: number): Promise<MftRecord> {
    if (number >= this.#records) throw invalid(`the MFT has no record ${number}`)
    const bytes = Buffer.allocUnsafe(this.geometry.recordBytes)
    await readRuns(this.cached, this.#runs, this.geometry.clusterBytes, bytes, number * bytes.length)
    const record = readRecord(bytes, number)
    this.#kept.set(number, record)
    return record
  }

  /** @throws VarveError FORMAT_INVALID, also for a record that continues another */
  async file(reference: RecordReference): Promise<MftFile> {
    const record = await this.record(reference)
    if (record.base.number !== 0 || record.base.sequence !== 0) throw invalid(`record ${reference.number} of the MFT continues another`)
    return new MftFile(this, record, reference.number)
  }

  /** @param number RECORD */
  systemFile(number: number): Promise<MftFile> {
    return this.file({ number, sequence: ANY_SEQUENCE })
  }
}

/** A file: its base record, and those that continue it. */
export class MftFile {
  readonly number: number
  readonly record: MftRecord
  readonly #mft: Mft
  #list: Promise<ListEntry[] | undefined> | undefined

  constructor(mft: Mft, record: MftRecord, number: number) {
    this.#mft = mft
    this.record = record
    this.number = number
  }

  get mft(): Mft {
    return this.#mft
  }

  /** First part of an attribute. @throws VarveError FORMAT_INVALID, LIMIT_EXCEEDED */
  async find(type: number, name = ''): Promise<Attribute | undefined> {
    if (await this.#entries() === undefined) return this.record.attributes.find((attribute) => attribute.type === type && attribute.name === name)
    for await (const attribute of this.parts(type, name)) {
      if (attribute.firstCluster === 0) return attribute
    }
    return undefined
  }

  /** First parts of all attributes of a type, whatever their names. @throws as `find` */
  async all(type: number): Promise<Attribute[]> {
    const list = await this.#entries()
    if (list === undefined) return this.record.attributes.filter((attribute) => attribute.type === type && attribute.firstCluster === 0)
    const found: Attribute[] = []
    for (const entry of list) if (entry.type === type && entry.firstCluster === 0) found.push(await this.#attribute(entry))
    return found
  }

  /** Content of an attribute, or undefined; of metadata, which is kept. @throws as `find`, and FORMAT_UNSUPPORTED */
  async content(type: number, name = '', disk: ReadableDisk = this.#mft.cached): Promise<Content | undefined> {
    const parts: Attribute[] = []
    for await (const part of this.parts(type, name)) parts.push(part)
    return parts.length === 0 ? undefined : openContent({ disk, geometry: this.#mft.geometry }, parts)
  }

  /** Content of an attribute, whole; empty if there is none. @throws as `content`, LIMIT_EXCEEDED above `bytesMax` */
  async value(type: number, bytesMax: number): Promise<Buffer> {
    const content = await this.content(type)
    if (content === undefined) return Buffer.alloc(0)
    if (content.sizeBytes > bytesMax) throw exceeded(`an attribute of type 0x${type.toString(16)} of ${content.sizeBytes} bytes; at most ${bytesMax} are read`)
    const bytes = Buffer.alloc(content.sizeBytes)
    await content.read(bytes, 0)
    return bytes
  }

  /** Parts of an attribute in the order of its clusters. @throws as `find` */
  async *parts(type: number, name: string): AsyncGenerator<Attribute, void> {
    const list = await this.#entries()
    if (list === undefined) {
      yield* this.record.attributes.filter((attribute) => attribute.type === type && attribute.name === name)
      return
    }
    for (const entry of list) if (entry.type === type && entry.name === name) yield await this.#attribute(entry)
  }

  async #attribute({ type, name, firstCluster, record, id }: ListEntry): Promise<Attribute> {
    const holder = record.number === this.number ? this.record : await this.#mft.record(record)
    if (holder !== this.record && (holder.base.number !== this.number || holder.base.sequence !== this.record.sequence)) throw invalid(`record ${record.number} of the MFT does not continue record ${this.number}`)
    const attribute = holder.attributes.find((found) => found.id === id && found.type === type && found.name === name && found.firstCluster === firstCluster)
    if (attribute === undefined) throw invalid(`record ${record.number} of the MFT lacks an attribute that record ${this.number} lists`)
    return attribute
  }

  /** Entries of the attribute list, in its order: by type, name and cluster; undefined for a file without one. */
  #entries(): Promise<ListEntry[] | undefined> {
    return this.#list ??= this.#readList()
  }

  async #readList(): Promise<ListEntry[] | undefined> {
    // It stands in the base record itself.
    const attribute = this.record.attributes.find(({ type }) => type === ATTRIBUTE.attributeList)
    if (attribute === undefined) return undefined
    const sizeBytes = attributeBytes(attribute)
    if (sizeBytes > ATTRIBUTE_LIST_BYTES_MAX) throw exceeded(`an attribute list of ${sizeBytes} bytes; at most ${ATTRIBUTE_LIST_BYTES_MAX} are read`)
    const bytes = Buffer.allocUnsafe(sizeBytes)
    await openContent({ disk: this.#mft.cached, geometry: this.#mft.geometry }, [attribute]).read(bytes, 0)
    const entries: ListEntry[] = []
    for (let at = 0; at < bytes.length;) {
      const length = at + LIST_ENTRY_BYTES <= bytes.length ? bytes.readUInt16LE(at + 4) : 0
      const nameEnd = at + (bytes[at + 7] ?? 0) + 2 * (bytes[at + 6] ?? 0)
      if (length < LIST_ENTRY_BYTES || at + length > bytes.length || nameEnd > at + length) throw invalid(`the attribute list of record ${this.number} is damaged`)
      entries.push({
        type: bytes.readUInt32LE(at),
        name: bytes[at + 6] === 0 ? '' : bytes.toString('utf16le', at + bytes[at + 7], nameEnd),
        firstCluster: readUInt64(bytes, at + 8),
        record: readReference(bytes, at + 0x10),
        id: bytes.readUInt16LE(at + 0x18),
      })
      at += length
    }
    return entries
  }
}
