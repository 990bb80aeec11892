/** What FAT has and mtools does not write: orphans of long names, other tables, bits of state, lone surrogates, huge files in pieces. And what is refused. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { test } from 'node:test'
import { MemoryDevice } from '@varve/images/device/memory-device.ts'
import { isVarveError } from '@varve/images/errors.ts'
import { openFat } from '@varve/images/filesystems/fat/reader.ts'
import type { VolumeFilesystem } from '@varve/images/filesystems/filesystem.ts'
import { walk } from '@varve/images/filesystems/walk.ts'
import { Random } from '../../../random.ts'
import { FatBytes, longEntries, shortEntry } from './fat-bytes.ts'
import type { FatImageOptions } from './fat-image.ts'
import { FatImage } from './fat-image.ts'

const MIB = 1 << 20
const FAT16: FatImageOptions = { bits: 16, sizeBytes: 4 * MIB, sectorsPerCluster: 1 }
const FAT32: FatImageOptions = { bits: 32, sizeBytes: 2 * MIB, sectorsPerCluster: 1 }

const open = (volume: FatBytes) => openFat(MemoryDevice.of(volume.bytes))
const named = (text: string): string => Buffer.from(text).toString('latin1')
const refused = (message: RegExp) => (error: unknown) => isVarveError(error, 'FORMAT_INVALID') && message.test(error.message)

async function namesOf(filesystem: VolumeFilesystem): Promise<string[]> {
  return (await filesystem.list(filesystem.root)).map(({ name }) => Buffer.from(name, 'latin1').toString())
}

async function idOf(filesystem: VolumeFilesystem, name: string): Promise<number> {
  return (await filesystem.child(filesystem.root, named(name))) ?? assert.fail(name)
}

test('a long name that is not whole, or of another short name, is left out', async () => {
  const volume = new FatBytes(FAT16)
  const [a, b, c, d, e] = ['ONE     TXT', 'TWO     TXT', 'THREE   TXT', 'FOUR    TXT', 'FIVE    TXT']
  const long = 'a name in three entries, no less'
  const broken = longEntries(long, c)
  broken[1][13] ^= 1
  const deleted = longEntries(long, d)[0]
  deleted[0] = 0xe5
  volume.addRoot(
    ...longEntries('whole and its own', a), shortEntry({ short: a }),
    ...longEntries('of another', a), shortEntry({ short: b }),
    ...broken, shortEntry({ short: c }),
    // An orphan, then the one that counts.
    longEntries(long, d)[0], deleted, ...longEntries('the second', d), shortEntry({ short: d }),
    ...longEntries(long, e).slice(1), shortEntry({ short: e }),
    ...longEntries('volume labels have no names', 'LATER      '), shortEntry({ short: 'LATER      ', attributes: 0x08 }),
  )
  assert.deepEqual(await namesOf(await open(volume)), ['whole and its own', 'TWO.TXT', 'THREE.TXT', 'the second', 'FIVE.TXT'])
})

test('short names are of code page 437, in lower case where Windows says so', async () => {
  const volume = new FatBytes(FAT16)
  volume.addRoot(
    shortEntry({ short: 'GR\x99\xe1E   TXT', lower: 0x08 }),
    shortEntry({ short: '\x80A      \x8e\x90\xa5', lower: 0x18 }),
    shortEntry({ short: '\x05ABC       ', lower: 0 }),
    shortEntry({ short: 'NO      EXT', lower: 0x10 }),
    shortEntry({ short: '\xe2\xe4\xea        ', lower: 0x08 }),
    shortEntry({ short: '\xe5ELETED    ' }),
  )
  // Of Γ, Σ and Ω, the code page has σ only.
  assert.deepEqual(await namesOf(await open(volume)), ['größe.TXT', 'ça.äéñ', 'σABC', 'NO.ext', 'ΓσΩ'])
})

test('names are found by long and short name in any case, lone halves of surrogate pairs by themselves', async () => {
  const volume = new FatBytes(FAT32)
  for (const [index, name] of ['Größe und Ж.text', 'half \ud83d of', '😀', 'x'.repeat(255), 'sharp ß'].entries()) {
    const short = `SHORT~${index}    `
    volume.addRoot(...longEntries(name, short), shortEntry({ short }))
  }
  // The root goes on behind its first cluster.
  const filesystem = await openFat(MemoryDevice.of(longRoot(volume)))
  assert.deepEqual((await filesystem.list(filesystem.root)).map(({ name }) => name), [named('Größe und Ж.text'), 'half \xed\xa0\xbd of', named('😀'), 'x'.repeat(255), named('sharp ß')])
  const first = await idOf(filesystem, 'Größe und Ж.text')
  assert.equal(await idOf(filesystem, 'GRÖßE und ж.TEXT'), first)
  assert.equal(await idOf(filesystem, 'short~0'), first)
  assert.equal(await filesystem.child(filesystem.root, 'HALF \xed\xa0\xbd OF'), await idOf(filesystem, 'SHORT~1'))
  assert.equal(await filesystem.child(filesystem.root, named('sharp SS')), undefined)
})

/** What `addRoot` wrote behind the first cluster of a FAT32 root is in the second, third, ... */
function longRoot(volume: FatBytes): Buffer {
  volume.chain(...Array.from({ length: 8 }, (_, index) => 2 + index))
  return volume.bytes
}

