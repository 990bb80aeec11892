/**
 * Sections: the outer layer of an encoded tree. A header says how long each section is; they follow one another, each a typed array.
 * What the sections mean is tree-format.ts's. Bytes: docs/formats/tree.md
 */
import { DIGEST_BYTES } from '../chunk/digest.ts'
import { VarveError } from '../errors.ts'
import { TREE_BYTES_MAX } from './limits.ts'

export const TREE_VERSION = 1

const MAGIC = Buffer.from('varvtree', 'latin1')

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

/**
 * Header and sections as bytes.
 * @throws VarveError LIMIT_EXCEEDED above TREE_BYTES_MAX
 */
export function writeSections(sections: Record<Section, ArrayBufferView>): Uint8Array {
  let length = HEADER_BYTES
  for (const name of SECTION_NAMES) length += align(sections[name].byteLength)
  if (length > TREE_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `a tree of ${length} bytes is above the limit of ${TREE_BYTES_MAX}`)
  const bytes = new Uint8Array(length)
  const header = new Uint32Array(bytes.buffer, 0, HEADER_BYTES / 4)
  bytes.set(MAGIC)
  header[2] = TREE_VERSION
  header[3] = SECTION_NAMES.length
  let at = HEADER_BYTES
  for (let index = 0; index < SECTION_NAMES.length; index++) {
    const section = sections[SECTION_NAMES[index]]
    header[TABLE_OFFSET / 4 + index] = section.byteLength
    bytes.set(new Uint8Array(section.buffer, section.byteOffset, section.byteLength), at)
    at += align(section.byteLength)
  }
  return bytes
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

