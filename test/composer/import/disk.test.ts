/**
 * Import of disks: the tree is what the kernel shows, the map is the disk, and a newer image of it costs what has changed.
 * Debian packages: e2fsprogs, dosfstools, mtools, fdisk, qemu-utils.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { appendFileSync, cpSync, mkdirSync, readFileSync, rmSync, symlinkSync, truncateSync, unlinkSync, utimesSync, writeFileSync } from 'node:fs'
import test, { describe } from 'node:test'
import { RangesBuilder } from '@varve/images/blockmap/ranges.ts'
import type { Ranges } from '@varve/images/blockmap/ranges.ts'
import { FileDevice } from '@varve/images/device/file-device.ts'
import { isVarveError } from '@varve/images/errors.ts'
import { importTrees } from '@varve/composer/import/import-layer.ts'
import { importDiskLayer } from '@varve/composer/import/import-disk-layer.ts'
import { Random, testSeed } from '../../random.ts'
import { ScratchDirectory } from '../../varve-command.ts'
import { DiskHome, RealVolume, assertSameDisk, bytesOfFile } from './disk-home.ts'
import { assertSameLines, listDirectory, listTree } from './listing.ts'
import { makeRandomTree } from './sample-tree.ts'

const seed = testSeed()
const MIB = 1 << 20

/** Files of all sizes, some in pieces all over the disk, some of which were deleted. */
function fill(root: string, random: Random): void {
  mkdirSync(`${root}/tree`)
  makeRandomTree(`${root}/tree`, random, { entries: 150, xattrs: true, holes: true, nanoseconds: true })
  for (let round = 0; round < 20; round++) {
    for (let file = 0; file < 8; file++) appendFileSync(`${root}/piecewise-${file}`, random.bytes(random.between(1, 40_000)))
    if (round % 3 === 0) rmSync(`${root}/piecewise-${random.below(8)}`, { force: true })
  }
  writeFileSync(`${root}/large`, random.bytes(random.between(17 * MIB, 18 * MIB)))
  writeFileSync(`${root}/database`, Buffer.concat([Buffer.from('SQLite format 3\0'), random.bytes(700_000)]))
  writeFileSync(`${root}/deleted`, random.bytes(3 * MIB))
  execFileSync('sync', ['-f', root])
  unlinkSync(`${root}/deleted`)
}

/** What two files of one size differ in. */
function changedBlocks(before: Buffer, after: Buffer, blockBytes = 1024): Ranges {
  const ranges = new RangesBuilder()
  for (let at = 0; at < after.length; at += blockBytes) if (!before.subarray(at, at + blockBytes).equals(after.subarray(at, at + blockBytes))) ranges.add(at, Math.min(blockBytes, after.length - at))
  return ranges.build()
}

function emptyDisk(file: string, sizeBytes: number): string {
  writeFileSync(file, '')
  truncateSync(file, sizeBytes)
  return file
}

