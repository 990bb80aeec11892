/** What exFAT has and the drivers at hand do not write: Windows' unwritten ends, time zones, TexFAT, backups, entries of vendors, volumes of terabytes. And what is refused. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { ReadableDisk } from '@varve/images/device/block-device.ts'
import { isVarveError } from '@varve/images/errors.ts'
import type { ErrorCode } from '@varve/images/errors.ts'
import { openExfat } from '@varve/images/filesystems/exfat/reader.ts'
import type { VolumeFilesystem } from '@varve/images/filesystems/filesystem.ts'
import { walk } from '@varve/images/filesystems/walk.ts'
import { Random } from '../../../random.ts'
import { SyntheticExfat, fileEntries } from './synthetic-exfat.ts'
import type { SyntheticFile } from './synthetic-exfat.ts'

const MIB = 1 << 20

/** A volume with these files in its root. */
function volumeOf(...files: SyntheticFile[]): SyntheticExfat {
  const volume = new SyntheticExfat({ sizeBytes: 8 * MIB })
  volume.writeRoot(...files.map(fileEntries))
  return volume
}

async function idOf(filesystem: VolumeFilesystem, name: string): Promise<number> {
  return (await filesystem.child(filesystem.root, Buffer.from(name).toString('latin1'))) ?? assert.fail(name)
}

async function contentOf(filesystem: VolumeFilesystem, name: string): Promise<Buffer> {
  const id = await idOf(filesystem, name)
  const bytes = Buffer.alloc((await filesystem.node(id)).sizeBytes, 0xa5)
  await filesystem.read(id, bytes, 0)
  return bytes
}

const refused = (code: ErrorCode, message: RegExp) => (error: unknown) => isVarveError(error, code) && message.test(error.message)

test('what was not written of a file is a hole', async () => {
  const volume = new SyntheticExfat({ sizeBytes: 8 * MIB })
  const { free } = volume
  const content = new Random(1).bytes(4 * 4096)
  volume.device.write(content, volume.offset(free))
  volume.writeRoot(fileEntries({ name: 'part', sizeBytes: 14_000, validBytes: 5000, first: free, isContiguous: true }))
  const filesystem = await openExfat(volume.device)
  assert.deepEqual(await filesystem.extents(await idOf(filesystem, 'part')), [{ fileOffset: 0, length: 5000, diskOffset: volume.offset(free) }])
  assert.deepEqual(await contentOf(filesystem, 'part'), Buffer.concat([content.subarray(0, 5000), Buffer.alloc(9000)]))
})

test('a chain in pieces is read in its order, neighbours as one extent', async () => {
  const volume = new SyntheticExfat({ sizeBytes: 8 * MIB })
  const at = volume.free
  const clusters = [at + 8, at + 9, at, at + 1, at + 2, at + 20]
  volume.use(clusters)
  const content = new Random(2).bytes(6 * 4096)
  for (const [index, cluster] of clusters.entries()) volume.device.write(content.subarray(index * 4096, (index + 1) * 4096), volume.offset(cluster))
  volume.writeRoot(fileEntries({ name: 'pieces', sizeBytes: 6 * 4096 - 5, first: at + 8 }))
  const filesystem = await openExfat(volume.device)
  assert.deepEqual((await filesystem.extents(await idOf(filesystem, 'pieces'))).map(({ fileOffset, length, diskOffset }) => [fileOffset, length, (diskOffset! - volume.offset(at)) / 4096]), [[0, 8192, 8], [8192, 12_288, 0], [20_480, 4091, 20]])
  assert.deepEqual(await contentOf(filesystem, 'pieces'), content.subarray(0, -5))
})

test('times have their offset from UTC and their hundredths; without a valid offset they are taken for UTC', async () => {
  // 2026-01-31 23:59:58 and 1.99 seconds.
  const stamp = (46 << 25) | (1 << 21) | (31 << 16) | (23 << 11) | (59 << 5) | 29
  const expected = Date.UTC(2026, 1, 1) / 1000 - 1
  const volume = volumeOf({ name: 'local', stamp, hundredths: 199 }, { name: 'east', stamp, hundredths: 199, utcOffset: 0x80 | 8 }, { name: 'west', stamp, utcOffset: 0x80 | (-20 & 0x7f) }, { name: 'none', stamp: 0 })
  const filesystem = await openExfat(volume.device)
  const modified = async (name: string) => (await filesystem.node(await idOf(filesystem, name))).modified
  assert.deepEqual(await modified('local'), { seconds: expected, nanoseconds: 990_000_000 })
  assert.deepEqual(await modified('east'), { seconds: expected - 2 * 3600, nanoseconds: 990_000_000 })
  assert.deepEqual(await modified('west'), { seconds: expected - 1 + 5 * 3600, nanoseconds: 0 })
  assert.deepEqual(await modified('none'), { seconds: Date.UTC(1980, 0, 1) / 1000, nanoseconds: 0 })
})

