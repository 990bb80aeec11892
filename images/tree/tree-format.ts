/**
 * Reads a Tree from bytes: columns, one section each, little-endian. tree-encoder.ts writes them. Bytes: docs/formats/tree.md
 */
import { digestWords, repeatedDigest } from '../chunk/chunk-table.ts'
import { CHUNK_BYTES_MAX } from '../chunk/limits.ts'
import { VarveError } from '../errors.ts'
import {
  CONTENT_BYTES_MAX,
  TARGET_BYTES_MAX,
  XATTR_LIST_BYTES_MAX,
  XATTR_VALUE_BYTES_MAX,
} from './limits.ts'
import { HOLE, Kind, Tree } from './tree.ts'
import type { Xattr } from './tree.ts'
import { checkDepth, isTreePath } from './tree-path.ts'
import { invalid, OPAQUE_BIT, PIECE_HOLE, PIECE_NEW, PIECE_REPEAT, Sections } from './tree-sections.ts'
import { xattrSetKey } from './xattr-set.ts'

export { TREE_VERSION } from './tree-sections.ts'

const TWO_32 = 2 ** 32
/** Names are turned into strings this many at a time, so that no string gets longer than an engine allows. */
const NAMES_AT_ONCE = 65_536

/**
 * Reads a tree and checks all of it; what is returned keeps every promise of Tree.
 * The tree keeps `bytes` and may share memory with them: they must not change afterwards.
 * @throws VarveError FORMAT_INVALID, FORMAT_UNSUPPORTED (a newer version), LIMIT_EXCEEDED
 */
export function decodeTree(bytes: Uint8Array): Tree {
  const sections = new Sections(bytes)
  const inodes = readInodes(sections)
  const content = readContent(sections, inodes.kind)
  const entries = readEntries(sections, inodes.kind)
  const xattrSets = readXattrSets(sections, inodes.xattrSet)
  return new Tree({ ...entries, ...inodes, ...content, xattrSets })
}

function readEntries(sections: Sections, kind: Uint8Array) {
  const names = readNames(sections)
  const count = names.length
  const repeats = sections.count('repeatGaps')
  if (kind.length !== count - repeats) throw invalid(`${kind.length} inodes for ${count} entries, of which ${repeats} share one`)
  const repeatGaps = sections.u32('repeatGaps')
  const inodesBack = sections.u32('inodesBack', repeats)
  const childCounts = sections.u32('childCounts')
  const parent = new Uint32Array(count)
  const inode = new Uint32Array(count)
  const firstChild = new Uint32Array(count)
  const childCount = new Uint32Array(count)
  let inodes = 0
  let repeat = 0
  let repeatEntry = repeatGaps[0]
  let directory = 0
  let filled = 1
  for (let entry = 0; entry < count; entry++) {
    if (entry >= filled) throw invalid(`entry ${entry} is in no directory`)
    firstChild[entry] = filled
    if (entry === repeatEntry) {
      const shared = inodes - inodesBack[repeat]
      repeatEntry += repeatGaps[++repeat]
      if (shared < 0 || shared >= inodes) throw invalid(`entry ${entry} shares an inode that comes later`)
      if (kind[shared] === Kind.directory) throw invalid(`entry ${entry} is a second name of a directory`)
      inode[entry] = shared
    } else {
      if (inodes >= kind.length) throw invalid('shared inodes are not in the order of entries')
      inode[entry] = inodes
      if (kind[inodes++] !== Kind.directory) continue
      if (directory >= childCounts.length) throw invalid('directories without a count of children')
      const children = childCounts[directory++]
      if (children > count - filled) throw invalid(`the directory of entry ${entry} has more children than there are entries`)
      parent.fill(entry, filled, filled + children)
      childCount[entry] = children
      filled += children
    }
  }
  if (repeat !== repeats || directory !== childCounts.length || filled !== count) throw invalid('directories, entries and inodes do not fit together')
  checkOrder(names, parent)
  checkDepth(names, parent)
  return { parent, inode, firstChild, childCount, names }
}