test('the label in the root comes before the one of the boot sector', async () => {
  for (const shape of [FAT16, FAT32]) {
    const volume = new FatBytes(shape)
    const bootLabel = shape.bits === 32 ? 71 : 43
    volume.bytes.write('BOOT       ', bootLabel, 'latin1')
    assert.equal((await open(volume)).label, 'AGED')
    volume.addRoot(shortEntry({ short: 'LATER      ', attributes: 0x08 }))
    // The first one counts; deleted ones do not.
    volume.bytes[volume.bytes.lastIndexOf('AGED       ')] = 0xe5
    assert.equal((await open(volume)).label, 'LATER')
    volume.bytes[volume.bytes.lastIndexOf('LATER      ')] = 0xe5
    assert.equal((await open(volume)).label, 'BOOT')
    volume.bytes.write('NO NAME    ', bootLabel, 'latin1')
    assert.equal((await open(volume)).label, '')
    volume.bytes[bootLabel - 5] = 0
    assert.equal((await open(volume)).uuid, '')
  }
})

test('a volume in use, or with errors, is unclean by its table and by its boot sector', async () => {
  for (const [shape, clean, inUse, state] of [[FAT16, 0xffff, 0x7fff, 37], [FAT32, 0x0fffffff, 0x07ffffff, 65]] as const) {
    const volume = new FatBytes(shape)
    assert.equal((await open(volume)).unclean, false)
    volume.link(1, inUse)
    assert.equal((await open(volume)).unclean, true)
    volume.link(1, clean)
    volume.bytes[state] |= 1
    assert.equal((await open(volume)).unclean, true)
  }
})

test('of several tables, the one that FAT32 says is active is read', async () => {
  const volume = new FatBytes(FAT32)
  volume.addRoot(shortEntry({ short: 'FILE       ', first: 10, sizeBytes: 1024 }))
  volume.chain(10, 11)
  volume.link(10, 20, 1)
  volume.link(20, 0x0fffffff, 1)
  const placesOf = async () => {
    const filesystem = await open(volume)
    return (await filesystem.extents(await idOf(filesystem, 'FILE'))).map(({ diskOffset }) => diskOffset)
  }
  assert.deepEqual(await placesOf(), [volume.offset(10)])
  volume.bytes.writeUInt16LE(0x81, 40)
  assert.deepEqual(await placesOf(), [volume.offset(10), volume.offset(20)])
  volume.bytes.writeUInt16LE(0x82, 40)
  await assert.rejects(open(volume), refused(/active one/))
})

test('times are taken for UTC; a change is the later one of creation and modification', async () => {
  const volume = new FatBytes(FAT16)
  // 2024-02-29 and 2107-12-31.
  const [leap, last] = [(44 << 9) | (2 << 5) | 29, (127 << 9) | (12 << 5) | 31]
  const late = (23 << 11) | (59 << 5) | 29
  volume.addRoot(
    shortEntry({ short: 'COPY       ', created: { date: last, time: late, hundredths: 199 }, modified: { date: leap, time: late } }),
    shortEntry({ short: 'WRITTEN    ', created: { date: leap, time: 0, hundredths: 7 }, modified: { date: last, time: 0 } }),
    shortEntry({ short: 'NEVER      ', created: { date: 0, time: 0, hundredths: 0 }, modified: { date: 0, time: 0 } }),
  )
  const filesystem = await open(volume)
  const times = async (name: string) => {
    const { modified, changed } = await filesystem.node(await idOf(filesystem, name))
    return [modified, changed].map(({ seconds, nanoseconds }) => new Date(seconds * 1000 + nanoseconds / 1e6).toISOString())
  }
  assert.deepEqual(await times('COPY'), ['2024-02-29T23:59:58.000Z', '2107-12-31T23:59:59.990Z'])
  assert.deepEqual(await times('WRITTEN'), ['2107-12-31T00:00:00.000Z', '2107-12-31T00:00:00.000Z'])
  assert.deepEqual(await times('NEVER'), ['1980-01-01T00:00:00.000Z', '1980-01-01T00:00:00.000Z'])
})

test('room that was kept for a file behind its end is not of its content, and not unused', async () => {
  const volume = new FatBytes(FAT16)
  volume.addRoot(shortEntry({ short: 'KEPT       ', first: 10, sizeBytes: 700 }), shortEntry({ short: 'EMPTY      ', first: 20 }))
  volume.chain(10, 11, 12)
  volume.chain(20)
  const filesystem = await open(volume)
  assert.deepEqual(await filesystem.extents(await idOf(filesystem, 'KEPT')), [{ fileOffset: 0, length: 700, diskOffset: volume.offset(10) }])
  assert.deepEqual(await filesystem.extents(await idOf(filesystem, 'EMPTY')), [])
  const unused = []
  for await (const { offset, length } of filesystem.unused()) unused.push([(offset - volume.offset(2)) / 512, length / 512])
  assert.deepEqual(unused.slice(0, 2), [[0, 8], [11, 7]])
})

