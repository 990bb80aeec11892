/**
 * Tree encoder: puts what a TreeBuilder has collected in the order of trees, and writes it as bytes, section by section, so that no more of it is
 * in memory than a column at a time. Bytes: docs/formats/tree.md
 *
 * What follows from the order of a tree is not written: parents follow from the number of children of each directory, inodes, chunks
 * and attribute sets are numbered by first use, so that only second uses stand in the bytes. What cannot be written need not be checked,
 * and one content has one encoding.
 */
import { VarveError } from '../errors.ts'
import { Column, ScratchColumn } from './column.ts'
import type { TypedArray } from './column.ts'
import { DIGEST_WORDS } from './content-columns.ts'
import type { ContentColumns } from './content-columns.ts'
import type { InodeColumns } from './inode-columns.ts'
import { CONTENT_BYTES_MAX, DEPTH_MAX, PATH_BYTES_MAX } from './limits.ts'
import type { NameColumn } from './name-column.ts'
import { HOLE, Kind } from './tree.ts'
import { PIECE_HOLE, PIECE_NEW, PIECE_REPEAT, SectionWriter } from './tree-sections.ts'
import type { Section } from './tree-sections.ts'
import { Workspace } from './workspace.ts'

/** In place of an entry's inode: it was removed. */
export const REMOVED = 0xffffffff

/** What a tree holds, said when it is encoded. */
export interface EncodedTree {
  entries: number
  /** Of all files, each inode once, holes included. */
  contentBytes: number
}

export interface BuilderColumns {
  /** By entry. A directory comes before what is in it. */
  parent: Column<Uint32Array>
  inode: Column<Uint32Array>
  names: NameColumn
  inodes: InodeColumns
  contents: ContentColumns
}

const TWO_32 = 2 ** 32
/** Rows of a section that are made at once. */
const ROWS_AT_ONCE = 65_536

/** Sections that are made before they are written. */
function madeSections(scratch: Workspace) {
  const u8 = () => new ScratchColumn(scratch, new Uint8Array())
  const u16 = () => new ScratchColumn(scratch, new Uint16Array())
  const u32 = () => new ScratchColumn(scratch, new Uint32Array())
  return {
    repeatGaps: u32(),
    inodesBack: u32(),
    xattrSets: u32(),
    childCounts: u32(),
    targetLengths: u16(),
    targets: u8(),
    deviceMajors: u32(),
    deviceMinors: u32(),
    pieceCounts: u32(),
    pieceTypes: u8(),
    chunksBack: u32(),
    holesLow: u32(),
    holesHigh: u32(),
    xattrCounts: u32(),
    xattrNameLengths: u8(),
    xattrValueLengths: u32(),
    xattrNames: u8(),
    xattrValues: u8(),
  }
}

type MadeSection = keyof ReturnType<typeof madeSections>

export class TreeEncoder {
  readonly #from: BuilderColumns
  /** For what is at hand while the order is found, in the place of what was needed to find names and chunks. */
  readonly #space = new Workspace()
  /** By entry of the tree: the builder's. */
  readonly #order: Column<Uint32Array>
  /** By inode of the tree: the builder's. */
  readonly #inodes: Column<Uint32Array>
  /** By chunk of the tree: the builder's. */
  readonly #chunks: ScratchColumn<Uint32Array>
  #nameBytes = 0
  #contentBytes = 0
  readonly #sections: ReturnType<typeof madeSections>

  constructor(from: BuilderColumns, scratch: Workspace) {
    this.#from = from
    this.#order = new Column(this.#space, new Uint32Array())
    this.#inodes = new Column(this.#space, new Uint32Array())
    this.#chunks = new ScratchColumn(scratch, new Uint32Array())
    this.#sections = madeSections(scratch)
  }