/** Names by entry, each possible as a name. */
function readNames(sections: Sections): string[] {
  const lengths = sections.u8('nameLengths')
  const bytes = sections.buffer('names')
  if (bytes.includes(0) || bytes.includes(0x2f)) throw invalid('a name has a NUL or a slash')
  const names = new Array<string>(lengths.length + 1)
  names[0] = ''
  let at = 0
  for (let from = 0; from < lengths.length; from += NAMES_AT_ONCE) {
    const to = Math.min(from + NAMES_AT_ONCE, lengths.length)
    let blockBytes = 0
    for (let index = from; index < to; index++) blockBytes += lengths[index]
    if (blockBytes > bytes.length - at) throw invalid('names are longer than their section')
    const block = bytes.toString('latin1', at, at + blockBytes)
    let start = 0
    for (let index = from; index < to; index++) {
      const length = lengths[index]
      const name = block.substring(start, start + length)
      if (length <= 2 && (name === '' || name === '.' || name === '..')) throw invalid(`'${name}' is not a name`)
      names[index + 1] = name
      start += length
    }
    at += blockBytes
  }
  if (at !== bytes.length) throw invalid('names are shorter than their section')
  return names
}

/** Names of one directory ascend by their bytes; none stands twice. */
function checkOrder(names: string[], parent: Uint32Array): void {
  for (let entry = 2; entry < names.length; entry++) {
    if (parent[entry] === parent[entry - 1] && !(names[entry - 1] < names[entry])) throw invalid(`the name of entry ${entry} is not in order`)
  }
}

function readInodes(sections: Sections) {
  const kinds = sections.u8('kinds')
  const count = kinds.length
  const columns = {
    kind: new Uint8Array(count),
    opaque: new Uint8Array(count),
    mode: sections.u16('modes', count),
    uid: sections.u32('uids', count),
    gid: sections.u32('gids', count),
    mtimeSeconds: new Float64Array(count),
    mtimeNanoseconds: sections.u32('nanoseconds', count),
    deviceMajor: new Uint32Array(count),
    deviceMinor: new Uint32Array(count),
    xattrSet: sections.u32('xattrSets', count),
    targets: new Map<number, Uint8Array>(),
  }
  const low = sections.u32('secondsLow', count)
  const high = sections.i32('secondsHigh', count)
  const { kind, opaque, mode, mtimeSeconds, mtimeNanoseconds } = columns
  for (let inode = 0; inode < count; inode++) {
    const bits = kinds[inode]
    kind[inode] = bits & ~OPAQUE_BIT
    if (kind[inode] < Kind.file || kind[inode] > Kind.link) throw invalid(`${bits} is not a kind of inode`)
    if (bits >= OPAQUE_BIT) {
      if (kind[inode] !== Kind.directory) throw invalid('what is not a directory cannot be opaque')
      opaque[inode] = 1
    }
    const seconds = high[inode] * TWO_32 + low[inode]
    if (!Number.isSafeInteger(seconds) || mtimeNanoseconds[inode] > 999_999_999) throw invalid(`the time of inode ${inode} is out of range`)
    mtimeSeconds[inode] = seconds
    if (mode[inode] > 0o7777) throw invalid(`mode ${mode[inode].toString(8)} of inode ${inode} is out of range`)
  }
  if (count === 0 || kind[0] !== Kind.directory) throw invalid('the root is not a directory')
  readTargets(sections, kind, columns.targets)
  readDevices(sections, columns)
  return columns
}

function readTargets(sections: Sections, kind: Uint8Array, targets: Map<number, Uint8Array>): void {
  const lengths = sections.u16('targetLengths')
  const bytes = sections.buffer('targets')
  if (bytes.includes(0)) throw invalid('a target has a NUL')
  let next = 0
  let at = 0
  for (let inode = 0; inode < kind.length; inode++) {
    if (kind[inode] !== Kind.symlink && kind[inode] !== Kind.link) continue
    if (next === lengths.length) throw invalid('symlinks without a target')
    const length = lengths[next++]
    if (length === 0 || length > bytes.length - at) throw invalid('targets do not fit their section')
    if (length > TARGET_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `tree: a target of ${length} bytes is above the limit of ${TARGET_BYTES_MAX}`)
    const target = new Uint8Array(bytes.buffer, bytes.byteOffset + at, length)
    if (kind[inode] === Kind.link && !isTreePath(target)) throw invalid(`the target of link ${inode} is not a path`)
    targets.set(inode, target)
    at += length
  }
  if (next !== lengths.length || at !== bytes.length) throw invalid('targets without a symlink')
}

