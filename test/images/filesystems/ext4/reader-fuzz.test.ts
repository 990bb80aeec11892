/**
 * Hostile filesystems: what has broken the reader or could, made on purpose, and random damage where it is seen. Each gives a VarveError or an answer,
 * reads no more than the volume a few times, and nothing at once that a small volume cannot be asked for.
 * VARVE_EXT4_ROUNDS: random volumes; 100000 is a thorough run.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'
import { isVarveError } from '@varve/images/errors.ts'
import { openExt4 } from '@varve/images/filesystems/ext4/filesystem.ts'
import type { Ext4Filesystem } from '@varve/images/filesystems/ext4/filesystem.ts'
import { walk } from '@varve/images/filesystems/walk.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import { Random, testSeed } from '../../../random.ts'
import { MadeImage, diskOf, idOf } from './made-image.ts'

const ROUNDS = Number(process.env.VARVE_EXT4_ROUNDS ?? 600)
const MIB = 2 ** 20
/** Of a file, of which a hostile one says that it is endless. */
const READ_BYTES = 1 << 20
const seed = testSeed()

/** Without checksums, which damage would not pass: with and without extents, and with all that stands in inodes. */
const MAKES: readonly string[][] = [
  ['-t', 'ext4', '-b', '1024', '-O', '^metadata_csum,^resize_inode', '-J', 'size=1', '-N', '512'],
  ['-t', 'ext4', '-b', '1024', '-O', '^metadata_csum,^extent,^64bit,^resize_inode', '-J', 'size=1', '-N', '512'],
  ['-t', 'ext4', '-b', '1024', '-O', '^metadata_csum,inline_data,ea_inode,^has_journal,^resize_inode', '-N', '512'],
]

/** A filesystem of a few files of all kinds, and a journal with two transactions. */
function makeImage(options: readonly string[]): MadeImage {
  const image = new MadeImage(4 * MIB, options)
  const random = new Random(1)
  image.mounted('rw', (directory) => {
    const at = (name: string): string => join(directory, name)
    fs.mkdirSync(at('many'))
    for (let index = 0; index < 150; index++) fs.writeFileSync(at(`many/a name that makes the directory long ${index}`), index % 50 === 0 ? random.bytes(index) : '')
    const fd = fs.openSync(at('pieces'), 'w')
    for (let index = 0; index < 150; index++) fs.writeSync(fd, random.bytes(700), 0, 700, index * 3000)
    fs.writeSync(fd, random.bytes(100), 0, 100, 70 * MIB)
    fs.closeSync(fd)
    fs.symlinkSync('t'.repeat(30), at('short'))
    fs.symlinkSync('t'.repeat(300), at('long'))
    fs.mkdirSync(at('few'))
    fs.writeFileSync(at('few/small'), 'content')
    fs.writeFileSync(at('attributes'), '')
    execFileSync('setfattr', ['-n', 'user.small', '-v', 'x', at('attributes')])
    execFileSync('setfattr', ['-n', 'user.large', '-v', 'x'.repeat(options.join().includes('ea_inode') ? 3000 : 600), at('attributes')])
    execFileSync('setfacl', ['-m', 'u:1000:r', at('attributes')])
    execFileSync('mknod', [at('device'), 'c', '300', '70000'])
  })
  if (options.join().includes('^has_journal')) return image
  const blocks = join(image.directory, 'blocks')
  fs.writeFileSync(blocks, random.bytes(4096))
  // Blocks that nothing uses: what is replayed there changes no file.
  image.debugfs('jo', `jw -b 4000-4003 ${blocks}`, 'jc', 'jo', 'jw -r 4002', 'jc')
  return image
}