test('the active one of two tables and bitmaps is read, and a volume in use is unclean', async () => {
  for (const active of [0, 1] as const) {
    const volume = new SyntheticExfat({ sizeBytes: 8 * MIB, fats: 2, active, flags: 2 })
    volume.use([volume.free, volume.free + 5])
    volume.writeRoot(fileEntries({ name: 'two', sizeBytes: 8192, first: volume.free }))
    const filesystem = await openExfat(volume.device)
    assert.equal(filesystem.unclean, true)
    assert.equal((await filesystem.extents(await idOf(filesystem, 'two'))).length, 2)
    const unused = []
    for await (const { offset } of filesystem.unused()) unused.push((offset - volume.offset(volume.free)) / 4096)
    assert.deepEqual(unused, [1, 6])
  }
})

test('the backup boot region stands in for the main one, and says nothing of whether the volume was in use', async () => {
  for (const [sectorShift, damaged] of [[9, 3], [9, 5 * 512], [12, 8], [12, 100]]) {
    const volume = new SyntheticExfat({ sizeBytes: 8 * MIB, sectorShift })
    volume.device.write(Buffer.from('?'), damaged)
    const { label, uuid, unclean } = await openExfat(volume.device)
    assert.deepEqual({ label, uuid, unclean }, { label: 'Synthetic', uuid: '1234-ABCD', unclean: true })
    volume.device.write(Buffer.from('?'), (12 << sectorShift) + damaged)
    await assert.rejects(openExfat(volume.device), refused('FORMAT_INVALID', /boot/))
  }
})

test('entries that are not needed are left out, those that are needed and not known are refused', async () => {
  const vendor = (type: number) => Buffer.concat([Buffer.from([type]), Buffer.alloc(31, 7)])
  const volume = new SyntheticExfat({ sizeBytes: 8 * MIB })
  const deleted = fileEntries({ name: 'deleted' })
  for (let at = 0; at < deleted.length; at += 32) deleted[at] &= 0x7f
  volume.writeRoot(vendor(0xa0), vendor(0xe0), deleted, fileEntries({ name: 'kept', more: [vendor(0xe0), vendor(0xe1)] }), fileEntries({ name: 'after' }))
  const filesystem = await openExfat(volume.device)
  assert.deepEqual((await filesystem.list(filesystem.root)).map(({ name }) => name), ['kept', 'after'])
  const critical = volumeOf({ name: 'no', more: [vendor(0xc7)] })
  await assert.rejects(async () => (await openExfat(critical.device)).list(1), refused('FORMAT_UNSUPPORTED', /0xc7/))
  const primary = new SyntheticExfat({ sizeBytes: 8 * MIB })
  primary.writeRoot(vendor(0x99))
  await assert.rejects(async () => (await openExfat(primary.device)).list(1), refused('FORMAT_UNSUPPORTED', /0x99/))
})

test('names keep lone halves of surrogate pairs, and are found in any case that the volume knows', async () => {
  const names = ['Some Name.TXT', 'größe', '😀 emoji', 'half\ud83d', 'x'.repeat(255), '漢'.repeat(31)]
  const volume = volumeOf(...names.map((name) => ({ name })))
  const filesystem = await openExfat(volume.device)
  const listed = (await filesystem.list(filesystem.root)).map(({ name }) => name)
  assert.deepEqual(listed, ['Some Name.TXT', 'größe', '😀 emoji', Buffer.from([...Buffer.from('half'), 0xed, 0xa0, 0xbd]), 'x'.repeat(255), '漢'.repeat(31)].map((name) => Buffer.from(name as string).toString('latin1')))
  assert.equal(await idOf(filesystem, 'sOME nAME.txt'), await idOf(filesystem, names[0]))
  assert.equal(await filesystem.child(filesystem.root, 'HALF\xed\xa0\xbd'), await filesystem.child(filesystem.root, listed[3]))
  // This volume's table has no letter but those of ASCII.
  assert.equal(await filesystem.child(filesystem.root, Buffer.from('GRÖSSE').toString('latin1')), undefined)
  assert.equal(await filesystem.child(filesystem.root, Buffer.from('GRößE').toString('latin1')), await idOf(filesystem, 'größe'))
})

test('a set of entries that two pieces of a directory share is one', async () => {
  const volume = new SyntheticExfat({ sizeBytes: 8 * MIB })
  const [first, second, content] = [volume.free, volume.free + 7, volume.free + 9]
  volume.use([first, second])
  // The file entry ends the first cluster, its stream entry begins the second.
  const fillers = Array.from({ length: 42 }, (_, index) => fileEntries({ name: `filler ${index}` }))
  const entries = Buffer.concat([...fillers, Buffer.from([0x05]), Buffer.alloc(31), fileEntries({ name: 'in two', sizeBytes: 3, first: content, isContiguous: true })])
  volume.device.write(entries.subarray(0, 4096), volume.offset(first))
  volume.device.write(entries.subarray(4096), volume.offset(second))
  volume.device.write(Buffer.from('two'), volume.offset(content))
  volume.writeRoot(fileEntries({ name: 'dir', attributes: 0x10, sizeBytes: 8192, first }))
  const filesystem = await openExfat(volume.device)
  const directory = await idOf(filesystem, 'dir')
  assert.equal((await filesystem.list(directory)).length, 43)
  const id = (await filesystem.child(directory, 'IN TWO'))!
  const bytes = Buffer.alloc(3)
  await filesystem.read(id, bytes, 0)
  assert.equal(bytes.toString(), 'two')
})