describe('import of a disk', () => {
  test(`the tree is what the kernel shows, and the map is the disk (seed ${seed})`, async () => {
    using scratch = new ScratchDirectory('disk')
    await using to = await DiskHome.open()
    const random = new Random(seed)
    const file = emptyDisk(scratch.join('disk.img'), 96 * MIB)
    using volume = new RealVolume(file, { sizeBytes: 96 * MIB, mkfs: random.pick([[], ['-b', '1024'], ['-O', '^extents,^64bit'], ['-O', 'inline_data']]) })
    const expected = await volume.mounted((root) => {
      fill(root, random)
      return listDirectory(root, { holes: true })
    })
    const { layer, figures } = await to.import(file)
    assertSameLines(listTree(await to.tree(layer), to.home.store, { holes: true }), expected, `seed ${seed}`)
    assert.deepEqual(figures.problems, [])
    assert.ok(assertSameDisk(await to.disk(layer), bytesOfFile(file)) >= (2 * MIB) / 512, 'what nothing uses is not kept')
    const kept = await to.import(file, { keepFree: true })
    assert.ok((await to.disk(kept.layer)).equals(bytesOfFile(file)))
    assert.equal(Buffer.compare(kept.layer.digest, layer.digest), 0)
    execFileSync('e2fsck', ['-fn', writeFile(scratch.join('back.img'), await to.disk(layer))], { stdio: 'pipe' })
  })

  test(`files are cut as those of a directory are: their chunks are there already (seed ${seed})`, async () => {
    using scratch = new ScratchDirectory('disk')
    await using to = await DiskHome.open()
    const file = emptyDisk(scratch.join('disk.img'), 96 * MIB)
    using volume = new RealVolume(file, { sizeBytes: 96 * MIB })
    await volume.mounted(async (root) => {
      fill(root, new Random(seed))
      execFileSync('sync', ['-f', root])
      await importTrees({ store: to.home.store, source: `dir:${root}`, workers: 2 })
    })
    const { figures } = await to.import(file)
    assert.ok(figures.written.bytesNew < 2 * MIB, `${figures.written.bytesNew} bytes are new: metadata and no more`)
  })

  test(`a disk of several volumes is one tree, mounted as its fstab says (seed ${seed})`, async () => {
    using scratch = new ScratchDirectory('disk')
    await using to = await DiskHome.open()
    const file = emptyDisk(scratch.join('disk.img'), 120 * MIB)
    execFileSync('sfdisk', ['-q', file], { input: 'label: gpt\nstart=2048, size=32768, type=uefi\nstart=40960, size=98304\nstart=143360, size=65536\n' })
    const [efi, root, data] = [{ type: 'vfat', offset: MIB, sizeBytes: 16 * MIB }, { offset: 20 * MIB, sizeBytes: 48 * MIB }, { offset: 70 * MIB, sizeBytes: 32 * MIB, mkfs: ['-L', 'stuff'] }].map((options) => new RealVolume(file, options))
    execFileSync('mcopy', ['-i', `${file}@@${MIB}`, '/etc/hostname', '::EFI.TXT'])
    await root.mounted((at) => {
      for (const name of ['etc', 'sbin', 'boot', 'boot/efi', 'srv']) mkdirSync(`${at}/${name}`)
      writeFileSync(`${at}/etc/fstab`, '# comment\nLABEL=stuff\t/srv/my\\040data ext4 defaults 0 2\n/dev/sda1 /boot/efi vfat umask=0077 0 1\n')
      symlinkSync('../lib/systemd/systemd', `${at}/sbin/init`)
    })
    await data.mounted((at) => writeFileSync(`${at}/file`, 'data'))
    const { layer, figures } = await to.import(file)
    const tree = await to.tree(layer)
    for (const path of ['etc/fstab', 'srv/my data/file', 'boot/efi/EFI.TXT']) assert.ok(tree.find(path) > 0, path)
    assert.deepEqual(figures.problems, [])
    assertSameDisk(await to.disk(layer), bytesOfFile(file))
    void efi
  })

  test('a disk without a filesystem is a layer too: a disk, and no files', async () => {
    using scratch = new ScratchDirectory('disk')
    await using to = await DiskHome.open()
    const file = writeFile(scratch.join('disk.img'), Buffer.concat([new Random(seed).bytes(300_000), Buffer.alloc(100_000), new Random(seed).bytes(50_001)]))
    const { layer } = await to.import(file)
    assert.equal(layer.content, 'block map')
    assert.ok((await to.disk(layer)).equals(readFileSync(file)))
  })

  test(`a newer image reads and stores what has changed, with a list and without, and is what it would be without the older (seed ${seed})`, async () => {
    using scratch = new ScratchDirectory('disk')
    await using to = await DiskHome.open()
    await using anew = await DiskHome.open()
    const random = new Random(seed)
    const file = emptyDisk(scratch.join('disk.img'), 96 * MIB)
    using volume = new RealVolume(file, { sizeBytes: 96 * MIB })
    await volume.mounted((root) => {
      fill(root, random)
      // What was changed just now is not trusted; a later change makes all of this older.
      execFileSync('sleep', ['3.1'])
      writeFileSync(`${root}/later`, 'x')
    })
    const before = bytesOfFile(file)
    const first = await to.import(file)
    await volume.mounted((root) => {
      appendFileSync(`${root}/large`, random.bytes(70_000))
      writeFileSync(`${root}/tree/new`, random.bytes(300_000))
      rmSync(`${root}/piecewise-3`, { force: true })
      const database = readFileSync(`${root}/database`)
      database.fill(7, 200_000, 200_010)
      writeFileSync(`${root}/database`, database)
      utimesSync(`${root}/later`, 1, 1)
    })
    const after = bytesOfFile(file)
    const expected = (await anew.import(file)).layer
    const same = async (layer: typeof expected, how: string): Promise<void> => {
      assert.equal(Buffer.compare(layer.digest, expected.digest), 0, `the tree, ${how}`)
      assert.equal(assertSameDisk(await to.disk(layer), after, how), assertSameDisk(await anew.disk(expected), after), how)
    }
    const listed = await to.import(file, { changed: changedBlocks(before, after) })
    await same(listed.layer, 'with a list')
    assert.ok(listed.figures.bytesRead < 5 * MIB && listed.figures.filesUnchanged > listed.figures.files * 0.8, JSON.stringify(listed.figures))
    await same((await to.import(file, { base: `vm@${first.layer.version}`, changed: changedBlocks(before, after, 65_536) })).layer, 'with a coarse list')
    const unlisted = await to.import(file, { base: `vm@${first.layer.version}` })
    await same(unlisted.layer, 'without a list')
    const again = await to.import(file)
    await same(again.layer, 'unchanged')
    assert.equal(again.figures.written.chunksNew, 0)
    await same((await to.import(file, { reread: true })).layer, 'reread')
  })

  test(`a disk that has grown or shrunk is taken as it is now (seed ${seed})`, async () => {
    using scratch = new ScratchDirectory('disk')
    await using to = await DiskHome.open()
    const random = new Random(seed)
    const file = writeFile(scratch.join('disk.img'), random.bytes(500_000))
    await to.import(file)
    appendFileSync(file, random.bytes(200_000))
    const none = new RangesBuilder().build()
    assert.ok((await to.disk((await to.import(file, { changed: none })).layer)).equals(readFileSync(file)))
    truncateSync(file, 100_001)
    assert.ok((await to.disk((await to.import(file, { changed: none })).layer)).equals(readFileSync(file)))
  })

  test('files that claim the same blocks, and blocks that are said to be free, make nothing wrong of the disk', async () => {
    using scratch = new ScratchDirectory('disk')
    await using to = await DiskHome.open()
    const random = new Random(seed)
    const file = emptyDisk(scratch.join('disk.img'), 32 * MIB)
    using volume = new RealVolume(file, { sizeBytes: 32 * MIB, mkfs: ['-b', '4096', '-O', '^metadata_csum'] })
    await volume.mounted((root) => {
      for (const name of ['one', 'two', 'three']) writeFileSync(`${root}/${name}`, random.bytes(100_000))
    })
    const debugfs = (request: string): string => execFileSync('debugfs', ['-w', '-R', request, file], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] })
    // The extent of `two` leads where that of `one` does, 8 blocks further; blocks of `three` are free.
    const block = Number(/^(\d+)/.exec(debugfs('blocks one'))![1])
    debugfs(`sif two block[5] ${block + 8}`)
    debugfs(`freeb ${debugfs('blocks three').split(' ')[3]} 5`)
    const { layer } = await to.import(file)
    assertSameDisk(await to.disk(layer), bytesOfFile(file))
    const tree = await to.tree(layer)
    const first = (name: string): Uint8Array => to.home.store.get(tree.chunkDigest(tree.pieceChunk[tree.firstPiece[tree.inode[tree.find(name)]]]))
    assert.ok(Buffer.from(first('two')).subarray(0, 60_000).equals(Buffer.from(first('one')).subarray(8 * 4096, 8 * 4096 + 60_000)), 'both files have what their extents say')
    assert.equal(first('three').length, 100_000)
  })

  test(`whatever a disk holds, it is imported as it is, or refused clearly (seed ${seed})`, { timeout: 600_000 }, async () => {
    using scratch = new ScratchDirectory('disk')
    const random = new Random(seed)
    const sound = emptyDisk(scratch.join('sound.img'), 12 * MIB)
    using volume = new RealVolume(sound, { sizeBytes: 12 * MIB, mkfs: ['-O', '^metadata_csum', '-N', '400'] })
    await volume.mounted((root) => makeRandomTree(root, random, { entries: 120, xattrs: true, holes: true }))
    const metadata = changedBlocks(Buffer.alloc(12 * MIB), bytesOfFile(sound))
    const file = scratch.join('damaged.img')
    await using to = await DiskHome.open()
    for (let round = 0; round < Number(process.env.VARVE_DISK_FUZZ ?? 40); round++) {
      const bytes = bytesOfFile(sound)
      for (let count = random.between(1, 30); count > 0; count--) {
        const range = random.below(metadata.length / 2) * 2
        const at = metadata[range] + random.below(Math.min(metadata[range + 1] - metadata[range], 8192))
        if (random.chance(0.5)) bytes[at] = random.below(256)
        else bytes.writeUInt32LE(random.pick([0, 1, 0xffffffff, 0x7fffffff, random.uint32(), 40]), Math.min(at - (at % 4), bytes.length - 4))
      }
      writeFileSync(file, bytes)
      try {
        const { layer } = await to.import(file, { reread: true, name: `round-${round}` })
        assertSameDisk(await to.disk(layer), bytes, `seed ${seed}, round ${round}`)
        if (layer.content === 'tree') await to.tree(layer)
      } catch (error) {
        assert.ok(isVarveError(error), `seed ${seed}, round ${round}: ${String((error as Error).stack)}`)
      }
    }
  })

  test('an image inside of an image format is the same disk', async () => {
    using scratch = new ScratchDirectory('disk')
    await using to = await DiskHome.open()
    const file = emptyDisk(scratch.join('disk.img'), 40 * MIB)
    using volume = new RealVolume(file, { sizeBytes: 40 * MIB })
    await volume.mounted((root) => cpSync('/usr/share/common-licenses', `${root}/licenses`, { recursive: true }))
    const { layer } = await to.import(file)
    for (const [format, ...options] of [['qcow2', '-c'], ['vmdk'], ['vpc', '-o', 'force_size=on']]) {
      const image = scratch.join(`disk.${format}`)
      execFileSync('qemu-img', ['convert', '-f', 'raw', '-O', format, ...options, file, image])
      const of = await to.import(image, { name: format })
      assert.deepEqual([of.layer.digest, of.layer.map].map((digest) => Buffer.from(digest!).toString('hex')), [layer.digest, layer.map].map((digest) => Buffer.from(digest!).toString('hex')), format)
    }
  })

  test('a disk that cannot be read ends the import, and leaves no layer', async () => {
    await using to = await DiskHome.open()
    using scratch = new ScratchDirectory('disk')
    await using file = FileDevice.open({ path: writeFile(scratch.join('disk.img'), new Random(seed).bytes(300_000)), readOnly: true })
    const failing = { sizeBytes: file.sizeBytes, read: (into: Uint8Array, offset: number) => (offset > 100_000 ? Promise.reject(new Error('a bad sector')) : file.read(into, offset)) }
    await assert.rejects(importDiskLayer({ home: to.home, name: 'vm', kind: 'base', disk: failing, source: 'disk:test' }), /a bad sector/)
    assert.deepEqual(await to.home.catalog.layers(), [])
  })
})

function writeFile(file: string, bytes: Uint8Array): string {
  writeFileSync(file, bytes)
  return file
}
