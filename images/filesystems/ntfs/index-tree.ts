/**
 * Index: a tree of sorted entries, the upper node in the record of the file ($INDEX_ROOT), the others in blocks ($INDEX_ALLOCATION).
 * Directories are indexes of names; $Secure has some of numbers.
 */
import type { Geometry } from './boot-sector.ts'
import type { Content } from './content.ts'
import { ATTRIBUTE, exceeded, invalid, readUInt64 } from './format.ts'
import type { MftFile } from './mft.ts'
import { residentValue } from './mft-record.ts'
import { restoreUpdateSequence } from './update-sequence.ts'

const ROOT_HEAD_BYTES = 0x10
const NODE_HEAD_BYTES = 0x10
const BLOCK_HEAD_BYTES = 0x18
const ENTRY_HEAD_BYTES = 0x10
const ENTRY_HAS_NODE = 1
const ENTRY_IS_LAST = 2
/** Unit in which blocks are counted where a cluster is larger than a block. */
const SMALL_UNIT_BYTES = 512
const BLOCK_BYTES_MAX = 64 << 10
/** Nodes above one another; a hundred million names are five. */
const DEPTH_MAX = 32

export interface IndexEntry {
  /** Head of the entry: a reference, or where its data is. */
  bytes: Buffer
  key: Buffer
  isLast: boolean
  /** What comes before this entry: the number of a block. */
  node: number | undefined
}

export class IndexTree {
  readonly #root: Buffer
  readonly #blocks: Content | undefined
  readonly #blockBytes: number
  readonly #unitBytes: number

  private constructor(root: Buffer, blocks: Content | undefined, geometry: Geometry) {
    this.#root = root
    this.#blocks = blocks
    this.#blockBytes = root.readUInt32LE(8)
    this.#unitBytes = geometry.clusterBytes <= this.#blockBytes ? geometry.clusterBytes : SMALL_UNIT_BYTES
    if (this.#blockBytes < SMALL_UNIT_BYTES || this.#blockBytes > BLOCK_BYTES_MAX || (this.#blockBytes & (this.#blockBytes - 1)) !== 0) throw invalid(`an index has blocks of ${this.#blockBytes} bytes`)
  }

  /** @throws VarveError FORMAT_INVALID, also if the file has no such index; LIMIT_EXCEEDED */
  static async open(file: MftFile, name: string): Promise<IndexTree> {
    const attribute = await file.find(ATTRIBUTE.indexRoot, name)
    if (attribute === undefined || !attribute.isResident) throw invalid(`record ${file.number} has no index ${name}`)
    const root = residentValue(attribute)
    if (root.length < ROOT_HEAD_BYTES + NODE_HEAD_BYTES) throw invalid(`the index ${name} of record ${file.number} is damaged`)
    return new IndexTree(root, await file.content(ATTRIBUTE.indexAllocation, name), file.mft.geometry)
  }

  /** Runs that it keeps in memory. */
  get runs(): number {
    return this.#blocks?.runs ?? 0
  }

  /** All entries, in order. @throws VarveError FORMAT_INVALID */
  async *entries(): AsyncGenerator<IndexEntry[], void> {
    yield* this.#below(this.#rootEntries(), 0, new Set())
  }

  /** Entries are given in the runs in which they stand in a node, for there are many. */
  async *#below(entries: IndexEntry[], depth: number, visited: Set<number>): AsyncGenerator<IndexEntry[], void> {
    let from = 0
    for (const [index, { node, isLast }] of entries.entries()) {
      if (node !== undefined) {
        if (index > from) yield entries.slice(from, index)
        from = index
        yield* this.#below(await this.#node(node, depth + 1, visited), depth + 1, visited)
      }
      if (isLast && index > from) yield entries.slice(from, index)
    }
  }

  /**
   * Entries for which `compare` says 0: they stand together.
   * @param compare the key that is looked for with an entry's: below 0 if it comes before
   * @throws VarveError FORMAT_INVALID
   */
  async find(compare: (key: Buffer) => number): Promise<IndexEntry[]> {
    const found: IndexEntry[] = []
    await this.#findBelow(this.#rootEntries(), 0, { compare, found, visited: new Set() })
    return found
  }

  async #findBelow(entries: IndexEntry[], depth: number, search: { compare: (key: Buffer) => number; found: IndexEntry[]; visited: Set<number> }): Promise<void> {
    for (const entry of entries) {
      const order = entry.isLast ? -1 : search.compare(entry.key)
      if (order > 0) continue
      if (entry.node !== undefined) await this.#findBelow(await this.#node(entry.node, depth + 1, search.visited), depth + 1, search)
      if (order < 0) return
      search.found.push(entry)
    }
  }

  #rootEntries(): IndexEntry[] {
    return readEntries(this.#root.subarray(ROOT_HEAD_BYTES))
  }

  async #node(node: number, depth: number, visited: Set<number>): Promise<IndexEntry[]> {
    const offset = node * this.#unitBytes
    if (this.#blocks === undefined || offset + this.#blockBytes > this.#blocks.sizeBytes) throw invalid(`an index has no block ${node}`)
    if (visited.has(node)) throw invalid(`block ${node} of an index is below itself, or below two others`)
    if (depth > DEPTH_MAX) throw exceeded(`an index of more than ${DEPTH_MAX} levels`)
    visited.add(node)
    const block = Buffer.allocUnsafe(this.#blockBytes)
    await this.#blocks.read(block, offset)
    if (block.toString('latin1', 0, 4) !== 'INDX') throw invalid(`block ${node} of an index is none`)
    restoreUpdateSequence(block, `block ${node} of an index`)
    if (readUInt64(block, 0x10) !== node) throw invalid(`block ${node} of an index says that it is another`)
    return readEntries(block.subarray(BLOCK_HEAD_BYTES))
  }
}

/** @param node from its head, from which offsets are counted, to the end of what holds it */
function readEntries(node: Buffer): IndexEntry[] {
  const first = node.readUInt32LE(0)
  const end = node.readUInt32LE(4)
  if (first < NODE_HEAD_BYTES || end > node.length) throw invalid('a node of an index is damaged')
  const entries: IndexEntry[] = []
  for (let at = first; ;) {
    if (at + ENTRY_HEAD_BYTES > end) throw invalid('the entries of an index do not end')
    const length = node.readUInt16LE(at + 8)
    const flags = node.readUInt16LE(at + 0x0c)
    const isLast = (flags & ENTRY_IS_LAST) !== 0
    const keyBytes = isLast ? 0 : node.readUInt16LE(at + 0x0a)
    const nodeBytes = (flags & ENTRY_HAS_NODE) === 0 ? 0 : 8
    if (length % 8 !== 0 || length < ENTRY_HEAD_BYTES + keyBytes + nodeBytes || at + length > end) throw invalid('an entry of an index is damaged')
    const bytes = node.subarray(at, at + length)
    entries.push({ bytes, key: bytes.subarray(ENTRY_HEAD_BYTES, ENTRY_HEAD_BYTES + keyBytes), isLast, node: nodeBytes === 0 ? undefined : readUInt64(bytes, length - 8) })
    if (isLast) return entries
    at += length
  }
}
