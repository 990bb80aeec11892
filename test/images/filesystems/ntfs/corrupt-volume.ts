/** Damage to a volume of NTFS, from a seed: deep, since the update sequences of what is damaged are made to fit again. */
import type { Random } from '../../../random.ts'

const RECORD_BYTES = 1024
const BLOCK_BYTES = 4096
const STRIDE_BYTES = 512
const SIZES = [1, 2, 4, 8]
const INTERESTING = [0, 1, 2, 7, 8, 16, 127, 128, 255, 256, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff]
const SYSTEM_RECORDS = 16

interface Structure {
  at: number
  bytes: number
}

export class CorruptVolume {
  /** As it is now. */
  readonly bytes: Buffer
  readonly #sound: Buffer
  readonly #records: Structure[]
  readonly #blocks: Structure[]
  /** Content that is compressed, one way or another, and other data of the driver. */
  readonly #contents: Structure[]

  /** @param contents parts of the volume that are damaged as they are */
  constructor(sound: Buffer, contents: Structure[]) {
    this.#sound = sound
    this.bytes = Buffer.from(sound)
    this.#records = found(sound, 'FILE', RECORD_BYTES)
    this.#blocks = found(sound, 'INDX', BLOCK_BYTES)
    this.#contents = contents
  }

  reset(): void {
    this.#sound.copy(this.bytes)
  }

  /** Does damage in one to four places. */
  corrupt(random: Random): void {
    for (let count = random.between(1, 4); count > 0; count--) this.#corruptOne(random)
  }

  #corruptOne(random: Random): void {
    const kind = random.below(20)
    if (kind === 0) this.#change({ at: 0, bytes: 0x54 }, random)
    else if (kind < 3) this.#change(random.pick(this.#contents), random)
    else if (kind < 6) this.#inside(random.pick(this.#blocks), random)
    else if (kind === 6) this.#copyRecord(random)
    else {
      // Records of users are as likely as those of the system, of which there are more.
      const [system, users] = [this.#records.slice(0, SYSTEM_RECORDS), this.#records.slice(SYSTEM_RECORDS)]
      const record = random.pick(random.chance(0.3) ? system : users)
      if (random.chance(0.4)) this.#inside(this.#mappingPairs(record, random), random, record)
      else this.#inside({ at: record.at, bytes: Math.min(RECORD_BYTES, this.bytes.readUInt32LE(record.at + 0x18)) }, random, record)
    }
  }

  /** Runs of one attribute, or the whole of the record. */
  #mappingPairs(record: Structure, random: Random): Structure {
    const places: Structure[] = []
    for (let at = record.at + this.bytes.readUInt16LE(record.at + 0x14); at + 64 < record.at + RECORD_BYTES;) {
      const length = this.bytes.readUInt32LE(at + 4)
      if (length < 16 || length > RECORD_BYTES) break
      const offset = this.bytes.readUInt16LE(at + 0x20)
      if (this.bytes[at + 8] === 1 && offset < length) places.push({ at: at + offset, bytes: length - offset })
      at += length
    }
    return places.length === 0 ? record : random.pick(places)
  }

  #copyRecord(random: Random): void {
    const [from, to] = [random.pick(this.#records), random.pick(this.#records)]
    this.bytes.copy(this.bytes, to.at, from.at, from.at + RECORD_BYTES)
  }

  /** Changes a part of a structure as it is without its update sequence. */
  #inside(part: Structure, random: Random, whole = part): void {
    const isSound = protect(this.bytes, whole, 'restore')
    this.#change(part, random)
    if (isSound) protect(this.bytes, whole, 'apply')
  }

  #change({ at, bytes }: Structure, random: Random): void {
    if (bytes === 0) return
    if (random.chance(0.1)) {
      random.bytes(Math.min(bytes, random.between(1, 64))).copy(this.bytes, at + random.below(bytes))
      return
    }
    const size = random.pick(SIZES)
    const place = at + random.below(bytes)
    const value = random.chance(0.5) ? random.pick(INTERESTING) : random.chance(0.5) ? this.bytes[place] + random.between(-9, 9) : random.uint32()
    for (let index = 0; index < size; index++) this.bytes[place + index] = index < 4 ? value >>> (8 * index) : 0
  }
}

function found(bytes: Buffer, magic: string, size: number): Structure[] {
  const structures: Structure[] = []
  for (let at = bytes.indexOf(magic); at >= 0; at = bytes.indexOf(magic, at + 4)) if (at % RECORD_BYTES === 0) structures.push({ at, bytes: size })
  return structures
}

/** @returns false if there is no update sequence that could be */
function protect(bytes: Buffer, { at, bytes: size }: Structure, how: 'restore' | 'apply'): boolean {
  const array = at + bytes.readUInt16LE(at + 4)
  const count = bytes.readUInt16LE(at + 6)
  if (count !== size / STRIDE_BYTES + 1 || array + 2 * count > at + STRIDE_BYTES) return false
  for (let index = 1; index < count; index++) {
    const end = at + index * STRIDE_BYTES - 2
    if (how === 'apply') bytes.copy(bytes, array + 2 * index, end, end + 2)
    bytes.copy(bytes, end, how === 'apply' ? array : array + 2 * index, (how === 'apply' ? array : array + 2 * index) + 2)
  }
  return true
}
