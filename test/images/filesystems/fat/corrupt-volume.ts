/** Volumes of FAT and exFAT, damaged where it matters: in boot sectors, tables and directory entries, whose checksums are made right again, so that the damage goes deep. */
import type { VolumeFilesystem } from '@varve/images/filesystems/filesystem.ts'
import { walk } from '@varve/images/filesystems/walk.ts'
import type { Random } from '../../../random.ts'
import { sumBoot, sumSet } from '../exfat/synthetic-exfat.ts'

const ENTRY_BYTES = 32
const EXFAT_SECTOR_BYTES = 512
/** Fields of boot sectors, bytes; those of exFAT lie behind those of FAT. */
const BOOT_FIELDS = { fat: [11, 90], exfat: [64, 113] }
const VALUES = [0, 1, 2, 3, 0x7f, 0x80, 0xff, 0xffff, 0xfff7, 0xfff8, 0x0ffffff7, 0x0fffffff, 0x7fffffff, 0x80000000, 0xfffffff7, 0xfffffff8, 0xffffffff]

export class CorruptVolume {
  readonly bytes: Buffer
  readonly #sound: Buffer
  readonly #isExfat: boolean
  /** Entries of files and directories, bytes from the start. */
  readonly #entries: number[]
  /** Of the table, as far as it is used. */
  readonly #table: { at: number; bytes: number }

  private constructor(sound: Buffer, { isExfat, entries, table }: { isExfat: boolean; entries: number[]; table: { at: number; bytes: number } }) {
    this.#sound = sound
    this.#isExfat = isExfat
    this.#entries = entries
    this.#table = table
    this.bytes = Buffer.from(sound)
  }

  static async of(sound: Buffer, filesystem: VolumeFilesystem): Promise<CorruptVolume> {
    const entries: number[] = []
    for await (const { node } of walk(filesystem)) if (node.id !== filesystem.root) entries.push(node.id * ENTRY_BYTES)
    const isExfat = filesystem.type === 'exfat'
    const at = isExfat ? sound.readUInt32LE(80) * EXFAT_SECTOR_BYTES : sound.readUInt16LE(14) * sound.readUInt16LE(11)
    return new CorruptVolume(sound, { isExfat, entries, table: { at, bytes: 3000 } })
  }

  /** As it was before `corrupt`. */
  reset(): void {
    this.#sound.copy(this.bytes)
  }

  /** @returns how many bytes of it are left */
  corrupt(random: Random): number {
    for (let count = random.between(1, 6); count > 0; count--) {
      switch (random.below(8)) {
        case 0:
          this.#damageBoot(random)
          break
        case 1:
        case 2:
        case 3:
          this.#damageTable(random)
          break
        case 4:
          this.bytes[random.below(this.bytes.length)] = random.below(256)
          break
        default:
          this.#damageEntry(random)
      }
    }
    return random.chance(0.05) ? random.below(this.bytes.length) : this.bytes.length
  }

  #damageBoot(random: Random): void {
    const [from, to] = BOOT_FIELDS[this.#isExfat ? 'exfat' : 'fat']
    this.#put(random, random.between(from, to - 1))
    if (this.#isExfat) sumBoot(this.bytes, EXFAT_SECTOR_BYTES)
  }

  #damageTable(random: Random): void {
    const { at, bytes } = this.#table
    this.#put(random, at + random.below(bytes))
  }

  #damageEntry(random: Random): void {
    const entry = random.pick(this.#entries)
    const near = Math.max(0, entry + ENTRY_BYTES * (random.chance(0.7) ? random.below(this.#isExfat ? 2 : 1) : random.between(-3, 3)))
    if (random.chance(0.1)) this.bytes.copy(this.bytes, near, random.pick(this.#entries), near + ENTRY_BYTES)
    else this.#put(random, near + random.below(ENTRY_BYTES))
    if (!this.#isExfat || random.chance(0.1)) return
    const end = entry + ENTRY_BYTES * (this.bytes[entry + 1] + 1)
    if (end <= this.bytes.length) sumSet(this.bytes.subarray(entry, end))
  }

  #put(random: Random, at: number): void {
    const length = random.pick([1, 2, 4])
    if (at + length > this.bytes.length) return
    const value = random.chance(0.5) ? random.pick(VALUES) : random.chance(0.5) ? random.below(1000) : random.uint32()
    this.bytes.writeUIntLE(length === 4 ? value : value % 2 ** (8 * length), at, length)
  }
}
