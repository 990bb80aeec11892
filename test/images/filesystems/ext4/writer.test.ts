import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { statSync, truncateSync } from 'node:fs'
import { setTimeout } from 'node:timers/promises'
import { describe, test } from 'node:test'
import type { LayoutSink } from '@varve/images/blockmap/layout-sink.ts'
import { VarveError } from '@varve/images/errors.ts'
import { ext4SizeBytes, writeExt4 } from '@varve/images/filesystems/ext4/writer.ts'
import { TreeBuilder } from '@varve/images/tree/tree-builder.ts'
import { HOLE, Kind } from '@varve/images/tree/tree.ts'
import { Random, testSeed } from '../../../random.ts'
import { compareTree } from '../compare-tree.ts'
import { MemoryTree } from '../memory-tree.ts'
import type { BuiltTree } from '../memory-tree.ts'
import { randomTree } from '../random-tree.ts'
import { Ext4Image, OPTIONS, ext4Time } from './ext4-image.ts'

const MEBIBYTE = 1 << 20
const GIBIBYTE = 1 << 30
const BLOCK_BYTES = 4096

/** A sink that keeps nothing. */
const nowhere: LayoutSink = { bytes: () => undefined, chunk: () => undefined }

/** A sink that hashes what it is told. */
function hashingSink() {
  const hash = createHash('sha256')
  return {
    bytes: (offset: number, bytes: Uint8Array) => void hash.update(`bytes ${offset} ${bytes.length}\n`).update(bytes),
    chunk: (...call: number[]) => void hash.update(`chunk ${call.join(' ')}\n`),
    digest: () => hash.digest('hex'),
  }
}

function smallTree(): BuiltTree {
  const built = new MemoryTree()
  const directory = built.directory(0, 'directory')
  built.file(directory, 'file', [Buffer.from('content\n')])
  built.file(0, 'other', [Buffer.alloc(100_000, 1)])
  return built.build()
}

/** A tree of files whose content is only claimed: `sizesBytes` in chunks of up to 1 MiB. */
function claimedTree(sizesBytes: readonly number[]) {
  const fields = { mode: 0o644, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanoseconds: 0 }
  const builder = new TreeBuilder({ ...fields, kind: Kind.directory })
  let made = 0
  sizesBytes.forEach((sizeBytes, index) => {
    const inode = builder.addInode({ ...fields, kind: Kind.file })
    builder.addEntry(0, `file-${index}`, inode)
    const lengths: number[] = []
    for (let left = sizeBytes; left > 0; left -= lengths[lengths.length - 1]) lengths.push(Math.min(left, MEBIBYTE))
    const chunks = lengths.map((length) => {
      const digest = Buffer.alloc(32)
      digest.writeUInt32LE(++made)
      return builder.addChunk(digest, length)
    })
    builder.setContent(inode, chunks, lengths)
  })
  return builder.build()
}