  /** @throws VarveError SOURCE_INVALID, LIMIT_EXCEEDED */
  encode(sink: (bytes: Uint8Array) => void): EncodedTree {
    const { parent, inode, names, inodes, contents } = this.#from
    inodes.close()
    contents.close()
    this.#removeBelow()
    this.#orderEntries()
    parent.clear()
    this.#numberInodes()
    this.#readTargetsAndDevices()
    this.#readContents()
    this.#readXattrs()
    const entries = this.#order.length
    const writer = new SectionWriter(this.#lengths(), sink)
    this.#writeNames(writer)
    names.clear()
    inode.clear()
    this.#order.clear()
    this.#writeInodes(writer)
    this.#writeContents(writer)
    writer.end()
    for (const column of [this.#inodes, this.#chunks, ...Object.values(this.#sections)]) column.clear()
    inodes.clear()
    contents.clear()
    return { entries, contentBytes: this.#contentBytes }
  }

  /** What is in a removed directory is removed. */
  #removeBelow(): void {
    const { parent, inode } = this.#from
    for (let entry = 1; entry < parent.length; entry++) if (inode.values[parent.values[entry]] === REMOVED) inode.values[entry] = REMOVED
  }

  /** Entries by parent and name: children are counted, dealt out to their directories, and sorted there unless they came sorted. */
  #orderEntries(): void {
    const { inode, names, inodes } = this.#from
    const { childrenAt, children } = this.#childrenByParent()
    const depth = new Column(this.#space, new Uint16Array())
    const pathBytes = new Column(this.#space, new Uint32Array())
    depth.push(0)
    pathBytes.push(0)
    this.#order.push(0)
    for (let index = 0, directory = 0; index < this.#order.length; index++) {
      const entry = this.#order.values[index]
      const first = childrenAt.values[entry]
      const end = childrenAt.values[entry + 1]
      if (inodes.kindOf(inode.values[entry]) !== Kind.directory) {
        if (end > first) throw new VarveError('SOURCE_INVALID', `${JSON.stringify(names.get(entry))} has entries but is not a directory`)
        continue
      }
      const list = children.values.subarray(first, end)
      this.#sort(list)
      this.#sections.childCounts.push(list.length)
      const before = pathBytes.values[directory] + (index === 0 ? 0 : 1)
      const below = depth.values[directory++] + 1
      for (const child of list) {
        const length = names.length(child)
        this.#nameBytes += length
        if (below > DEPTH_MAX || before + length > PATH_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `a path is longer than ${DEPTH_MAX} names or ${PATH_BYTES_MAX} bytes`)
        if (inodes.kindOf(inode.values[child]) !== Kind.directory) continue
        depth.push(below)
        pathBytes.push(before + length)
      }
      this.#order.append(list)
    }
    for (const spent of [childrenAt, children, depth, pathBytes]) spent.clear()
  }

  /** Children of entry `e`: `children[childrenAt[e] .. childrenAt[e + 1]]`, in the order in which they were added. */
  #childrenByParent(): { childrenAt: Column<Uint32Array>; children: Column<Uint32Array> } {
    const parents = this.#from.parent.values
    const isRemoved = (entry: number) => this.#from.inode.values[entry] === REMOVED
    const total = this.#from.parent.length
    const childrenAt = new Column(this.#space, new Uint32Array())
    childrenAt.extend(total + 1)
    const ends = childrenAt.values
    let count = 0
    for (let entry = 1; entry < total; entry++) {
      if (isRemoved(entry)) continue
      ends[parents[entry]]++
      count++
    }
    for (let entry = 1; entry <= total; entry++) ends[entry] += ends[entry - 1]
    const children = new Column(this.#space, new Uint32Array())
    children.extend(count)
    for (let entry = total - 1; entry > 0; entry--) if (!isRemoved(entry)) children.values[--ends[parents[entry]]] = entry
    return { childrenAt, children }
  }

  #sort(list: Uint32Array): void {
    const { names } = this.#from
    let ascends = true
    for (let at = 1; at < list.length && ascends; at++) ascends = names.compare(list[at - 1], list[at]) < 0
    if (ascends) return
    list.sort((one, other) => names.compare(one, other))
    for (let at = 1; at < list.length; at++) {
      if (names.compare(list[at - 1], list[at]) === 0) throw new VarveError('SOURCE_INVALID', `the name ${JSON.stringify(names.get(list[at]))} stands twice in one directory`)
    }
  }

  #numberInodes(): void {
    const { inode, names, inodes } = this.#from
    const { repeatGaps, inodesBack } = this.#sections
    const order = this.#order.values
    /** By inode of the builder: that of the tree, plus 1. */
    const numbers = new Column(this.#space, new Uint32Array())
    numbers.extend(inodes.count)
    let repeatBefore = 0
    for (let index = 0; index < this.#order.length; index++) {
      const old = inode.values[order[index]]
      const known = numbers.values[old]
      if (known === 0) {
        numbers.values[old] = this.#inodes.push(old) + 1
        continue
      }
      if (inodes.kindOf(old) === Kind.directory) throw new VarveError('SOURCE_INVALID', `${JSON.stringify(names.get(order[index]))} is a second name of a directory`)
      repeatGaps.push(index - repeatBefore)
      inodesBack.push(this.#inodes.length + 1 - known)
      repeatBefore = index
    }
    numbers.clear()
  }

  #readTargetsAndDevices(): void {
    const { inodes } = this.#from
    const { targetLengths, targets, deviceMajors, deviceMinors } = this.#sections
    for (const old of this.#oldInodes()) {
      const kind = inodes.kindOf(old)
      if (kind === Kind.symlink || kind === Kind.link) {
        const target = inodes.target(old)
        targetLengths.push(target.length)
        targets.append(target)
      } else if (kind === Kind.character || kind === Kind.block) {
        deviceMajors.push(inodes.deviceMajor.get(old))
        deviceMinors.push(inodes.deviceMinor.get(old))
      }
    }
  }

  #readContents(): void {
    const { inodes, contents } = this.#from
    const { pieceCounts, pieceTypes, chunksBack, holesLow, holesHigh } = this.#sections
    /** By chunk of the builder: that of the tree, plus 1. */
    const numbers = new Column(this.#space, new Uint32Array())
    numbers.extend(contents.chunkCount)
    let pieces = 0
    const addPiece = (chunk: number, holeBytes: number): void => {
      pieces++
      if (chunk === HOLE) {
        pieceTypes.push(PIECE_HOLE)
        holesLow.push(holeBytes % TWO_32)
        holesHigh.push(Math.floor(holeBytes / TWO_32))
        this.#contentBytes += holeBytes
      } else if (numbers.values[chunk] === 0) {
        pieceTypes.push(PIECE_NEW)
        numbers.values[chunk] = this.#chunks.push(chunk) + 1
      } else {
        pieceTypes.push(PIECE_REPEAT)
        chunksBack.push(this.#chunks.length + 1 - numbers.values[chunk])
        this.#contentBytes += contents.bytesOf(chunk)
      }
    }
    for (const old of this.#oldInodes()) {
      if (inodes.kindOf(old) !== Kind.file) continue
      pieces = 0
      contents.forEachPiece(inodes.content.values[old], addPiece)
      pieceCounts.push(pieces)
    }
    numbers.clear()
    for (const lengths of contents.chunkBytes.gathered(this.#chunks.pieces())) for (const bytes of lengths) this.#contentBytes += bytes
    if (!(this.#contentBytes <= CONTENT_BYTES_MAX)) throw new VarveError('LIMIT_EXCEEDED', `the files are together larger than ${CONTENT_BYTES_MAX} bytes`)
  }

  #readXattrs(): void {
    const { inodes } = this.#from
    const { xattrSets, xattrCounts, xattrNameLengths, xattrValueLengths, xattrNames, xattrValues } = this.#sections
    /** By set of the builder: that of the tree. */
    const numbers = new Column(this.#space, new Uint32Array())
    numbers.extend(inodes.setCount)
    for (const sets of inodes.xattrSet.gathered([this.#oldInodes()])) {
      for (const old of sets) {
        if (old !== 0 && numbers.values[old] === 0) {
          const xattrs = inodes.xattrs(old)
          numbers.values[old] = xattrCounts.push(xattrs.length) + 1
          for (const { name, value } of xattrs) {
            xattrNameLengths.push(name.length)
            xattrValueLengths.push(value.length)
            xattrNames.append(Buffer.from(name, 'latin1'))
            xattrValues.append(value)
          }
        }
        xattrSets.push(numbers.values[old])
      }
    }
    numbers.clear()
  }

  /** Bytes of each section. */
  #lengths(): Record<Section, number> {
    const made = Object.fromEntries(Object.entries(this.#sections).map(([name, { bytes }]) => [name, bytes])) as Record<MadeSection, number>
    const inodes = this.#inodes.length
    const chunks = this.#chunks.length
    const words = { uids: inodes * 4, gids: inodes * 4, secondsLow: inodes * 4, secondsHigh: inodes * 4, nanoseconds: inodes * 4 }
    return { ...made, ...words, nameLengths: this.#order.length - 1, names: this.#nameBytes, kinds: inodes, modes: inodes * 2, chunkBytes: chunks * 4, chunkDigests: chunks * DIGEST_WORDS * 4 }
  }

  #writeNames(writer: SectionWriter): void {
    const { names } = this.#from
    const order = this.#order.values.subarray(1, this.#order.length)
    writer.begin('nameLengths')
    const block = new Uint8Array(ROWS_AT_ONCE)
    writeRows(writer, block, order, (entry) => names.length(entry))
    writer.begin('names')
    let at = 0
    for (const entry of order) {
      if (at + names.length(entry) > block.length) {
        writer.write(block.subarray(0, at))
        at = 0
      }
      at = names.copy(entry, block, at)
    }
    writer.write(block.subarray(0, at))
  }

  #writeInodes(writer: SectionWriter): void {
    const { kind, mode, uid, gid, mtimeSeconds, mtimeNanoseconds } = this.#from.inodes
    const order = this.#oldInodes()
    this.#writeMade(writer, 'repeatGaps', 'inodesBack')
    writer.begin('kinds')
    writeRows(writer, new Uint8Array(ROWS_AT_ONCE), order, (old) => kind.values[old])
    writer.all('modes', mode.gathered([order]))
    writer.all('uids', uid.gathered([order]))
    writer.all('gids', gid.gathered([order]))
    writer.begin('secondsLow')
    const words = new Int32Array(ROWS_AT_ONCE)
    for (const seconds of mtimeSeconds.gathered([order])) writeRows(writer, words, seconds, (value) => value % TWO_32)
    writer.begin('secondsHigh')
    for (const seconds of mtimeSeconds.gathered([order])) writeRows(writer, words, seconds, (value) => Math.floor(value / TWO_32))
    writer.all('nanoseconds', mtimeNanoseconds.gathered([order]))
    this.#writeMade(writer, 'xattrSets', 'childCounts', 'targetLengths', 'targets', 'deviceMajors', 'deviceMinors')
  }

  #writeContents(writer: SectionWriter): void {
    const { chunkBytes, chunkDigests } = this.#from.contents
    this.#writeMade(writer, 'pieceCounts', 'pieceTypes', 'chunksBack', 'holesLow', 'holesHigh')
    writer.all('chunkBytes', chunkBytes.gathered(this.#chunks.pieces()))
    writer.all('chunkDigests', chunkDigests.gathered(this.#chunks.pieces(), DIGEST_WORDS))
    this.#writeMade(writer, 'xattrCounts', 'xattrNameLengths', 'xattrValueLengths', 'xattrNames', 'xattrValues')
  }

  #writeMade(writer: SectionWriter, ...names: MadeSection[]): void {
    for (const name of names) writer.all(name, this.#sections[name].pieces() as Iterable<TypedArray>)
  }

  #oldInodes(): Uint32Array {
    return this.#inodes.values.subarray(0, this.#inodes.length)
  }
}

/** Writes what each of some rows becomes. @param block memory for them */
function writeRows(writer: SectionWriter, block: Uint8Array | Int32Array, rows: ArrayLike<number>, made: (row: number) => number): void {
  let at = 0
  for (let row = 0; row < rows.length; row++) {
    block[at++] = made(rows[row])
    if (at < block.length) continue
    writer.write(block)
    at = 0
  }
  writer.write(block.subarray(0, at))
}
