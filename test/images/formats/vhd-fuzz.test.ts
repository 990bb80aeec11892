/**
 * Damaged VHD and VHDX images, their checksums mostly put right again: an error with a code or a disk that can be read, in bounded memory, never anything else.
 * VARVE_FUZZ_ROUNDS images of each kind.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { BlockDevice, ReadableDisk } from '@varve/images/device/block-device.ts'
import { MemoryDevice } from '@varve/images/device/memory-device.ts'
import { VarveError, isVarveError } from '@varve/images/errors.ts'
import type { ImageFiles, OpenImage } from '@varve/images/formats/disk-image.ts'
import { computeDifferencingVhd, computeFixedVhd, computeVhd, vhdId } from '@varve/images/formats/vhd/compute-vhd.ts'
import { openVhd } from '@varve/images/formats/vhd/open-vhd.ts'
import { openVhdx } from '@varve/images/formats/vhdx/open-vhdx.ts'
import { Random, testSeed } from '../../random.ts'
import { contentDigest } from './vhd-judge.ts'
import { buildVhdx, seal } from './vhdx-builder.ts'
import type { BuiltBlock } from './vhdx-builder.ts'

const ROUNDS = Number(process.env.VARVE_FUZZ_ROUNDS ?? 300)
const MIB = 1 << 20
const seed = testSeed()

/** The first byte and the length of a structure, and what puts its checksum right. */
interface Structure {
  offset: number
  length: number
  reseal?: (bytes: Buffer) => void
}

interface Sample {
  open: OpenImage
  image: Buffer
  /** What its parent is, by any name. */
  parent?: Buffer
  structures: Structure[]
}

async function bytesOf(device: BlockDevice): Promise<Buffer> {
  const bytes = Buffer.alloc(device.sizeBytes)
  await device.read(bytes, 0)
  return bytes
}

/** Ones' complement of the sum of all bytes, at `at`. */
function sumAt(at: number) {
  return (bytes: Buffer): void => {
    bytes.writeUInt32BE(0, at)
    bytes.writeUInt32BE(~bytes.reduce((sum, byte) => sum + byte, 0) >>> 0, at)
  }
}

const HEADER: Structure = { offset: 512, length: 1024, reseal: sumAt(36) }
function footerAt(offset: number): Structure {
  return { offset, length: 512, reseal: sumAt(64) }
}

const random = new Random(seed)
const disk = new MemoryDevice(5 * MIB)
for (let patch = 0; patch < 6; patch++) disk.write(random.bytes(random.below(20_000)), random.below(5 * MIB - 20_000))
const fixed = await bytesOf(await computeFixedVhd(new MemoryDevice(64 << 10)))
const dynamic = await bytesOf(await computeVhd(disk, { digest: Buffer.alloc(32) }))
const child = await bytesOf(await computeDifferencingVhd(disk, { digest: Buffer.alloc(32, 1), changed: [{ offset: 3 * MIB, length: 100_000 }], parent: { name: 'parent.vhd', id: vhdId(Buffer.alloc(32)) } }))
const table = { offset: 1536, length: 600 }
const bitmap = { offset: 4096 * 2 - 512, length: 512 }
const PARENT = '11111111-2222-3333-4444-555555555555'
const block = (state: number): BuiltBlock => ({ state, bytes: random.bytes(MIB) })
const vhdxStructures: Structure[] = [
  ...[64 << 10, 128 << 10].map((offset) => ({ offset, length: 4096, reseal: (bytes: Buffer) => void seal(bytes) })),
  ...[192 << 10, 256 << 10].map((offset) => ({ offset, length: 64 << 10, reseal: (bytes: Buffer) => void seal(bytes) })),
]
const vhdx = buildVhdx({ sizeBytes: 5 * MIB, blocks: new Map([[0, block(6)], [2, { state: 2 }], [4, block(6)]]), dataWriteGuid: PARENT })
const logged = buildVhdx({
  sizeBytes: 2 * MIB,
  blocks: new Map([[0, block(6)], [1, block(6)]]),
  log: { entries: [1, 2].map((sequence) => ({ sector: 3 * sequence, sequence, tail: 3, writes: [{ fileOffset: 4 * MIB + 4096 * sequence, content: random.bytes(4096) }, { fileOffset: 4 * MIB, content: 8192 }, { fileOffset: 5 * MIB, content: random.bytes(4096) }] })) },
})
const differencing = buildVhdx({ sizeBytes: 5 * MIB, blocks: new Map([[1, { ...block(7), present: new Set([1, 5, 6, 7, 900]) }], [3, block(6)]]), locator: { parent_linkage: `{${PARENT}}`, relative_path: 'parent.vhdx' } })

/** Places that most is changed at; the start of the region tables and of the metadata come often. */
function vhdxAreas({ metadata, table: at }: { metadata: number; table: number }): Structure[] {
  return [...vhdxStructures, { offset: metadata, length: 300 }, { offset: metadata + (64 << 10), length: 300 }, { offset: at, length: 80 }]
}

