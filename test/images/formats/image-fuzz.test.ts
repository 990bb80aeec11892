/**
 * Damaged images of all formats: an error with a code or a disk that can be read, in bounded memory, never anything else. VARVE_FUZZ_ROUNDS images of each kind.
 * What once broke a reader, or would break a careless one, is made by name: HOSTILE.
 */
import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'
import type { BlockDevice, ReadableDisk } from '@varve/images/device/block-device.ts'
import { VarveError, isVarveError } from '@varve/images/errors.ts'
import type { ImageFiles } from '@varve/images/formats/disk-image.ts'
import { openBacking } from '@varve/images/formats/open-image.ts'
import { readQcow2Bitmap } from '@varve/images/formats/qcow2/bitmaps.ts'
import { openQcow2 } from '@varve/images/formats/qcow2/reader.ts'
import { Random, testSeed } from '../../random.ts'
import { cowdDisk } from './cowd.ts'
import { qemuImg } from './image-judge.ts'
import { changeWithQemuIo, writeRandomDisk } from './random-disk.ts'

const ROUNDS = Number(process.env.VARVE_FUZZ_ROUNDS ?? 300)
const DISK_BYTES = 300 << 10
const seed = testSeed()
const root = mkdtempSync(join(tmpdir(), 'varve-image-fuzz-'))
after(() => rmSync(root, { recursive: true }))

function file(content: Buffer): ReadableDisk & AsyncDisposable {
  const read = (into: Uint8Array, offset: number) => {
    assert.ok(offset >= 0 && offset + into.length <= content.length, `${into.length} bytes at ${offset} of ${content.length}`)
    content.copy(into, 0, offset)
  }
  return { sizeBytes: content.length, read, [Symbol.asyncDispose]: async () => undefined }
}

/** Files by the names that images give them, at most so many opened for one image. */
class FewFiles implements ImageFiles {
  readonly #files: ReadonlyMap<string, Buffer>
  #left = 300

  constructor(files: ReadonlyMap<string, Buffer>) {
    this.#files = files
  }