describe('ext4 writer', () => {
  test('an empty tree is a filesystem with lost+found', () => {
    using image = new Ext4Image(new MemoryTree().build())
    image.check()
    assert.match(image.debugfs('stat /lost+found'), /Size: 16384/)
    assert.match(image.debugfs('stat <2>'), /Links: 3 /)
  })

  test('features and defaults are those of the documentation', () => {
    using image = new Ext4Image(smallTree())
    const text = execFileSync('dumpe2fs', ['-h', image.path], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] })
    const field = (name: string) => new RegExp(`^${name}:\\s*(.*?) *$`, 'm').exec(text)?.[1]
    assert.equal(
      field('Filesystem features'),
      'has_journal ext_attr resize_inode dir_index filetype extent 64bit flex_bg sparse_super large_file huge_file dir_nlink extra_isize metadata_csum',
    )
    assert.equal(field('Filesystem flags'), 'unsigned_directory_hash')
    assert.equal(field('Filesystem UUID'), '0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0')
    assert.equal(field('Filesystem volume name'), 'varve')
    assert.equal(field('Default mount options'), 'user_xattr acl')
    assert.equal(field('Errors behavior'), 'Remount read-only')
    assert.equal(field('Filesystem state'), 'clean')
    assert.equal(field('Checksum type'), 'crc32c')
    assert.equal(Number(field('Free blocks')) * BLOCK_BYTES, image.figures.freeBytes)
    assert.equal(Number(field('Inode count')), image.figures.inodes)
    assert.equal(image.figures.metadataBytes, image.sink.generatedBytes)
  })

  test('the same tree and options give the same bytes', () => {
    const seed = testSeed()
    const once = () => {
      const { tree } = randomTree(new Random(seed))
      const sink = hashingSink()
      writeExt4(tree, sink, { ...OPTIONS, sizeBytes: ext4SizeBytes(tree) })
      return sink.digest()
    }
    assert.equal(once(), once(), `VARVE_TEST_SEED=${seed}`)
  })

  test('a quarter of the content and at least 1 GiB is free unless asked otherwise', () => {
    for (const [contentBytes, wantedBytes] of [[MEBIBYTE, GIBIBYTE], [8 * GIBIBYTE, 2 * GIBIBYTE]]) {
      const tree = claimedTree([contentBytes])
      const sizeBytes = ext4SizeBytes(tree)
      assert.equal(sizeBytes % MEBIBYTE, 0)
      const { freeBytes } = writeExt4(tree, nowhere, { ...OPTIONS, sizeBytes })
      assert.ok(freeBytes >= wantedBytes, `${freeBytes} of ${wantedBytes}`)
      assert.ok(freeBytes <= wantedBytes * 1.02 + contentBytes * 0.02 + 64 * MEBIBYTE, `${freeBytes} of ${wantedBytes}`)
    }
    const tree = claimedTree([MEBIBYTE])
    const { freeBytes } = writeExt4(tree, nowhere, { ...OPTIONS, sizeBytes: ext4SizeBytes(tree, { freeBytes: 300 * MEBIBYTE }) })
    assert.ok(freeBytes >= 300 * MEBIBYTE && freeBytes < 330 * MEBIBYTE, `${freeBytes}`)
  })

  test('a disk that is too small is refused with the size that is enough, before anything is put', () => {
    const built = claimedTree([200 * MEBIBYTE])
    let calls = 0
    const counting = { bytes: () => void calls++, chunk: () => void calls++ }
    assert.throws(
      () => writeExt4(built, counting, { ...OPTIONS, sizeBytes: 150 * MEBIBYTE }),
      (error) => error instanceof VarveError && error.code === 'DISK_TOO_SMALL' && error.message.includes(String(ext4SizeBytes(built, { freeBytes: 0 }))),
    )
    assert.equal(calls, 0)
  })

  test('a size is either laid out, or refused with a larger one that is', () => {
    const seed = testSeed()
    const random = new Random(seed)
    let refused = 0
    for (let round = 0; round < 200; round++) {
      const tree = claimedTree(Array.from({ length: random.between(0, 20) }, () => random.below(random.pick([10_000, 50 * MEBIBYTE]))))
      const least = ext4SizeBytes(tree, { freeBytes: 0 })
      const sizeBytes = Math.max(16 * MEBIBYTE, least + random.pick([0, random.between(-least, 300 * MEBIBYTE), random.below(10 * MEBIBYTE)]))
      const write = (size: number) => writeExt4(tree, nowhere, { ...OPTIONS, sizeBytes: size })
      try {
        assert.ok(write(sizeBytes).sizeBytes <= sizeBytes)
      } catch (error) {
        assert.equal((error as VarveError).code, 'DISK_TOO_SMALL', `VARVE_TEST_SEED=${seed}: ${(error as Error).stack}`)
        refused++
        const enough = Number(/\((\d+) bytes\)/.exec((error as Error).message)?.[1])
        assert.ok(enough > sizeBytes && write(enough).sizeBytes <= enough, `VARVE_TEST_SEED=${seed}`)
      }
    }
    assert.ok(refused > 0 && refused < 150)
  })

  test('sizes around the ends of groups are clean', () => {
    const built = smallTree()
    for (const sizeBytes of [16 * MEBIBYTE, 128 * MEBIBYTE, 128 * MEBIBYTE + BLOCK_BYTES, 129 * MEBIBYTE + 1000, 140 * MEBIBYTE, 2 * GIBIBYTE, 2 * GIBIBYTE + MEBIBYTE, 2 * GIBIBYTE + 20 * MEBIBYTE, 9 * GIBIBYTE]) {
      using image = new Ext4Image(built, { sizeBytes })
      image.check()
    }
  })

  test('many more files than a disk of the size usually has inodes', () => {
    const built = new MemoryTree()
    for (let index = 0; index < 20_000; index++) built.file(0, `file-${index}`)
    using image = new Ext4Image(built.build(), { sizeBytes: 64 * MEBIBYTE })
    image.check()
    assert.ok(image.figures.inodes > 20_000)
  })

  test('data is laid out in the order that is asked for, then directory by directory', () => {
    const built = new MemoryTree()
    const directories = ['b', 'a'].map((name) => built.directory(0, name))
    for (const directory of directories) for (let index = 0; index < 5; index++) built.file(directory, `file-${index}`, [Buffer.from(`${directory} ${index}`)])
    const { tree, content } = built.build()
    const wanted = ['b/file-3', 'a/file-1', 'b', 'b/file-0']
    const laidOut = (order?: number[]) => {
      const contents: string[] = []
      const offsets: number[] = []
      const sink: LayoutSink = { bytes: () => undefined, chunk: (offset, _, chunk) => void (offsets.push(offset), contents.push(Buffer.from(content(chunk)).toString())) }
      writeExt4(tree, sink, { ...OPTIONS, sizeBytes: 64 * MEBIBYTE, order })
      offsets.forEach((offset, index) => assert.equal(offset, offsets[0] + index * BLOCK_BYTES))
      return contents
    }
    const [b, a] = directories
    const natural = [a, b].flatMap((directory) => Array.from({ length: 5 }, (_, index) => `${directory} ${index}`))
    assert.deepEqual(laidOut(), natural)
    const first = [`${b} 3`, `${a} 1`, `${b} 0`]
    assert.deepEqual(laidOut(wanted.map((path) => tree.inode[tree.find(path)])), [...first, ...natural.filter((name) => !first.includes(name))])
  })

  test('whiteouts and links are the caller\'s bug', () => {
    for (const kind of [Kind.whiteout, Kind.link]) {
      const built = new MemoryTree()
      built.add(0, 'name', { kind, target: Buffer.from('elsewhere') })
      const { tree } = built.build()
      assert.throws(() => writeExt4(tree, nowhere, { ...OPTIONS, sizeBytes: 64 * MEBIBYTE }), TypeError)
    }
  })

  test('what ext4 cannot hold is refused by path', () => {
    const cases: [string, (built: MemoryTree) => void][] = [
      ['LIMIT_EXCEEDED', (built) => built.file(0, 'subject', [2 ** 44])],
      ['LIMIT_EXCEEDED', (built) => built.add(0, 'subject', { kind: Kind.block, deviceMajor: 4096, deviceMinor: 0 })],
      ['LIMIT_EXCEEDED', (built) => built.file(0, 'subject', [], { xattrs: Array.from({ length: 300 }, (_, index) => ({ name: `user.${index}`, value: Buffer.alloc(5) })) })],
      ['SOURCE_INVALID', (built) => built.file(0, 'subject', [], { xattrs: [{ name: 'system.posix_acl_access', value: Buffer.alloc(5) }] })],
      ['LIMIT_EXCEEDED', (built) => {
        const inode = built.file(0, 'subject')
        for (let index = 0; index < 65_000; index++) built.link(0, `name ${index}`, inode)
      }],
    ]
    for (const [code, add] of cases) {
      const built = new MemoryTree()
      add(built)
      const { tree } = built.build()
      assert.throws(
        () => writeExt4(tree, nowhere, { ...OPTIONS, sizeBytes: GIBIBYTE }),
        (error) => error instanceof VarveError && error.code === code && /subject|name 0/.test(error.message),
        `${code}: ${add.toString()}`,
      )
    }
  })

  test('times and attributes that ext4 does not have are counted', () => {
    const built = new MemoryTree()
    built.file(0, 'early', [], { mtimeSeconds: -(2 ** 40), mtimeNanoseconds: 5 })
    built.file(0, 'late', [], { mtimeSeconds: 2 ** 40, mtimeNanoseconds: 5 })
    built.file(0, 'foreign', [], { xattrs: [{ name: 'btrfs.compression', value: Buffer.from('zstd') }, { name: 'user.kept', value: Buffer.from('1') }] })
    const done = built.build()
    using image = new Ext4Image(done)
    image.check()
    assert.equal(image.figures.timesClamped, 2)
    assert.equal(image.figures.xattrsDropped, 1)
    assert.deepEqual(compareTree(image.mount('ro'), done, { extraNames: ['lost+found'], time: ext4Time, keepsXattr: (name) => !name.startsWith('btrfs.') }), [])
  })

  test('a lost+found of the tree is kept as it is, with room for e2fsck', () => {
    const built = new MemoryTree()
    const directory = built.directory(0, 'lost+found', { mode: 0o711, uid: 7 })
    built.file(directory, '#12', [Buffer.from('found')])
    const done = built.build()
    using image = new Ext4Image(done)
    image.check()
    assert.match(image.debugfs('stat <11>'), /Type: directory[\s\S]*Size: 16384/)
    assert.deepEqual(compareTree(image.mount('ro'), done), [])
  })

  test('a file larger than a group, with extents around the copies of the superblock', () => {
    const tree = claimedTree([700 * MEBIBYTE, 5 * MEBIBYTE])
    const zeroes = Buffer.alloc(MEBIBYTE)
    using image = new Ext4Image({ tree, content: () => zeroes.subarray(0, MEBIBYTE) }, { sizeBytes: GIBIBYTE })
    image.check()
    assert.match(image.debugfs('ex /file-0'), /0 - {0,}\s*\d+/)
  })

  test('the first mount writes next to nothing', async () => {
    using image = new Ext4Image(smallTree(), { sizeBytes: 3 * GIBIBYTE })
    const allocated = () => statSync(image.path).blocks * 512
    execFileSync('sync', ['-f', image.path])
    const before = allocated()
    image.mount('rw')
    await setTimeout(1500) // lazy initialization would begin at once
    image.unmount()
    assert.ok(allocated() - before <= 256 << 10, `${allocated() - before} bytes were written`)
    image.check()
  })

  test('GRUB finds and reads files', () => {
    const random = new Random(1)
    const built = new MemoryTree()
    const crowd = built.directory(0, 'boot')
    for (let index = 0; index < 2000; index++) built.file(crowd, `file-${index}`)
    const pieces = Array.from({ length: 3000 }, (_, index) => (index % 2 === 0 ? random.bytes(2000) : 6192))
    built.file(crowd, 'kernel', pieces)
    built.symlink(0, 'link', `/${'./'.repeat(50)}boot/kernel`)
    const expected = Buffer.concat(pieces.map((piece) => (typeof piece === 'number' ? Buffer.alloc(piece) : piece)))
    using image = new Ext4Image(built.build())
    for (const path of ['/boot/kernel', '/link']) {
      const read = execFileSync('grub-fstest', [image.path, 'cat', `(loop0)${path}`], { maxBuffer: 1 << 28 })
      assert.ok(read.equals(expected), path)
    }
  })

  test('resize2fs grows it, by the blocks that are reserved for more descriptors', () => {
    const built = smallTree()
    using image = new Ext4Image(built, { sizeBytes: 300 * MEBIBYTE })
    truncateSync(image.path, 20 * GIBIBYTE)
    execFileSync('resize2fs', [image.path], { stdio: 'ignore' })
    image.check()
    assert.match(image.debugfs('stats'), new RegExp(`Block count: +${(20 * GIBIBYTE) / BLOCK_BYTES}\n`))
    assert.match(image.debugfs('stat <2>'), /Inode: 2 /)
    assert.deepEqual(compareTree(image.mount('ro'), built, { extraNames: ['lost+found'] }), [])
  })

  test('64 TiB are laid out in little time and space, by block numbers of more than 32 bits', () => {
    const tree = claimedTree([MEBIBYTE])
    let calls = 0
    let last = 0
    const sink: LayoutSink = { bytes: (offset, bytes) => void (calls++, (last = Math.max(last, offset + bytes.length))), chunk: () => undefined }
    const figures = writeExt4(tree, sink, { ...OPTIONS, sizeBytes: 64 * 2 ** 40 })
    assert.equal(figures.sizeBytes, 64 * 2 ** 40)
    assert.ok(last > 2 ** 32 * BLOCK_BYTES && last <= figures.sizeBytes)
    assert.ok(calls < 70_000, `${calls} calls`)
    assert.throws(() => writeExt4(tree, sink, { ...OPTIONS, sizeBytes: 65 * 2 ** 40 }), { code: 'LIMIT_EXCEEDED' })
  })

  test('a piece that is a hole never reaches the sink', () => {
    const built = new MemoryTree()
    built.file(0, 'file', [Buffer.from('a'), 10, Buffer.from('b'), 100_000, Buffer.from('c')])
    const { tree } = built.build()
    const calls: number[][] = []
    writeExt4(tree, { bytes: () => undefined, chunk: (...call) => void calls.push(call) }, { ...OPTIONS, sizeBytes: 64 * MEBIBYTE })
    assert.deepEqual(calls.map(([offset, length, , from]) => [offset - calls[0][0], length, from]), [[0, 1, 0], [11, 1, 0], [BLOCK_BYTES + ((100_012 % BLOCK_BYTES)), 1, 0]])
    assert.ok(calls.every(([, , chunk]) => chunk !== HOLE))
  })
})
