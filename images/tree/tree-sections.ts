/**
 * Sections: the outer layer of an encoded tree. A header says how long each section is; they follow one another, each a typed array.
 * What the sections mean is tree-format.ts's. Bytes: docs/formats/tree.md
 */
import { DIGEST_BYTES } from '../chunk/digest.ts'
import { VarveError } from '../errors.ts'
import { TREE_BYTES_MAX } from './limits.ts'

export const TREE_VERSION = 1

const MAGIC = Buffer.from('varvtree', 'latin1')

/** In `kinds`: the directory is opaque. */
export const OPAQUE_BIT = 0x80
/** In `pieceTypes`. */
export const PIECE_NEW = 0
export const PIECE_REPEAT = 1
export const PIECE_HOLE = 2

/** Sections in their order, with the bytes of one element. */
const SECTIONS = {
  nameLengths: 1,
  names: 1,
  repeatGaps: 4,
  inodesBack: 4,
  kinds: 1,
  modes: 2,
  uids: 4,
  gids: 4,
  secondsLow: 4,
  secondsHigh: 4,
  nanoseconds: 4,
  xattrSets: 4,
  childCounts: 4,
  targetLengths: 2,
  targets: 1,
  deviceMajors: 4,
  deviceMinors: 4,
  pieceCounts: 4,
  pieceTypes: 1,
  chunksBack: 4,
  holesLow: 4,
  holesHigh: 4,
  chunkBytes: 4,
  chunkDigests: DIGEST_BYTES,
  xattrCounts: 4,
  xattrNameLengths: 1,
  xattrValueLengths: 4,
  xattrNames: 1,
  xattrValues: 1,
} as const
export type Section = keyof typeof SECTIONS

const SECTION_NAMES = Object.keys(SECTIONS) as Section[]
const TABLE_OFFSET = 16
const HEADER_BYTES = align(TABLE_OFFSET + 4 * SECTION_NAMES.length)

/** Offset of the section that follows `length` bytes: the next multiple of 8. */
function align(length: number): number {
  return Math.ceil(length / 8) * 8
}

/** Bytes that are gathered before they are handed on. */
const GATHERED_BYTES = 64 << 10

/** Writes header and sections, one after the other, as they come. */
export class SectionWriter {
  readonly #lengths: Record<Section, number>
  readonly #sink: (bytes: Uint8Array) => void
  readonly #gathered = new Uint8Array(GATHERED_BYTES)
  #at = 0
  /** Number of the section at hand, and bytes of it that are still to come. */
  #section = -1
  #left = 0

  /**
   * @param lengths bytes of each section
   * @param sink gets bytes that are valid during the call
   * @throws VarveError LIMIT_EXCEEDED above TREE_BYTES_MAX
   */
  constructor(lengths: Record<Section, number>, sink: (bytes: Uint8Array) => void) {
    this.#lengths = lengths
    this.#sink = sink
    let length = HEADER_BYTES
    for (const name of SECTION_NAMES) length += align(lengths[name])
    if (length > TREE_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `a tree of ${length} bytes is above the limit of ${TREE_BYTES_MAX}`)
    const header = new Uint32Array(HEADER_BYTES / 4)
    new Uint8Array(header.buffer).set(MAGIC)
    header[2] = TREE_VERSION
    header[3] = SECTION_NAMES.length
    SECTION_NAMES.forEach((name, index) => (header[TABLE_OFFSET / 4 + index] = lengths[name]))
    this.#put(new Uint8Array(header.buffer))
  }