test('damage is refused where it is met, and says what it is', async () => {
  const { free, root } = new SyntheticExfat({ sizeBytes: 8 * MIB })
  const files: [SyntheticFile, RegExp][] = [
    [{ name: 'beyond', sizeBytes: 4096, first: 0xfffff, isContiguous: true }, /not inside the volume/],
    [{ name: 'huge', sizeBytes: 2 ** 62, first: free }, /cannot be/],
    [{ name: 'valid', sizeBytes: 5, validBytes: 6, first: free }, /cannot be/],
    [{ name: 'chain', sizeBytes: 4096, first: free + 3 }, /marked as free/],
    [{ name: 'shared', sizeBytes: 4096, first: root, isContiguous: true }, /another file or directory/],
    [{ name: 'dir', attributes: 0x10, sizeBytes: 4096, first: root }, /another file or directory/],
  ]
  for (const [file, message] of files) {
    const filesystem = await openExfat(volumeOf(file).device)
    const [{ id }] = await filesystem.list(filesystem.root)
    await assert.rejects(async () => ((await filesystem.node(id)).kind === 1 ? filesystem.extents(id) : filesystem.list(id)), refused('FORMAT_INVALID', message), file.name)
  }
  const sum = fileEntries({ name: 'sum' })
  sum[70] ^= 1
  const short = fileEntries({ name: 'a name that takes two entries' })
  const lists: [Buffer, RegExp][] = [
    [sum, /wrong checksum/],
    [short.subarray(0, -32), /not all there/],
    [fileEntries({ name: 'hash', hash: 1 }), /wrong hash/],
    [fileEntries({ name: 'a/b' }), /cannot be/],
    [Buffer.concat([fileEntries({ name: 'same' }), fileEntries({ name: 'same' })]), /two entries/],
  ]
  for (const [entries, message] of lists) {
    const volume = new SyntheticExfat({ sizeBytes: 8 * MIB })
    volume.writeRoot(entries)
    await assert.rejects(async () => (await openExfat(volume.device)).list(1), refused('FORMAT_INVALID', message))
  }
})

test('directories in a circle end a walk', async () => {
  const volume = new SyntheticExfat({ sizeBytes: 8 * MIB })
  const [one, two] = [volume.free, volume.free + 1]
  volume.use([one])
  volume.use([two])
  volume.writeRoot(fileEntries({ name: 'one', attributes: 0x10, sizeBytes: 4096, first: one }))
  volume.write(one, [fileEntries({ name: 'two', attributes: 0x10, sizeBytes: 4096, first: two })])
  volume.write(two, [fileEntries({ name: 'one again', attributes: 0x10, sizeBytes: 4096, first: one })])
  const paths: string[] = []
  const damaged: string[] = []
  for await (const { path } of walk(await openExfat(volume.device), { damaged: (path) => damaged.push(path) })) paths.push(path)
  assert.deepEqual([paths, damaged], [['', 'one', 'one/two', 'one/two/one again'], ['one/two/one again']])
})

test('of a volume of 2 TiB, what is needed is read', async () => {
  const volume = new SyntheticExfat({ sizeBytes: 2 ** 41 })
  const last = volume.clusters + 1
  volume.use([last, last - 2])
  volume.device.write(Buffer.from('the end'), volume.offset(last - 2))
  volume.writeRoot(
    fileEntries({ name: 'far', sizeBytes: 4096 + 7, first: last }),
    // A terabyte that no table links.
    fileEntries({ name: 'large', sizeBytes: 2 ** 40, first: volume.free, isContiguous: true }),
  )
  const counted = new CountedDisk(volume.device)
  const filesystem = await openExfat(counted)
  const bytes = Buffer.alloc(7)
  await filesystem.read(await idOf(filesystem, 'far'), bytes, 4096)
  assert.equal(bytes.toString(), 'the end')
  await filesystem.read(await idOf(filesystem, 'large'), bytes, 2 ** 40 - 7)
  assert.deepEqual(bytes, Buffer.alloc(7))
  assert.ok(counted.readBytes < 1 << 20, `${counted.readBytes} bytes were read`)
  let unusedBytes = 0
  for await (const { length } of filesystem.unused()) unusedBytes += length
  assert.equal(unusedBytes, (volume.clusters - (volume.free - 2) - 2) * 4096)
})

class CountedDisk implements ReadableDisk {
  readBytes = 0
  readonly sizeBytes: number
  readonly #disk: ReadableDisk

  constructor(disk: ReadableDisk) {
    this.#disk = disk
    this.sizeBytes = disk.sizeBytes
  }

  read(into: Uint8Array, offset: number): void | Promise<void> {
    this.readBytes += into.length
    return this.#disk.read(into, offset)
  }
}