/** Everything that can be asked of a filesystem. @returns names that could be read */
async function useAll(bytes: Uint8Array, note: string): Promise<number> {
  let readBytes = 0
  const disk = diskOf(bytes)
  const counted = {
    sizeBytes: disk.sizeBytes,
    read: (into: Uint8Array, offset: number) => {
      readBytes += into.length
      assert.ok(into.length <= 4 * MIB, `${note}: ${into.length} bytes at once`)
      return disk.read(into, offset)
    },
  }
  const allowed = async (act: () => Promise<unknown>): Promise<void> => {
    try {
      await act()
    } catch (error) {
      assert.ok(isVarveError(error, 'FORMAT_INVALID', 'FORMAT_UNSUPPORTED', 'LIMIT_EXCEEDED'), `${note}: ${error instanceof Error ? error.stack : String(error)}`)
    }
  }
  let names = 0
  await allowed(async () => {
    const filesystem = await openExt4(counted)
    const seen = new Set<number>()
    for await (const { node } of walk(filesystem, { damaged: () => {} })) {
      names++
      if (seen.has(node.id)) continue
      seen.add(node.id)
      await allowed(async () => filesystem.xattrs(node.id))
      if (node.kind === Kind.symlink) await allowed(() => filesystem.target(node.id))
      if (node.kind !== Kind.file) continue
      await allowed(async () => {
        let end = 0
        for (const { fileOffset, length, diskOffset = 0 } of await filesystem.extents(node.id)) {
          assert.ok(fileOffset >= end && length > 0 && diskOffset >= 0 && diskOffset + length <= bytes.length, `${note}: extent ${fileOffset}+${length} at ${diskOffset}`)
          end = fileOffset + length
        }
        assert.ok(end <= node.sizeBytes, note)
        const content = Buffer.alloc(Math.min(node.sizeBytes, READ_BYTES))
        await filesystem.read(node.id, content, 0)
        await filesystem.read(node.id, content, node.sizeBytes - content.length)
      })
    }
    await allowed(async () => {
      for await (const { offset, length } of filesystem.unused()) assert.ok(length > 0 && offset + length <= bytes.length, note)
    })
    await allowed(async () => filesystem.journal())
  })
  assert.ok(readBytes <= 64 * bytes.length, `${note}: ${readBytes} bytes were read`)
  return names
}

describe(`hostile ext4 (seed ${seed})`, () => {
  const images = MAKES.map(makeImage)
  after(() => images.forEach((image) => image[Symbol.dispose]()))

  test('what is made on purpose is refused, or read as far as it can be', async () => {
    for (const [index, image] of images.entries()) {
      const sound = fs.readFileSync(image.path)
      const filesystem = await openExt4(diskOf(sound))
      const whole = await useAll(sound, 'as it was made')
      assert.ok(whole > 150)
      for (const [name, change] of await purposes(filesystem, sound)) {
        const bytes = Buffer.from(sound)
        change(bytes)
        const names = await useAll(bytes, `${MAKES[index].join(' ')}: ${name}`)
        assert.ok(names <= whole + 160, `${name}: ${names} names`)
      }
    }
  })

  test('groups whose inodes have no room on the volume together are refused: what they claim is kept for each group', async () => {
    const bytes = fs.readFileSync(images[0].path)
    bytes.writeUInt32LE(256, 1024 + 0x20)
    bytes.writeUInt32LE(8192, 1024 + 0x28)
    await assert.rejects(openExt4(diskOf(bytes)), /no room for its inodes/)
  })

  test('random damage where it is seen gives an error with a code, or an answer', async () => {
    const random = new Random(seed)
    const subjects = []
    for (const image of images) {
      const sound = fs.readFileSync(image.path)
      subjects.push({ sound, places: await placesOf(await openExt4(diskOf(sound))) })
    }
    for (let round = 0; round < ROUNDS; round++) {
      const { sound, places } = random.pick(subjects)
      const bytes = Buffer.from(sound)
      for (let change = random.between(1, 6); change > 0; change--) {
        const [start, length] = random.pick(places)
        const at = start + random.below(length)
        if (random.chance(0.5)) bytes[at] = random.pick([0, 0xff, bytes[at] ^ (1 << random.below(8)), random.below(256)])
        else bytes.writeUInt32LE(random.pick([0, 0xffffffff, random.below(4096), random.uint32()]), Math.min(at & ~3, bytes.length - 4))
      }
      await useAll(bytes, `seed ${seed}, round ${round}`)
    }
  })
})