test('chains that are damaged are refused, and say where', async () => {
  const damages: [(volume: FatBytes) => void, RegExp][] = [
    [(volume) => volume.chain(10, 11), /has 2 clusters, and its size takes 3/],
    [(volume) => {
      volume.chain(10, 11, 12)
      volume.link(11, 10)
    }, /lead back to 10/],
    [(volume) => {
      volume.chain(10, 11, 12)
      volume.link(11, 0xfff7)
    }, /cluster 11 .* bad/],
    [(volume) => {
      volume.chain(10, 11)
      volume.link(11, 0)
    }, /cluster 11 .* free/],
    [(volume) => volume.chain(10, 0xfff0), /lead to 65520, which there is not/],
  ]
  for (const [damage, message] of damages) {
    const volume = new FatBytes(FAT16)
    volume.addRoot(shortEntry({ short: 'FILE       ', first: 10, sizeBytes: 1500 }))
    damage(volume)
    const filesystem = await open(volume)
    const id = await idOf(filesystem, 'FILE')
    await assert.rejects(filesystem.extents(id), refused(message))
    await assert.rejects(filesystem.read(id, new Uint8Array(1), 0), refused(message))
  }
})

test('of two chains that share a cluster, the second that is asked for is refused, the first as often as it is asked for is not', async () => {
  const volume = new FatBytes(FAT16)
  volume.addRoot(shortEntry({ short: 'ONE        ', first: 10, sizeBytes: 1500 }), shortEntry({ short: 'TWO        ', first: 20, sizeBytes: 1500 }))
  volume.chain(10, 11, 12)
  volume.chain(20, 21)
  volume.link(21, 12)
  const filesystem = await open(volume)
  for (let round = 0; round < 2; round++) {
    await filesystem.extents(await idOf(filesystem, 'ONE'))
    await assert.rejects(async () => filesystem.extents(await idOf(filesystem, 'TWO')), refused(/another file or directory/))
  }
})

test('directories in a circle end a walk', async () => {
  for (const shape of [FAT16, FAT32]) {
    const volume = new FatBytes(shape)
    const directory = (short: string, first: number) => shortEntry({ short, attributes: 0x10, first })
    volume.addRoot(directory('SUB        ', 10), directory('ROOT       ', shape.bits === 32 ? 2 : 0), directory('SELF       ', 11))
    volume.chain(10)
    volume.chain(11)
    volume.write(10, directory('.          ', 10), directory('..         ', 0), directory('AGAIN      ', 10))
    volume.write(11, directory('DEEPER     ', 10))
    const paths: string[] = []
    const damaged: string[] = []
    for await (const { path } of walk(await open(volume), { damaged: (path) => damaged.push(path) })) paths.push(path)
    assert.deepEqual(paths, ['', 'SUB', 'SUB/AGAIN', 'ROOT', 'SELF', 'SELF/DEEPER'])
    assert.deepEqual(damaged, ['SUB/AGAIN', 'ROOT', 'SELF/DEEPER'])
  }
})

test('a file of 4 GiB in clusters of 4 KiB, no two of them neighbours, is read', async () => {
  using image = new FatImage({ bits: 32, sizeBytes: 9 * 1024 * MIB, sectorsPerCluster: 8, fats: 1 })
  const boot = execFileSync('head', ['-c', '512', image.path])
  const device = new MemoryDevice(9 * 1024 * MIB)
  const fatOffset = boot.readUInt16LE(14) * 512
  const heapOffset = fatOffset + boot.readUInt32LE(36) * 512
  const clusters = 2 ** 20
  // From the far end to the near one, every other cluster.
  const table = Buffer.alloc(4 * (2 * clusters + 4))
  const clusterAt = (index: number): number => 2 * (clusters - index) + 2
  table.writeUInt32LE(0x0ffffff8, 0)
  table.writeUInt32LE(0x0fffffff, 4)
  table.writeUInt32LE(0x0fffffff, 8)
  for (let index = 0; index < clusters; index++) table.writeUInt32LE(index + 1 < clusters ? clusterAt(index + 1) : 0x0fffffff, 4 * clusterAt(index))
  device.write(boot, 0)
  device.write(table, fatOffset)
  device.write(shortEntry({ short: 'LARGE      ', first: clusterAt(0), sizeBytes: 0xffffffff }), heapOffset)
  const content = new Random(4).bytes(3 * 4096)
  for (let index = 0; index < 3; index++) device.write(content.subarray(4096 * index, 4096 * (index + 1)), heapOffset + (clusterAt(700_000 + index) - 2) * 4096)
  const filesystem = await openFat(device)
  const id = await idOf(filesystem, 'LARGE')
  assert.equal((await filesystem.extents(id)).length, clusters)
  const bytes = Buffer.alloc(content.length)
  await filesystem.read(id, bytes, 700_000 * 4096)
  assert.ok(bytes.equals(content))
  await filesystem.read(id, bytes, 0xffffffff - bytes.length)
  assert.ok(bytes.every((byte) => byte === 0))
})