function readDevices(sections: Sections, columns: { kind: Uint8Array; deviceMajor: Uint32Array; deviceMinor: Uint32Array }): void {
  const majors = sections.u32('deviceMajors')
  const minors = sections.u32('deviceMinors', majors.length)
  let next = 0
  for (let inode = 0; inode < columns.kind.length; inode++) {
    if (columns.kind[inode] !== Kind.character && columns.kind[inode] !== Kind.block) continue
    if (next === majors.length) throw invalid('devices without a number')
    columns.deviceMajor[inode] = majors[next]
    columns.deviceMinor[inode] = minors[next++]
  }
  if (next !== majors.length) throw invalid('device numbers without a device')
}

function readContent(sections: Sections, kind: Uint8Array) {
  const chunks = readChunks(sections)
  const pieces = readPieces(sections, chunks.chunkBytes)
  const counts = sections.u32('pieceCounts')
  const firstPiece = new Uint32Array(kind.length)
  const pieceCount = new Uint32Array(kind.length)
  const sizeBytes = new Float64Array(kind.length)
  const { pieceChunk, pieceBytes } = pieces
  let file = 0
  let piece = 0
  let total = 0
  for (let inode = 0; inode < kind.length; inode++) {
    firstPiece[inode] = piece
    if (kind[inode] !== Kind.file) continue
    if (file === counts.length) throw invalid('files without a count of pieces')
    const count = counts[file++]
    if (count > pieceChunk.length - piece) throw invalid('a file has more pieces than there are')
    let size = 0
    for (const end = piece + count; piece < end; piece++) {
      if (pieceChunk[piece] === HOLE && piece > firstPiece[inode] && pieceChunk[piece - 1] === HOLE) throw invalid('a hole follows a hole')
      size += pieceBytes[piece]
      if (size > CONTENT_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `tree: a file is larger than ${CONTENT_BYTES_MAX} bytes`)
    }
    pieceCount[inode] = count
    sizeBytes[inode] = size
    total += size
    if (total > CONTENT_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `tree: the files are together larger than ${CONTENT_BYTES_MAX} bytes`)
  }
  if (file !== counts.length || piece !== pieceChunk.length) throw invalid('pieces without a file')
  return { ...chunks, ...pieces, firstPiece, pieceCount, sizeBytes }
}

/** Chunk and bytes of each piece. Every chunk is used: the first use is what numbers it. */
function readPieces(sections: Sections, chunkBytes: Uint32Array) {
  const types = sections.u8('pieceTypes')
  const chunksBack = sections.u32('chunksBack')
  const holesLow = sections.u32('holesLow')
  const holesHigh = sections.u32('holesHigh', holesLow.length)
  const pieceChunk = new Uint32Array(types.length)
  const pieceBytes = new Float64Array(types.length)
  let chunk = 0
  let repeat = 0
  let hole = 0
  for (let piece = 0; piece < types.length; piece++) {
    if (types[piece] === PIECE_NEW) {
      if (chunk === chunkBytes.length) throw invalid('pieces without a chunk')
      pieceBytes[piece] = chunkBytes[chunk]
      pieceChunk[piece] = chunk++
    } else if (types[piece] === PIECE_REPEAT) {
      if (repeat === chunksBack.length) throw invalid('repeats without a chunk')
      const repeated = chunk - chunksBack[repeat++]
      if (repeated < 0 || repeated >= chunk) throw invalid('a piece repeats a chunk that comes later')
      pieceBytes[piece] = chunkBytes[repeated]
      pieceChunk[piece] = repeated
    } else if (types[piece] === PIECE_HOLE) {
      if (hole === holesLow.length) throw invalid('holes without a length')
      const bytes = holesHigh[hole] * TWO_32 + holesLow[hole++]
      if (bytes === 0) throw invalid('a hole is empty')
      pieceBytes[piece] = bytes
      pieceChunk[piece] = HOLE
    } else {
      throw invalid(`${types[piece]} is not a type of piece`)
    }
  }
  if (chunk !== chunkBytes.length || repeat !== chunksBack.length || hole !== holesLow.length) throw invalid('chunks or holes without a piece')
  return { pieceChunk, pieceBytes }
}