/** Where what the reader looks at stands, each as likely as the others. */
async function placesOf(filesystem: Ext4Filesystem): Promise<[start: number, length: number][]> {
  const places: [number, number][] = [[1024, 0x180], [1024, 0x180], [2048, 64]]
  const { inode: root } = await filesystem.places(filesystem.root)
  const inodeBytes = (await filesystem.places(await idOf(filesystem, 'lost+found'))).inode - root === 9 * 256 ? 256 : 128
  places.push([root + 6 * inodeBytes, inodeBytes])
  for (const { diskOffset } of await filesystem.journal()) places.push([diskOffset, 512], [diskOffset, 8 * 1024])
  for (const path of ['many', 'few', 'pieces', 'short', 'long', 'attributes', 'device', 'few/small']) {
    const { inode, nodes, runs, xattrs } = await filesystem.places(await idOf(filesystem, path))
    places.push([inode, inodeBytes])
    for (const node of nodes) places.push([node, 256])
    if (xattrs !== undefined) places.push([xattrs, 256])
    if (path === 'many' || path === 'few') for (const { diskOffset, length } of runs) places.push([diskOffset, length])
  }
  return places
}

/** What is wrong on purpose, by what it is. */
async function purposes(filesystem: Ext4Filesystem, sound: Buffer): Promise<[string, (bytes: Buffer) => void][]> {
  const of = async (path: string) => filesystem.places(await idOf(filesystem, path))
  const [root, many, pieces, few, attributes] = [await filesystem.places(filesystem.root), await of('many'), await of('pieces'), await of('few'), await of('attributes')]
  const list: [string, (bytes: Buffer) => void][] = [
    ['a file of 2^63 bytes', (bytes) => void (bytes.writeUInt32LE(0xffffffff, pieces.inode + 4), bytes.writeUInt32LE(0x7fffffff, pieces.inode + 0x6c))],
    ['a file of 2^52 bytes', (bytes) => bytes.writeUInt32LE(1 << 20, pieces.inode + 0x6c)],
    ['a directory of 4 GiB', (bytes) => bytes.writeUInt32LE(0xfffffc00, many.inode + 4)],
    ['two directories in the same blocks', (bytes) => void bytes.copy(bytes, few.inode + 0x28, many.inode + 0x28, many.inode + 0x28 + 60)],
    ['the root in a directory below it', (bytes) => void bytes.copy(bytes, few.inode, root.inode, root.inode + 128)],
    ['all inodes are the same file of many pieces', (bytes) => {
      for (let inode = root.inode + 11 * 256; inode < root.inode + 150 * 256; inode += 256) bytes.copy(bytes, inode, pieces.inode, pieces.inode + 256)
    }],
    ['groups of 256 blocks', (bytes) => bytes.writeUInt32LE(256, 1024 + 0x20)],
    ['all inodes there can be', (bytes) => void (bytes.writeUInt32LE(0xffffffff, 1024), bytes.writeUInt32LE(8192, 1024 + 0x28))],
    ['descriptors of 1024 bytes', (bytes) => bytes.writeUInt16LE(1024, 1024 + 0xfe)],
    ['attributes as long as can be', (bytes) => void (attributes.xattrs !== undefined && bytes.writeUInt32LE(0xffffffff, attributes.xattrs + 32 + 8))],
    // Both reached sortedXattrs, which says SOURCE_INVALID.
    ['an attribute with a NUL in its name', (bytes) => void (attributes.xattrs !== undefined && (bytes[attributes.xattrs + 32 + 16 + 1] = 0))],
    ['an attribute with the longest name', (bytes) => void (attributes.xattrs !== undefined && (bytes[attributes.xattrs + 32] = 255, bytes.fill(0x61, attributes.xattrs + 48, attributes.xattrs + 48 + 255)))],
    ['attributes in a block that is itself data', (bytes) => bytes.writeUInt32LE(2, attributes.inode + 0x68)],
  ]
  const node = pieces.nodes[0]
  if (node !== undefined && sound.readUInt16LE(node) === 0xf30a) {
    list.push(
      ['extents: a node that is its own parent', (bytes) => {
        bytes.writeUInt16LE(1, node + 6)
        bytes.writeUInt32LE(node / 1024, node + 12 + 4)
      }],
      ['extents: the root five levels above a node that says the same', (bytes) => {
        bytes.writeUInt16LE(5, pieces.inode + 0x28 + 6)
        for (let depth = 4; depth >= 0; depth--) {
          const at = (3000 + depth) * 1024
          bytes.writeUInt16LE(0xf30a, at)
          bytes.writeUInt16LE(84, at + 2)
          bytes.writeUInt16LE(84, at + 4)
          bytes.writeUInt16LE(depth, at + 6)
          for (let entry = 12; entry <= 84 * 12; entry += 12) bytes.writeUInt32LE(3000 + depth - 1, at + entry + 4)
          if (depth === 0) bytes.writeUInt16LE(0, at + 2)
        }
        bytes.writeUInt32LE(3004, pieces.inode + 0x28 + 12 + 4)
      }],
      ['extents: more entries than there is room', (bytes) => void (bytes.writeUInt16LE(0xffff, node + 2), bytes.writeUInt16LE(0xffff, node + 4))],
      ['extents: of no length', (bytes) => bytes.writeUInt16LE(0, node + 12 + 4)],
    )
  } else if (node !== undefined) {
    list.push(['map: a block of three levels that leads to itself', (bytes) => {
      bytes.fill(0, 3000 * 1024, 3001 * 1024)
      for (let at = 0; at < 1024; at += 4) bytes.writeUInt32LE(3000, 3000 * 1024 + at)
      bytes.writeUInt32LE(3000, pieces.inode + 0x28 + 14 * 4)
      bytes.writeUInt32LE(0xffffffff, pieces.inode + 4)
      bytes.writeUInt32LE(0xff, pieces.inode + 0x6c)
    }])
  }
  const block = many.runs.at(-1)?.diskOffset
  if (block !== undefined) {
    list.push(
      ['directory: entries of no length', (bytes) => bytes.writeUInt16LE(0, block + 4)],
      ['directory: an entry beyond the block', (bytes) => bytes.writeUInt16LE(0xfffc, block + 4)],
      ['directory: a name with a slash', (bytes) => bytes.write('/', block + 8, 'latin1')],
      ['directory: all names lead to the directory itself', (bytes) => {
        for (let at = block; at < block + 1000 && bytes.readUInt16LE(at + 4) >= 8; at += bytes.readUInt16LE(at + 4)) bytes.writeUInt32LE(bytes.readUInt32LE(root.runs[0].diskOffset), at)
      }],
      ['index: a root that leads to itself', (bytes) => {
        const at = many.runs[0].diskOffset
        for (let entry = at + 36; entry < at + 1024; entry += 8) bytes.writeUInt32LE(0, entry)
        bytes[at + 0x1e] = 3
      }],
    )
  }
  const journal = (await filesystem.journal())[0]?.diskOffset
  if (journal !== undefined) {
    const at = (index: number): number => journal + index * 1024
    list.push(
      ['journal: of all the blocks there can be', (bytes) => bytes.writeUInt32BE(0xffffffff, journal + 0x10)],
      ['journal: begins with its superblock', (bytes) => bytes.writeUInt32BE(0, journal + 0x14)],
      ['journal: starts behind its end', (bytes) => bytes.writeUInt32BE(0x7fffffff, journal + 0x1c)],
      ['journal: descriptors without end', (bytes) => {
        for (let index = 1; index < 1024; index++) sound.copy(bytes, at(index), at(1), at(1) + 1024)
      }],
      ['journal: descriptors of as many tags as fit', (bytes) => {
        for (let index = 1; index < 1024; index++) {
          bytes.writeUInt32BE(0xc03b3998, at(index))
          bytes.writeUInt32BE(1, at(index) + 4)
          bytes.writeUInt32BE(bytes.readUInt32BE(journal + 0x18), at(index) + 8)
          for (let tag = 12; tag + 12 <= 1024; tag += 12) bytes.writeUInt32BE(2, at(index) + tag + 4)
        }
      }],
      ['journal: blocks behind the end', (bytes) => bytes.writeUInt32BE(0xfffffff0, at(1) + 12)],
      ['journal: revokes more than it holds', (bytes) => {
        bytes.writeUInt32BE(5, at(1) + 4)
        bytes.writeUInt32BE(0xffffffff, at(1) + 12)
      }],
      ['journal: replaces its own inode, and the superblock', (bytes) => {
        bytes.writeUInt32BE(Math.floor((root.inode + 6 * 256) / 1024), at(1) + 12)
        bytes.writeUInt32BE(1, at(1) + 12 + 12 + 16)
      }],
    )
  }
  return list
}
