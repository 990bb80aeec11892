/** The reader finds what our writer and the kernel wrote, where it lies; damaged filesystems are refused. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { closeSync, openSync, readSync, statSync, writeFileSync } from 'node:fs'
import { test } from 'node:test'
import { isVarveError } from '@varve/images/errors.ts'
import { Ext4Reader } from '@varve/images/filesystems/ext4/reader.ts'
import type { ReadableDisk } from '@varve/images/device/block-device.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import { Random, testSeed } from '../../../random.ts'
import { MemoryTree } from '../memory-tree.ts'
import { randomTree } from '../random-tree.ts'
import { Ext4Image } from './ext4-image.ts'

class ImageFile implements ReadableDisk, Disposable {
  readonly #fd: number
  readonly sizeBytes: number

  constructor(path: string) {
    this.#fd = openSync(path, 'r')
    this.sizeBytes = statSync(path).size
  }

  read(into: Uint8Array, offset: number): void {
    if (readSync(this.#fd, into, 0, into.length, offset) !== into.length) throw new RangeError(`${offset}+${into.length} is outside`)
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd)
  }
}

test('a walk finds every name, and each file where the tree has put it', async () => {
  const seed = testSeed()
  for (let round = 0; round < 12; round++) {
    const built = randomTree(new Random(seed + round))
    const { tree } = built
    using image = new Ext4Image(built)
    using disk = new ImageFile(image.path)
    const reader = await Ext4Reader.open(disk, 0)
    let names = 0
    for await (const { path, inode } of reader.walk()) {
      if (path === 'lost+found') continue
      const entry = tree.find(path)
      assert.ok(entry >= 0, `seed ${seed + round}: ${path}`)
      names++
      const own = tree.inode[entry]
      assert.equal(inode.kind, tree.kind[own])
      if (inode.kind === Kind.symlink) assert.equal(await reader.target(inode), Buffer.from(tree.targets.get(own)!).toString('latin1'))
      if (inode.kind !== Kind.file) continue
      assert.equal(inode.sizeBytes, tree.sizeBytes[own])
      let at = 0
      for (let piece = tree.firstPiece[own]; piece < tree.firstPiece[own] + tree.pieceCount[own]; piece++) {
        // Holes may be of any length.
        const length = Math.min(tree.pieceBytes[piece], 1 << 20)
        const digest = tree.pieceDigest(piece)
        const expected = digest === undefined ? Buffer.alloc(length) : Buffer.from(built.content(tree.pieceChunk[piece]))
        assert.ok(expected.equals(await reader.content(inode, at, length)), `seed ${seed + round}: ${path} at ${at}`)
        at += tree.pieceBytes[piece]
      }
    }
    // Of a lost+found that the tree does not have, one name more.
    assert.equal(names, tree.entryCount - (tree.find('lost+found') >= 0 ? 1 : 0), `seed ${seed + round}`)
  }
})

test('a filesystem that mke2fs made and filled, with an index, a tree of extents and holes', async () => {
  using image = new Ext4Image(new MemoryTree().build())
  const random = new Random(7)
  const source = `${image.mountPoint}/source`
  execFileSync('mkdir', ['-p', `${source}/many`])
  for (let index = 0; index < 2000; index++) writeFileSync(`${source}/many/a name that is long enough for an index ${index}`, '')
  const content = random.bytes(3_000_000)
  for (let at = 8192; at < content.length; at += 16384) content.fill(0, at, at + 8192)
  writeFileSync(`${source}/sparse`, content)
  execFileSync('cp', ['--sparse=always', `${source}/sparse`, `${source}/holes`])
  for (const options of [['-b', '4096'], ['-b', '1024'], ['-O', '^64bit,^metadata_csum', '-b', '2048']]) {
    execFileSync('mke2fs', ['-q', '-F', '-t', 'ext4', ...options, '-d', source, image.path, '64M'])
    using disk = new ImageFile(image.path)
    const reader = await Ext4Reader.open(disk, 0)
    const root = await reader.inode(2)
    const many = await reader.inode((await reader.child(root, 'many'))!)
    assert.equal((await reader.list(many)).length, 2000)
    assert.notEqual(await reader.child(many, 'a name that is long enough for an index 1999'), undefined)
    assert.equal(await reader.child(many, 'another'), undefined)
    for (const name of ['sparse', 'holes']) {
      const file = await reader.inode((await reader.child(root, name))!)
      assert.ok(content.equals(await reader.content(file, 0, content.length)), name)
      assert.ok(content.subarray(10_000, 30_000).equals(await reader.content(file, 10_000, 20_000)), name)
    }
    assert.ok((await reader.blocks(await reader.inode((await reader.child(root, 'holes'))!))).nodes.length > 0)
  }
})

test('a directory ends where its size says, and what many directories claim is not read for ever', async () => {
  using image = new Ext4Image(new MemoryTree().build())
  const source = `${image.mountPoint}/source`
  execFileSync('mkdir', ['-p', `${source}/many`])
  for (let index = 0; index < 500; index++) writeFileSync(`${source}/many/a name ${index}`, '')
  execFileSync('mke2fs', ['-q', '-F', '-t', 'ext4', '-O', '^metadata_csum', '-b', '4096', '-d', source, image.path, '16M'])
  const listWithSize = async (sizeBytes: number, times: number): Promise<number> => {
    execFileSync('debugfs', ['-w', '-R', `set_inode_field /many size ${sizeBytes}`, image.path], { stdio: 'pipe' })
    using disk = new ImageFile(image.path)
    const reader = await Ext4Reader.open(disk, 0)
    const many = await reader.inode((await reader.child(await reader.inode(2), 'many'))!)
    let names = 0
    for (let time = 0; time < times; time++) names = (await reader.list(many)).length
    return names
  }
  assert.ok(await listWithSize(4096, 1) < 500)
  assert.equal(await listWithSize(16 << 20, 1), 500)
  await assert.rejects(listWithSize(16 << 20, 300), { code: 'LIMIT_EXCEEDED' })
})

test('damaged filesystems are refused with a code, and nothing hangs', async () => {
  const seed = testSeed()
  const random = new Random(seed)
  using image = new Ext4Image(randomTree(new Random(5)))
  execFileSync('truncate', ['-s', '32M', image.path])
  execFileSync('mke2fs', ['-q', '-F', '-t', 'ext4', '-d', '/etc/apt', image.path, '32M'])
  using disk = new ImageFile(image.path)
  const sound = await Ext4Reader.open(disk, 0)
  // Where damage is seen: superblock, descriptors, inodes, directories.
  const places = [[1024, 1024], [4096, sound.headBytes - 4096], [sound.inodePosition(1), 256 * 40]]
  for await (const { inode } of sound.walk()) if (inode.kind === Kind.directory) for (const run of (await sound.blocks(inode)).runs) places.push([run.diskOffset, run.length])
  for (let round = 0; round < 400; round++) {
    const changes = new Map<number, number>()
    for (let count = random.between(1, 8); count > 0; count--) {
      const [start, length] = random.pick(places)
      changes.set(start + random.below(length), random.pick([0, 0xff, random.below(256)]))
    }
    const damaged: ReadableDisk = {
      sizeBytes: disk.sizeBytes,
      read: (into, offset) => {
        assert.ok(into.length <= 1 << 24, `seed ${seed}, round ${round}: ${into.length} bytes at once`)
        disk.read(into, offset)
        for (const [at, byte] of changes) if (at >= offset && at < offset + into.length) into[at - offset] = byte
      },
    }
    try {
      const reader = await Ext4Reader.open(damaged, 0)
      for await (const { inode } of reader.walk()) {
        await reader.blocks(inode)
        if (inode.kind === Kind.file) await reader.content(inode, 0, 1 << 20)
        if (inode.kind === Kind.symlink) await reader.target(inode)
      }
    } catch (error) {
      assert.ok(isVarveError(error, 'FORMAT_INVALID', 'FORMAT_UNSUPPORTED', 'LIMIT_EXCEEDED'), `seed ${seed}, round ${round}: ${String(error)}`)
    }
  }
})