  async open(name: string): Promise<{ file: ReadableDisk & AsyncDisposable; files: ImageFiles }> {
    const content = this.#files.get(name.replace(/^.*\//s, ''))
    if (content === undefined || this.#left-- <= 0) throw new VarveError('SOURCE_INVALID', `${name} is not there`)
    return { file: file(content), files: this }
  }
}

/** Opens an image, lists it and reads of it: only errors with codes may come of that. @returns whether it could be opened */
async function survives(random: Random, image: Buffer, files: ReadonlyMap<string, Buffer>): Promise<boolean> {
  const options = { files: new FewFiles(files) }
  let opened = false
  await coded(async () => {
    await using disk = await openBacking(file(image), undefined, options)
    opened = true
    await readAround(random, disk)
  })
  if (image.toString('latin1', 0, 4) !== 'QFI\xfb') return opened
  await coded(async () => { await using disk = await openQcow2(file(image), { ...options, snapshot: random.pick(['1', 'kept', 'none']) }); await readAround(random, disk) })
  await coded(async () => { assert.ok((await readQcow2Bitmap(file(image), 'since')).length >= 0) })
  return opened
}

async function coded(work: () => Promise<void>): Promise<void> {
  try {
    await work()
  } catch (error) {
    if (!isVarveError(error)) throw error
  }
}

async function readAround(random: Random, disk: BlockDevice): Promise<void> {
  for (let round = 0, at = 0; round < 10 && at < disk.sizeBytes; round++) {
    const last = disk.extents(at, disk.sizeBytes - at, 100).at(-1)!
    assert.ok(last.length > 0 && last.offset >= at)
    at = last.offset + last.length
  }
  for (let round = 0; round < 6; round++) {
    const offset = random.chance(0.5) ? random.below(Math.min(disk.sizeBytes, DISK_BYTES) + 1) : random.below(disk.sizeBytes + 1)
    const into = Buffer.alloc(Math.min(disk.sizeBytes - offset, random.pick([1, 512, 70_000])))
    await coded(async () => disk.read(into, offset))
  }
}

const NUMBERS = [0n, 1n, 2n, 0x7fn, 512n, 0x1_0000n, 0x7fff_ffffn, 0x8000_0000n, 0xffff_ffffn, 1n << 40n, (1n << 53n) - 1n, 1n << 62n, (1n << 63n) - 1n, (1n << 64n) - 1n]

/** Changes mostly what is at the start or looks like a table. */
function damaged(random: Random, image: Buffer): Buffer {
  let bytes = Buffer.from(image)
  const used = [0, ...Array.from({ length: Math.floor(bytes.length / 8) }, (_, index) => index * 8).filter((at) => bytes[at] !== 0 || bytes[at + 7] !== 0)]
  for (let edits = random.pick([1, 1, 2, 4, 12]); edits > 0 && bytes.length > 16; edits--) {
    const at = Math.min(bytes.length - 8, random.pick([random.below(128), random.below(600), random.pick(used), random.below(bytes.length)]))
    const action = random.below(9)
    if (action === 0) bytes[at] ^= 1 << random.below(8)
    else if (action === 1) bytes[at] = random.below(256)
    else if (action === 2) bytes.writeBigUInt64BE(random.pick(NUMBERS), at)
    else if (action === 3) bytes.writeBigUInt64LE(random.pick(NUMBERS), at)
    else if (action === 4) bytes.writeUInt32BE(Number(random.pick(NUMBERS) & 0xffff_ffffn), at - (at % 4))
    else if (action === 5) bytes.writeUInt32LE(Number(random.pick(NUMBERS) & 0xffff_ffffn), at - (at % 4))
    else if (action === 6) bytes.copyWithin(at - (at % 8), random.pick(used), random.pick(used) + random.pick([8, 64]))
    else if (action === 7) bytes.fill(0, at, Math.min(bytes.length, at + random.below(300)))
    else if (random.chance(0.3)) bytes = Buffer.from(bytes.subarray(0, at))
  }
  return bytes
}

interface Sample {
  image: Buffer
  files: Map<string, Buffer>
}

/** An image, and the files that it names, made anew for a seed. */
function sample(random: Random, kind: string): Sample {
  const directory = mkdtempSync(join(root, 'sample-'))
  const raw = join(directory, 'disk.raw')
  const sizeBytes = writeRandomDisk(random, raw, { sizeBytesMax: DISK_BYTES, patchesMax: 10 })
  const image = join(directory, 'image')
  const [format, ...words] = kind.split(' ')
  const options = words.filter((word) => word.includes('='))
  if (format === 'cowd') {
    for (const [name, bytes] of cowdDisk(readFileSync(raw))) writeFileSync(join(directory, name), bytes)
  } else {
    qemuImg('convert', '-f', 'raw', '-O', format, ...(words.includes('-c') ? ['-c'] : []), ...options.flatMap((option) => ['-o', option]), raw, image)
  }
  if (format === 'qcow2') {
    qemuImg('snapshot', '-c', 'kept', image)
    if (!options.includes('compat=0.10')) qemuImg('bitmap', '--add', '-g', '512', image, 'since')
    changeWithQemuIo(random, image, 'qcow2', sizeBytes, { count: 4 })
    if (words.includes('over')) qemuImg('rebase', '-u', '-f', 'qcow2', '-b', 'disk.raw', '-F', 'raw', image)
  }
  const files = new Map(readdirSync(directory).map((name) => [name, readFileSync(join(directory, name))]))
  rmSync(directory, { recursive: true })
  return { image: files.get('image')!, files }
}

/** A header and an L1 table of zeroes behind it. */
function qcow2Header(sizeBytes: bigint, clusterBits: number, l1Entries: number): Buffer {
  const bytes = Buffer.alloc(2 ** clusterBits + l1Entries * 8)
  bytes.write('QFI\xfb', 0, 'latin1')
  for (const [at, value] of [[4, 3], [20, clusterBits], [36, l1Entries], [96, 4], [100, 104]]) bytes.writeUInt32BE(value, at)
  bytes.writeBigUInt64BE(sizeBytes, 24)
  bytes.writeBigUInt64BE(2n ** BigInt(clusterBits), 40)
  return bytes
}

const KINDS = [
  'qcow2 cluster_size=512', 'qcow2 cluster_size=4096 compat=0.10', 'qcow2 -c cluster_size=4096', 'qcow2 -c cluster_size=4096,compression_type=zstd', 'qcow2 cluster_size=16384,extended_l2=on', 'qcow2 over cluster_size=512',
  'vmdk', 'vmdk subformat=streamOptimized', 'vmdk subformat=twoGbMaxExtentSparse', 'vmdk subformat=monolithicFlat', 'cowd',
]

describe(`damaged images (seed ${seed})`, () => {
  for (const kind of KINDS) {
    test(`${kind}: an error with a code, or a disk`, async () => {
      const random = new Random(seed)
      const { image, files } = sample(random, kind)
      assert.ok(await survives(random, image, files), 'the sound image is opened')
      for (let round = 0; round < ROUNDS; round++) {
        const bytes = damaged(random, image)
        // What the image names is damaged with it.
        const named = new Map(files)
        for (const [name, content] of files) if (name !== 'image' && random.chance(0.5)) named.set(name, damaged(random, content))
        named.set('image', bytes)
        try {
          await survives(random, bytes, named)
        } catch (error) {
          const path = join(tmpdir(), `varve-broken-image-${seed}-${round}`)
          writeFileSync(path, bytes)
          throw new Error(`round ${round}; the image is kept as ${path}`, { cause: error })
        }
      }
    })
  }

  // What takes time or memory out of proportion to the image where a reader is careless.
  const HOSTILE: Record<string, () => Buffer> = {
    'a descriptor of empty lines': () => Buffer.from(`version=1\n${'\n'.repeat(1 << 19)}encoding\n`),
    'a descriptor of blanks': () => Buffer.from(`version=1\nCID=1${' '.repeat(1 << 19)}x\nRW 1${' '.repeat(1 << 18)}x`),
    'a descriptor of quotes': () => Buffer.from(`version=1\nCID=1\nRW 1 FLAT "${'"'.repeat(1 << 19)}\n`),
    'a descriptor of 50,000 extents': () => Buffer.from(`version=1\nCID=1\nparentCID=ffffffff\n${'RW 9 ZERO\nRW 0 ZERO\n'.repeat(50_000)}`),
    'a qcow2 image of 2 PiB without tables': () => qcow2Header(2n ** 51n, 16, 1 << 22),
    'a qcow2 image of 2^63 bytes': () => qcow2Header(2n ** 63n, 21, 1 << 22),
    'a qcow2 image of small clusters that claims all tables': () => qcow2Header(2n ** 37n, 9, 1 << 22).fill(0xff, 512, 1 << 20),
  }
  for (const [name, make] of Object.entries(HOSTILE)) {
    test(`${name} is refused, or read as it is`, async () => {
      await survives(new Random(seed), make(), new Map())
    })
  }
})