function readChunks(sections: Sections) {
  const chunkBytes = sections.u32('chunkBytes')
  sections.expect('chunkDigests', chunkBytes.length)
  for (let chunk = 0; chunk < chunkBytes.length; chunk++) {
    if (chunkBytes[chunk] === 0) throw invalid(`chunk ${chunk} is empty`)
    if (chunkBytes[chunk] > CHUNK_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `tree: chunk ${chunk} is larger than ${CHUNK_BYTES_MAX} bytes`)
  }
  const chunkDigests = sections.u8('chunkDigests')
  if (repeatedDigest(digestWords(chunkDigests)) >= 0) throw invalid('a digest stands twice')
  return { chunkBytes, chunkDigests }
}

/** Sets of attributes: sorted, distinct, none empty but the first, numbered by first use. */
function readXattrSets(sections: Sections, xattrSet: Uint32Array): Xattr[][] {
  const counts = sections.u32('xattrCounts')
  let sets = 0
  for (let inode = 0; inode < xattrSet.length; inode++) {
    if (xattrSet[inode] <= sets) continue
    if (xattrSet[inode] !== ++sets) throw invalid('sets of attributes are not numbered by first use')
  }
  if (sets !== counts.length) throw invalid('sets of attributes that no inode uses')
  const next = xattrReader(sections)
  const seen = new Set<string>()
  const result: Xattr[][] = [[]]
  for (let set = 0; set < counts.length; set++) {
    if (counts[set] === 0) throw invalid('a set of attributes is empty')
    const xattrs: Xattr[] = []
    let listBytes = 0
    for (let index = 0; index < counts[set]; index++) {
      const xattr = next()
      if (index > 0 && !(xattrs[index - 1].name < xattr.name)) throw invalid('attributes are not sorted by name')
      listBytes += xattr.name.length + 1
      if (listBytes > XATTR_LIST_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `tree: the names of attributes of one inode are above ${XATTR_LIST_BYTES_MAX} bytes`)
      xattrs.push(xattr)
    }
    seen.add(xattrSetKey(xattrs))
    result.push(xattrs)
  }
  if (seen.size !== counts.length) throw invalid('a set of attributes stands twice')
  next.end()
  return result
}

/** Gives one attribute after the other; `end` makes sure that none is left. */
function xattrReader(sections: Sections): { (): Xattr; end(): void } {
  const nameLengths = sections.u8('xattrNameLengths')
  const valueLengths = sections.u32('xattrValueLengths', nameLengths.length)
  const names = sections.buffer('xattrNames')
  const values = sections.u8('xattrValues')
  if (names.includes(0)) throw invalid('the name of an attribute has a NUL')
  let index = 0
  let nameAt = 0
  let valueAt = 0
  const next = (): Xattr => {
    if (index === nameLengths.length) throw invalid('sets have more attributes than there are')
    const nameLength = nameLengths[index]
    const valueLength = valueLengths[index++]
    if (nameLength === 0 || nameLength > names.length - nameAt || valueLength > values.length - valueAt) throw invalid('attributes do not fit their sections')
    if (valueLength > XATTR_VALUE_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `tree: an attribute of ${valueLength} bytes is above the limit of ${XATTR_VALUE_BYTES_MAX}`)
    const name = names.toString('latin1', nameAt, (nameAt += nameLength))
    const value = values.subarray(valueAt, (valueAt += valueLength))
    return { name, value }
  }
  const end = (): void => {
    if (index !== nameLengths.length || nameAt !== names.length || valueAt !== values.length) throw invalid('attributes that no set has')
  }
  return Object.assign(next, { end })
}
