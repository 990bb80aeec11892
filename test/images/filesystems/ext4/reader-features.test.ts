/** What is refused, and how far: a filesystem, or what is encrypted or damaged in it; copies of the superblock; journals of all versions. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { openExt4 } from '@varve/images/filesystems/ext4/filesystem.ts'
import { Random, testSeed } from '../../../random.ts'
import { CloneStore } from './cut-disk.ts'
import { MadeImage, contentOf, diskOf, idOf } from './made-image.ts'

const MIB = 2 ** 20
const seed = testSeed()
const DEFAULT = ['-t', 'ext4', '-b', '1024']

test('a damaged superblock is replaced by a copy, also where the start of the volume was wiped', async () => {
  const spoilt = (bytes: Buffer): unknown => bytes.fill(0xa5, 1024 + 0x70, 1024 + 0x80)
  const wiped = (bytes: Buffer): unknown => bytes.fill(0, 0, 68 << 10)
  // Where no blocks are kept for more descriptors, the inodes follow at once, and are wiped with the rest.
  for (const { options, damages } of [
    { options: ['-b', '1024'], damages: [spoilt, wiped] },
    { options: ['-b', '4096'], damages: [spoilt, wiped] },
    { options: ['-b', '1024', '-O', 'sparse_super2'], damages: [spoilt] },
    { options: ['-b', '1024', '-O', 'meta_bg,^resize_inode'], damages: [spoilt] },
  ]) {
    using image = new MadeImage(200 * MIB, ['-t', 'ext4', ...options])
    image.mounted('rw', (directory) => fs.writeFileSync(join(directory, 'file'), 'content'))
    const sound = await image.open()
    assert.equal(sound.unclean, false)
    for (const damage of damages) {
      const filesystem = await image.open(damage)
      assert.match(filesystem.notices.join(), /its copy in group \d+ is used/)
      assert.equal(filesystem.uuid, sound.uuid)
      assert.equal((await contentOf(filesystem, 'file')).toString(), 'content')
      for await (const range of filesystem.unused()) assert.fail(`${range.offset} is said to be unused by descriptors that are never changed`)
    }
    // Another filesystem was made over it.
    await assert.rejects(image.open((bytes) => bytes.fill(0xff, 0, 8192)), { code: 'FORMAT_INVALID' })
  }
})

test('what is damaged is refused by itself: the rest is read', async () => {
  using image = new MadeImage(64 * MIB, DEFAULT)
  const random = new Random(seed)
  image.mounted('rw', (directory) => {
    fs.mkdirSync(join(directory, 'directory'))
    for (let index = 0; index < 400; index++) fs.writeFileSync(join(directory, 'directory', `a name of some length ${index}`), '')
    const fd = fs.openSync(join(directory, 'fragmented'), 'w')
    for (let index = 0; index < 200; index++) fs.writeSync(fd, random.bytes(1024), 0, 1024, index * 4096)
    fs.closeSync(fd)
    fs.writeFileSync(join(directory, 'attributes'), '')
    execFileSync('setfattr', ['-n', 'user.large', '-v', 'x'.repeat(500), join(directory, 'attributes')])
    fs.writeFileSync(join(directory, 'other'), 'content')
  })
  const sound = await image.open()
  const damaged = async (path: string, at: (places: Awaited<ReturnType<typeof sound.places>>) => number, act: (filesystem: typeof sound, id: number) => unknown): Promise<void> => {
    const id = await idOf(sound, path)
    const offset = at(await sound.places(id))
    const filesystem = await image.open((bytes) => (bytes[offset] ^= 1))
    await assert.rejects(async () => act(filesystem, id), { code: 'FORMAT_INVALID' }, path)
    assert.equal((await contentOf(filesystem, 'other')).toString(), 'content')
  }
  await damaged('fragmented', ({ inode }) => inode + 9, (filesystem, id) => filesystem.node(id))
  await damaged('fragmented', ({ nodes }) => nodes[0] + 700, (filesystem, id) => filesystem.extents(id))
  await damaged('directory', ({ runs }) => runs.at(-1)!.diskOffset + runs.at(-1)!.length - 124, (filesystem, id) => filesystem.list(id))
  await damaged('directory', ({ runs }) => runs[0].diskOffset + 60, (filesystem, id) => filesystem.list(id))
  await damaged('attributes', ({ xattrs }) => xattrs! + 40, (filesystem, id) => filesystem.xattrs(id))
  await damaged('fragmented', () => sound.bitmaps().blocks[0] + 5, async (filesystem) => Array.fromAsync(filesystem.unused()))
  await damaged('fragmented', () => 2048 + 3 * 64 + 0x1c, async (filesystem) => Array.fromAsync(filesystem.unused()))
})

test('clusters, journals of other filesystems, what is cut off and what has unknown features is refused, each with its reason', async () => {
  const refused = async (options: readonly string[], code: string, message: RegExp, change?: (bytes: Buffer) => unknown): Promise<void> => {
    using image = new MadeImage(32 * MIB, options)
    await assert.rejects(image.open(change), { code, message })
  }
  await refused([...DEFAULT, '-O', 'bigalloc'], 'FORMAT_UNSUPPORTED', /bigalloc/)
  await refused(['-O', 'journal_dev', '-b', '1024'], 'FORMAT_UNSUPPORTED', /journal of another filesystem/)
  await refused([...DEFAULT, '-O', '^metadata_csum'], 'FORMAT_UNSUPPORTED', /0x1000 are not known/, (bytes) => (bytes[1024 + 0x61] |= 0x10))
  using image = new MadeImage(32 * MIB, DEFAULT)
  const bytes = fs.readFileSync(image.path)
  await assert.rejects(openExt4(diskOf(bytes.subarray(0, 31 * MIB))), { code: 'FORMAT_INVALID', message: /cut off/ })
  await assert.rejects(openExt4(diskOf(Buffer.alloc(1500))), { code: 'FORMAT_INVALID' })
  await assert.rejects(openExt4(diskOf(Buffer.alloc(MIB))), { code: 'FORMAT_INVALID' })
})

test('encrypted names and content are refused, one by one', async () => {
  using image = new MadeImage(32 * MIB, [...DEFAULT, '-O', 'encrypt,verity'])
  image.mounted('rw', (directory) => fs.writeFileSync(join(directory, 'plain'), 'content'))
  image.mounted('test_dummy_encryption', (directory) => {
    fs.writeFileSync(join(directory, 'secret'), 'content')
    fs.symlinkSync('target', join(directory, 'link'))
    fs.mkdirSync(join(directory, 'directory'))
  })
  const filesystem = await image.open()
  assert.equal((await contentOf(filesystem, 'plain')).toString(), 'content')
  const refusal = { code: 'FORMAT_UNSUPPORTED', message: /encrypted/ }
  const [secret, link, directory] = [await idOf(filesystem, 'secret'), await idOf(filesystem, 'link'), await idOf(filesystem, 'directory')]
  assert.equal((await filesystem.node(secret)).sizeBytes, 7)
  await assert.rejects(filesystem.extents(secret), refusal)
  await assert.rejects(filesystem.read(secret, new Uint8Array(1), 0), refusal)
  await assert.rejects(filesystem.target(link), refusal)
  await assert.rejects(filesystem.list(directory), refusal)
  await assert.rejects(filesystem.child(directory, 'x'), refusal)
})

test('names in directories without regard to case are found so, in others byte by byte', async () => {
  using image = new MadeImage(32 * MIB, [...DEFAULT, '-O', 'casefold', '-E', 'encoding=utf8'])
  const folded = join(image.directory, 'empty')
  fs.writeFileSync(folded, '')
  image.debugfs('mkdir folded', `write ${folded} folded/Größe`, `write ${folded} folded/plain`, `write ${folded} Other`, 'set_inode_field folded flags 0x40080000')
  const filesystem = await image.open()
  const directory = await idOf(filesystem, 'folded')
  for (const name of ['Größe', 'GRÖSSE', 'größe', 'gro\u0308ße']) assert.notEqual(await filesystem.child(directory, Buffer.from(name).toString('latin1')), undefined, name)
  assert.equal(await filesystem.child(directory, 'PLAIN'), await filesystem.child(directory, 'plain'))
  assert.equal(await filesystem.child(directory, 'plain\xff'), undefined)
  assert.equal(await filesystem.child(filesystem.root, 'other'), undefined)
})

test('journals with checksums of versions 2 and 3, of 32 and 64 bits, with escaped and revoked blocks, are replayed as e2fsck does', async () => {
  for (const version of [2, 3]) {
    for (const features of ['metadata_csum', 'metadata_csum,^64bit']) {
      using image = new MadeImage(32 * MIB, [...DEFAULT, '-O', features, '-J', 'size=2'])
      const content = new Random(seed).bytes(8 * 1024)
      // As the journal's own blocks begin: written escaped.
      content.writeUInt32BE(0xc03b3998, 3 * 1024)
      const file = join(image.directory, 'blocks')
      fs.writeFileSync(file, content)
      const write = (...lines: string[]): string[] => [`jo -c -v ${version}`, ...lines, 'jc']
      image.debugfs(...write(`jw -b 20000-20007 ${file}`, `jw -b 21000-21007 ${file}`), ...write('jw -r 20004-20005'), ...write(`jw -b 20005 ${file}`))
      const filesystem = await image.open()
      const before = fs.readFileSync(image.path)
      execFileSync('e2fsck', ['-y', '-E', 'journal_only', image.path], { stdio: 'ignore' })
      const after = fs.readFileSync(image.path)
      assert.ok(filesystem.unclean && !after.equals(before))
      const block = Buffer.alloc(1024)
      const journal = (await filesystem.journal()).map(({ diskOffset }) => diskOffset)
      for (let at = 0; at < after.length; at += 1024) {
        // e2fsck says there that nothing is left to replay.
        if (at === 1024 || journal.includes(at)) continue
        await filesystem.volume.read(block, at)
        assert.ok(block.equals(after.subarray(at, at + 1024)), `version ${version}, ${features}: block ${at / 1024}`)
      }
      await filesystem.volume.read(block, 20003 * 1024)
      assert.ok(block.equals(content.subarray(3 * 1024, 4 * 1024)))
      // A torn transaction in between, and damage in a block that a sound one holds.
      await assert.rejects(image.open((bytes) => (before.copy(bytes), (bytes[journal[0] + 4 * 1024 + 100] ^= 1))), { code: 'FORMAT_INVALID', message: /journal/ })
      const torn = await image.open((bytes) => (before.copy(bytes), bytes.fill(0, journal[0] + 1024, journal[0] + 2048)))
      assert.ok((await torn.node(torn.root)).id > 0)
    }
  }
})

test('fast commits are refused where a mount would replay them, and a journal on another device where it holds something', async () => {
  using store = new CloneStore()
  const path = store.newPath()
  fs.writeFileSync(path, '')
  fs.truncateSync(path, 64 * MIB)
  execFileSync('mke2fs', ['-q', '-F', ...DEFAULT, '-O', 'fast_commit', path])
  const openClone = (clone: string) => openExt4(diskOf(fs.readFileSync(clone)))
  execFileSync('mount', ['-o', 'loop', path, store.mountPoint])
  const clones: string[] = []
  try {
    fs.writeFileSync(join(store.mountPoint, 'file'), 'content')
    execFileSync('sync', ['-f', store.mountPoint])
    clones.push(store.clone(path))
    const fd = fs.openSync(join(store.mountPoint, 'file'), 'a')
    fs.writeSync(fd, 'more')
    fs.fsyncSync(fd)
    fs.closeSync(fd)
    clones.push(store.clone(path))
  } finally {
    execFileSync('umount', [store.mountPoint])
  }
  assert.equal((await contentOf(await openClone(clones[0]), 'file')).toString(), 'content')
  await assert.rejects(openClone(clones[1]), { code: 'FORMAT_UNSUPPORTED', message: /fast commits/ })

  const journal = store.newPath()
  fs.writeFileSync(journal, '')
  fs.truncateSync(journal, 8 * MIB)
  execFileSync('mke2fs', ['-q', '-F', '-O', 'journal_dev', '-b', '1024', journal], { stdio: ['ignore', 'ignore', 'inherit'] })
  const loop = execFileSync('losetup', ['-f', '--show', journal], { encoding: 'utf8' }).trim()
  try {
    execFileSync('mke2fs', ['-q', '-F', ...DEFAULT, '-J', `device=${loop}`, path], { stdio: ['ignore', 'ignore', 'inherit'] })
    execFileSync('mount', ['-o', `loop,journal_path=${loop}`, path, store.mountPoint])
    try {
      fs.writeFileSync(join(store.mountPoint, 'file'), 'content')
      execFileSync('sync', ['-f', store.mountPoint])
      await assert.rejects(openClone(store.clone(path)), { code: 'FORMAT_UNSUPPORTED', message: /another device/ })
    } finally {
      execFileSync('umount', [store.mountPoint])
    }
    assert.equal((await contentOf(await openClone(path), 'file')).toString(), 'content')
  } finally {
    execFileSync('losetup', ['-d', loop])
  }
})