  /** Begins the next section. */
  begin(name: Section): void {
    this.#endSection()
    if (SECTION_NAMES[++this.#section] !== name) throw new RangeError(`section ${name} does not come next`)
    this.#left = this.#lengths[name]
  }

  /** The next rows of the section. */
  write({ buffer, byteOffset, byteLength }: ArrayBufferView): void {
    this.#left -= byteLength
    this.#put(new Uint8Array(buffer, byteOffset, byteLength))
  }

  /** A whole section. */
  all(name: Section, pieces: Iterable<ArrayBufferView>): void {
    this.begin(name)
    for (const piece of pieces) this.write(piece)
  }

  end(): void {
    this.#endSection()
    if (this.#section !== SECTION_NAMES.length - 1) throw new RangeError('sections are missing')
    this.#sink(this.#gathered.subarray(0, this.#at))
  }

  #endSection(): void {
    if (this.#left !== 0) throw new RangeError('a section is not as long as was said')
    if (this.#section < 0) return
    const length = this.#lengths[SECTION_NAMES[this.#section]]
    this.#put(new Uint8Array(align(length) - length))
  }

  #put(bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length; ) {
      const part = bytes.subarray(done, done + GATHERED_BYTES - this.#at)
      this.#gathered.set(part, this.#at)
      this.#at += part.length
      done += part.length
      if (this.#at < GATHERED_BYTES) continue
      this.#sink(this.#gathered)
      this.#at = 0
    }
  }
}

export function invalid(message: string): VarveError {
  return new VarveError('FORMAT_INVALID', `tree: ${message}`)
}

/** The sections of encoded bytes as typed arrays; they lie inside the bytes, one after the other, to the end. */
export class Sections {
  readonly #bytes: Uint8Array
  readonly #offsets = {} as Record<Section, number>
  readonly #lengths = {} as Record<Section, number>

  constructor(given: Uint8Array) {
    if (given.length > TREE_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `tree: ${given.length} bytes are above the limit of ${TREE_BYTES_MAX}`)
    if (given.length < TABLE_OFFSET || MAGIC.compare(given, 0, MAGIC.length) !== 0) throw invalid('the bytes do not begin as a tree does')
    const bytes = given.byteOffset % 8 === 0 ? given : new Uint8Array(given)
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    const version = view.getUint32(8, true)
    if (version > TREE_VERSION) throw new VarveError('FORMAT_UNSUPPORTED', `tree: version ${version} is newer than this Varve knows (${TREE_VERSION})`)
    if (version !== TREE_VERSION) throw invalid(`there is no version ${version}`)
    if (bytes.length < HEADER_BYTES || view.getUint32(12, true) !== SECTION_NAMES.length) throw invalid('the header is not whole')
    this.#bytes = bytes
    let at = HEADER_BYTES
    this.#checkPadding(TABLE_OFFSET + 4 * SECTION_NAMES.length, at)
    for (let index = 0; index < SECTION_NAMES.length; index++) {
      const name = SECTION_NAMES[index]
      const length = view.getUint32(TABLE_OFFSET + 4 * index, true)
      if (align(length) > bytes.length - at) throw invalid(`section ${name} of ${length} bytes does not fit`)
      if (length % SECTIONS[name] !== 0) throw invalid(`section ${name} ends within an element`)
      this.#checkPadding(at + length, at + align(length))
      this.#offsets[name] = at
      this.#lengths[name] = length
      at += align(length)
    }
    if (at !== bytes.length) throw invalid(`${bytes.length - at} bytes follow the last section`)
  }

  #checkPadding(from: number, to: number): void {
    for (let at = from; at < to; at++) if (this.#bytes[at] !== 0) throw invalid('padding is not zero')
  }

  /** Elements in a section. */
  count(section: Section): number {
    return this.#lengths[section] / SECTIONS[section]
  }

  u8(section: Section): Uint8Array {
    return new Uint8Array(this.#bytes.buffer, this.#bytes.byteOffset + this.#offsets[section], this.#lengths[section])
  }

  /** The same bytes, with Buffer's methods. */
  buffer(section: Section): Buffer {
    return Buffer.from(this.#bytes.buffer, this.#bytes.byteOffset + this.#offsets[section], this.#lengths[section])
  }

  /** @param count what other sections say the count must be */
  u16(section: Section, count?: number): Uint16Array {
    this.expect(section, count)
    return new Uint16Array(this.#bytes.buffer, this.#bytes.byteOffset + this.#offsets[section], this.#lengths[section] / 2)
  }

  u32(section: Section, count?: number): Uint32Array {
    this.expect(section, count)
    return new Uint32Array(this.#bytes.buffer, this.#bytes.byteOffset + this.#offsets[section], this.#lengths[section] / 4)
  }

  i32(section: Section, count?: number): Int32Array {
    this.expect(section, count)
    return new Int32Array(this.#bytes.buffer, this.#bytes.byteOffset + this.#offsets[section], this.#lengths[section] / 4)
  }

  expect(section: Section, count: number | undefined): void {
    if (count !== undefined && this.count(section) !== count) throw invalid(`section ${section} has ${this.count(section)} elements instead of ${count}`)
  }
}