const SAMPLES: Record<string, Sample> = {
  'fixed VHD': { open: openVhd, image: fixed, structures: [footerAt(64 << 10)] },
  'dynamic VHD': { open: openVhd, image: dynamic, structures: [footerAt(0), HEADER, table, bitmap, footerAt(dynamic.length - 512)] },
  'differencing VHD': { open: openVhd, image: child, parent: dynamic, structures: [footerAt(0), HEADER, table, bitmap, footerAt(child.length - 512)] },
  VHDX: { open: openVhdx, image: vhdx.bytes, structures: vhdxAreas(vhdx) },
  'VHDX with a log': { open: openVhdx, image: logged.bytes, structures: [...vhdxAreas(logged), ...[3, 6].map((sector) => ({ offset: logged.log + sector * 4096, length: 3 * 4096, reseal: (bytes: Buffer) => void seal(bytes) }))] },
  'differencing VHDX': { open: openVhdx, image: differencing.bytes, parent: vhdx.bytes, structures: vhdxAreas(differencing) },
}

function fileOf(content: Buffer): ReadableDisk & AsyncDisposable {
  const read = (into: Uint8Array, offset: number): void => {
    assert.ok(offset >= 0 && offset + into.length <= content.length, 'nothing outside of a file is read')
    into.set(content.subarray(offset, offset + into.length))
  }
  return { sizeBytes: content.length, read, [Symbol.asyncDispose]: () => Promise.resolve() }
}

/** Opens the parent under every name, or the image itself. */
class SomeFiles implements ImageFiles {
  readonly #content: Buffer | undefined

  constructor(content: Buffer | undefined) {
    this.#content = content
  }

  async open(name: string): Promise<{ file: ReadableDisk & AsyncDisposable; files: ImageFiles }> {
    if (this.#content === undefined) throw new VarveError('SOURCE_INVALID', `${name} is not there`)
    return { file: fileOf(this.#content), files: this }
  }
}

const NUMBERS = [0n, 1n, 2n, 3n, 7n, 0x7fn, 512n, 4096n, 0x10_0000n, 0x7fff_ffffn, 0x8000_0000n, 0xffff_ffffn, 1n << 40n, (1n << 53n) - 1n, 1n << 62n, (1n << 64n) - 1n]

function damaged(random: Random, image: Buffer, structures: Structure[]): Buffer {
  const bytes = Buffer.from(image)
  for (let edits = random.pick([1, 1, 1, 2, 5]); edits > 0; edits--) {
    const { offset, length, reseal } = random.pick(structures)
    const part = bytes.subarray(offset, offset + length)
    const at = random.chance(0.7) ? random.below(Math.min(length, 128)) : random.below(length)
    const aligned = Math.min(at - (at % random.pick([2, 4, 8])), length - 8)
    const action = random.below(6)
    if (action === 0) part[at] ^= 1 << random.below(8)
    else if (action === 1) part[at] = random.below(256)
    else if (action === 2) part.writeBigUInt64BE(random.pick(NUMBERS), aligned)
    else if (action === 3) part.writeBigUInt64LE(random.pick(NUMBERS), aligned)
    else if (action === 4) part.writeUInt32BE(Number(random.pick(NUMBERS) & 0xffff_ffffn), aligned)
    else part.writeUInt32LE(Number(random.pick(NUMBERS) & 0xffff_ffffn), aligned)
    if (random.chance(0.9)) reseal?.(part)
  }
  return random.chance(0.1) ? bytes.subarray(0, random.below(bytes.length)) : bytes
}

/** Opens an image, lists it and reads of it. @returns whether it could be opened */
async function survives(random: Random, { open, image, parent }: Omit<Sample, 'structures'>): Promise<boolean> {
  let isOpen = false
  try {
    await using disk = await open(fileOf(image), { files: new SomeFiles(random.chance(0.1) ? image : parent) })
    isOpen = true
    for (let round = 0, at = 0; round < 5 && at < disk.sizeBytes; round++) {
      const last = disk.extents(at, disk.sizeBytes - at, 100).at(-1)!
      at = last.offset + last.length
    }
    for (let round = 0; round < 5; round++) {
      const offset = random.chance(0.5) ? random.below(Math.min(disk.sizeBytes, 5 * MIB) + 1) : random.below(disk.sizeBytes + 1)
      await disk.read(Buffer.alloc(Math.min(disk.sizeBytes - offset, random.pick([1, 512, 70_000]))), offset)
    }
  } catch (error) {
    if (!isVarveError(error)) throw error
  }
  return isOpen
}

describe(`damaged VHD and VHDX images (seed ${seed})`, () => {
  for (const [kind, sample] of Object.entries(SAMPLES)) {
    test(`${kind}: an error with a code, or a disk`, async (t) => {
      const sound = await sample.open(fileOf(sample.image), { files: new SomeFiles(sample.parent) })
      assert.match(await contentDigest(sound), /^[0-9a-f]{64}$/)
      let opened = 0
      for (let round = 0; round < ROUNDS; round++) {
        const random = new Random(seed + round)
        try {
          const parent = sample.parent && random.chance(0.2) ? damaged(random, sample.parent, [{ offset: 0, length: Math.min(4096, sample.parent.length) }]) : sample.parent
          if (await survives(random, { open: sample.open, image: damaged(random, sample.image, sample.structures), parent })) opened++
        } catch (cause) {
          throw new Error(`round ${round} of VARVE_TEST_SEED=${seed}`, { cause })
        }
      }
      t.diagnostic(`${opened} of ${ROUNDS} could be opened`)
    })
  }
})
