import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { digestOf } from '@varve/images/chunk/digest.ts'
import { CHUNK_BYTES_MAX } from '@varve/images/chunk/limits.ts'
import { isVarveError } from '@varve/images/errors.ts'
import { DEPTH_MAX, PATH_BYTES_MAX, TARGET_BYTES_MAX, TREE_BYTES_MAX, XATTR_VALUE_BYTES_MAX } from '@varve/images/tree/limits.ts'
import { TreeBuilder } from '@varve/images/tree/tree-builder.ts'
import type { InodeInit } from '@varve/images/tree/tree-builder.ts'
import { decodeTree, TREE_VERSION } from '@varve/images/tree/tree-format.ts'
import { HOLE, Kind } from '@varve/images/tree/tree.ts'
import type { Tree } from '@varve/images/tree/tree.ts'
import { Random, testSeed } from '../../random.ts'
import { randomTree } from './random-tree.ts'
import { encodeTree, encoded } from './rebuilt-tree.ts'

const seed = testSeed()

function init(kind: Kind, more: Partial<InodeInit> = {}): InodeInit {
  return { kind, mode: 0o755, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanoseconds: 0, ...more }
}

function assertSameTree(actual: Tree, expected: Tree): void {
  assert.deepEqual({ ...actual }, { ...expected })
}

/** Decodes; what is refused is refused with a code, what is accepted encodes to the same bytes. */
function decodeHostile(bytes: Uint8Array): Tree | undefined {
  let tree: Tree
  try {
    tree = decodeTree(bytes)
  } catch (error) {
    if (isVarveError(error, 'FORMAT_INVALID', 'FORMAT_UNSUPPORTED', 'LIMIT_EXCEEDED')) return undefined
    throw error
  }
  assert.deepEqual(Buffer.from(encodeTree(tree)), Buffer.from(bytes))
  return tree
}

describe('tree format', () => {
  test('an empty root round-trips', () => {
    const tree = new TreeBuilder(init(Kind.directory, { mode: 0o1777, opaque: true })).build()
    assertSameTree(decodeTree(encodeTree(tree)), tree)
  })

  test('random trees round-trip, with every kind of entry', () => {
    const random = new Random(seed)
    for (let round = 0; round < 60; round++) {
      const tree = randomTree(random, { entries: random.below(400), depthMax: random.between(1, 12) })
      const bytes = encodeTree(tree)
      const decoded = decodeTree(bytes)
      assertSameTree(decoded, tree)
      assert.deepEqual(encodeTree(decoded), bytes, `VARVE_TEST_SEED=${seed}`)
    }
  })

  test('bytes at an odd address decode to the same tree', () => {
    const tree = randomTree(new Random(seed), { entries: 200 })
    const bytes = encodeTree(tree)
    const moved = new Uint8Array(bytes.length + 3)
    moved.set(bytes, 3)
    assertSameTree(decodeTree(moved.subarray(3)), tree)
  })

  test('what values can be at their limits is kept', () => {
    const builder = new TreeBuilder(init(Kind.directory))
    const add = (name: string, more: InodeInit) => {
      const inode = builder.addInode(more)
      builder.addEntry(0, name, inode)
      return inode
    }
    add('\xff\xfe', init(Kind.file, { mode: 0o7777, uid: 0xffffffff, gid: 0xfffffffe, mtimeSeconds: -(2 ** 53) + 1, mtimeNanoseconds: 999_999_999 }))
    add('x'.repeat(255), init(Kind.symlink, { target: new Uint8Array(4095).fill(0x79), mtimeSeconds: 2 ** 53 - 1 }))
    add('device', init(Kind.block, { deviceMajor: 0xffffffff, deviceMinor: 0xffffffff, mtimeSeconds: -1 }))
    add('attributes', init(Kind.fifo, { xattrs: [{ name: 'user.' + 'n'.repeat(250), value: new Uint8Array(65536).fill(7) }], mtimeSeconds: -0 }))
    const sparse = add('sparse', init(Kind.file))
    const chunk = builder.addChunk(digestOf(Buffer.from('a')), CHUNK_BYTES_MAX)
    builder.setContent(sparse, [HOLE, chunk], [2 ** 53 - 1 - CHUNK_BYTES_MAX, CHUNK_BYTES_MAX])
    const tree = builder.build()
    assert.equal(tree.contentBytes, 2 ** 53 - 1)
    assertSameTree(decodeTree(encodeTree(tree)), tree)
  })

  test('one content has one encoding, whatever order it was built in', () => {
    const encodings = [[0, 1, 2], [2, 1, 0], [1, 2, 0]].map((order) => {
      const builder = new TreeBuilder(init(Kind.directory))
      const inodes = order.map((name) => {
        const inode = builder.addInode(init(Kind.file, { uid: name, xattrs: [{ name: `user.${name}`, value: Buffer.from('v') }] }))
        const chunks = [builder.addChunk(digestOf(Buffer.from(`${name}`)), 10), builder.addChunk(digestOf(Buffer.from('shared')), 6)]
        builder.setContent(inode, chunks, [10, 6])
        builder.addEntry(0, `n${name}`, inode)
        return inode
      })
      builder.addEntry(0, 'second', inodes[order.indexOf(1)])
      return encoded(builder)
    })
    assert.deepEqual(encodings[1], encodings[0])
    assert.deepEqual(encodings[2], encodings[0])
  })

  test('a hole after a hole is one hole', () => {
    const build = (lengths: number[]) => {
      const builder = new TreeBuilder(init(Kind.directory))
      const inode = builder.addInode(init(Kind.file))
      builder.setContent(inode, lengths.map(() => HOLE), lengths)
      builder.addEntry(0, 'f', inode)
      return encoded(builder)
    }
    assert.deepEqual(build([1, 2, 3]), build([6]))
  })

  test('the longest and deepest paths that are allowed round-trip, longer ones are refused', () => {
    const chain = (depth: number, name: string) => {
      const builder = new TreeBuilder(init(Kind.directory))
      let entry = 0
      for (let level = 0; level < depth; level++) entry = builder.addEntry(entry, name, builder.addInode(init(Kind.directory)))
      return builder
    }
    for (const [depth, name] of [[DEPTH_MAX, 'n'], [PATH_BYTES_MAX / 256, 'n'.repeat(255)]] as const) {
      const tree = chain(depth, name).build()
      assertSameTree(decodeTree(encodeTree(tree)), tree)
      assert.throws(() => chain(depth + 1, name).build(), { code: 'LIMIT_EXCEEDED' })
    }
  })

  test('a newer version is refused as such', () => {
    const bytes = encodeTree(randomTree(new Random(seed), { entries: 3 }))
    bytes[8] = TREE_VERSION + 1
    assert.throws(() => decodeTree(bytes), { code: 'FORMAT_UNSUPPORTED' })
  })

  test('every truncation and every trailing byte is refused', () => {
    const bytes = encodeTree(randomTree(new Random(seed), { entries: 12, chunkBytesMax: 100 }))
    for (let length = 0; length < bytes.length; length++) assert.throws(() => decodeTree(bytes.subarray(0, length)), { code: 'FORMAT_INVALID' })
    for (const more of [1, 8]) assert.throws(() => decodeTree(Buffer.concat([bytes, Buffer.alloc(more)])), { code: 'FORMAT_INVALID' })
  })

  test('more bytes than the limit are refused unread', () => {
    assert.throws(() => decodeTree(new Uint8Array(TREE_BYTES_MAX + 8)), { code: 'LIMIT_EXCEEDED' })
  })
})

/** Offsets and lengths of the sections by number, read as the document says. */
function sectionsOf(bytes: Uint8Array): { offset: number; length: number }[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const count = view.getUint32(12, true)
  let offset = Math.ceil((16 + 4 * count) / 8) * 8
  return Array.from({ length: count }, (_, index) => {
    const length = view.getUint32(16 + 4 * index, true)
    const section = { offset, length }
    offset += Math.ceil(length / 8) * 8
    return section
  })
}

describe('hostile trees', () => {
  /** root: a (directory: x, y), b (file, 2 pieces + hole), c (second name of b), d (symlink), e (block), f (file: a chunk again), attributes on x and y */
  const example = (): Uint8Array => {
    const builder = new TreeBuilder(init(Kind.directory))
    const a = builder.addEntry(0, 'a', builder.addInode(init(Kind.directory, { opaque: true })))
    const b = builder.addInode(init(Kind.file))
    const chunks = [builder.addChunk(digestOf(Buffer.from('1')), 1), builder.addChunk(digestOf(Buffer.from('2')), 2)]
    builder.setContent(b, [chunks[0], HOLE, chunks[1]], [1, 4096, 2])
    builder.addEntry(0, 'b', b)
    builder.addEntry(0, 'c', b)
    builder.addEntry(0, 'd', builder.addInode(init(Kind.symlink, { target: Buffer.from('target') })))
    builder.addEntry(0, 'e', builder.addInode(init(Kind.block, { deviceMajor: 8, deviceMinor: 1 })))
    const f = builder.addInode(init(Kind.file))
    builder.setContent(f, [chunks[0]], [1])
    builder.addEntry(0, 'f', f)
    builder.addEntry(a, 'x', builder.addInode(init(Kind.fifo, { xattrs: [{ name: 'user.a', value: Buffer.from('1') }, { name: 'user.b', value: Buffer.from('2') }] })))
    builder.addEntry(a, 'y', builder.addInode(init(Kind.link, { target: Buffer.from('p/q'), xattrs: [{ name: 'user.a', value: Buffer.from('2') }] })))
    return encoded(builder)
  }
  const section = Object.fromEntries(
    `nameLengths names repeatGaps inodesBack kinds modes uids gids secondsLow secondsHigh nanoseconds xattrSets childCounts targetLengths targets
     deviceMajors deviceMinors pieceCounts pieceTypes chunksBack holesLow holesHigh chunkBytes chunkDigests xattrCounts xattrNameLengths xattrValueLengths xattrNames xattrValues`
      .split(/\s+/).map((name, index) => [name, index]))

  // Entries: 0 root, 1-6 a-f, 7 x, 8 y. Inodes: 0 root, 1 a, 2 b, 3 d, 4 e, 5 f, 6 x, 7 y.
  const cases: [what: string, section: string, at: number, bytes: number[], code?: string][] = [
    ['a name with a slash', 'names', 0, [0x2f]],
    ['a name with a NUL', 'names', 0, [0]],
    ['the name .', 'names', 0, [0x2e]],
    ['an empty name', 'nameLengths', 0, [0]],
    ['names longer than their section', 'nameLengths', 7, [9]],
    ['names that descend', 'names', 0, [0x7a]],
    ['a name twice', 'names', 1, [0x61]],
    ['a shared inode that comes later', 'inodesBack', 0, [0]],
    ['a shared inode from before the first', 'inodesBack', 0, [4]],
    ['a second name of a directory', 'inodesBack', 0, [2]],
    ['a second name of the root', 'inodesBack', 0, [3]],
    ['a repeat at an entry that does not exist', 'repeatGaps', 0, [99]],
    ['a root that shares an inode', 'repeatGaps', 0, [0]],
    ['a root that is a file', 'kinds', 0, [Kind.file]],
    ['kind 0', 'kinds', 6, [0]],
    ['kind 10', 'kinds', 6, [10]],
    ['an opaque fifo', 'kinds', 6, [0x80 | Kind.fifo]],
    ['a fifo turned symlink', 'kinds', 6, [Kind.symlink]],
    ['a fifo turned device', 'kinds', 6, [Kind.character]],
    ['a fifo turned file', 'kinds', 6, [Kind.file]],
    ['a fifo turned directory', 'kinds', 6, [Kind.directory]],
    ['a directory turned file', 'kinds', 1, [Kind.file]],
    ['a mode above 07777', 'modes', 1, [0xff]],
    ['a time above 2^53', 'secondsHigh', 2, [0x20]],
    ['a time below -2^53', 'secondsHigh', 0, [0, 0, 0xdf, 0xff]],
    ['nanoseconds of a whole second', 'nanoseconds', 0, [0x00, 0xca, 0x9a, 0x3b]],
    ['a set of attributes out of turn', 'xattrSets', 24, [2]],
    ['a set that does not exist', 'xattrSets', 28, [3]],
    ['a set that no inode uses', 'xattrSets', 28, [1]],
    ['more children than entries', 'childCounts', 0, [200]],
    ['an entry in no directory', 'childCounts', 0, [5]],
    ['children of nobody', 'childCounts', 4, [0]],
    ['an empty target', 'targetLengths', 0, [0]],
    ['a target beyond its section', 'targetLengths', 0, [7]],
    ['a target with a NUL', 'targets', 0, [0]],
    ['a link to a path that goes up', 'targets', 6, [0x2e, 0x2e, 0x2f]],
    ['more pieces than there are', 'pieceCounts', 0, [5]],
    ['a piece of nobody', 'pieceCounts', 0, [2]],
    ['piece type 3', 'pieceTypes', 0, [3]],
    ['a hole turned chunk', 'pieceTypes', 1, [0]],
    ['a chunk turned hole', 'pieceTypes', 0, [2]],
    ['a repeat of a chunk that comes later', 'chunksBack', 0, [0]],
    ['a repeat of a chunk from before the first', 'chunksBack', 0, [3]],
    ['an empty hole', 'holesLow', 0, [0, 0]],
    ['a hole of 2^53 bytes', 'holesHigh', 0, [0, 0, 0x20], 'LIMIT_EXCEEDED'],
    ['an empty chunk', 'chunkBytes', 0, [0]],
    ['a chunk above the limit', 'chunkBytes', 0, [1, 0, 0x10], 'LIMIT_EXCEEDED'],
    ['a digest twice', 'chunkDigests', 32, [...digestOf(Buffer.from('1'))]],
    ['an empty set of attributes', 'xattrCounts', 0, [0]],
    ['more attributes than there are', 'xattrCounts', 4, [2]],
    ['attributes that no set has', 'xattrCounts', 0, [1]],
    ['an attribute without a name', 'xattrNameLengths', 0, [0]],
    ['an attribute beyond its section', 'xattrValueLengths', 8, [2]],
    ['attributes that are not sorted', 'xattrNames', 5, [0x63]],
    ['attribute names with a NUL', 'xattrNames', 5, [0]],
  ]
  for (const [what, name, at, bytes, code = 'FORMAT_INVALID'] of cases) {
    test(`${what}: refused`, () => {
      const tree = example()
      const { offset, length } = sectionsOf(tree)[section[name]]
      assert.ok(at + bytes.length <= length, 'the case lies inside the section')
      tree.set(bytes, offset + at)
      assert.throws(() => decodeTree(tree), { code })
    })
  }

  test('padding that is not zero: refused', () => {
    const tree = example()
    const { offset, length } = sectionsOf(tree)[section.names]
    assert.equal(length, 8)
    const kinds = sectionsOf(tree)[section.xattrNameLengths]
    assert.equal(tree[offset - 1], 0x01)
    tree[kinds.offset + kinds.length] = 1
    assert.throws(() => decodeTree(tree), { code: 'FORMAT_INVALID' })
  })

  test('a set of attributes twice: refused', () => {
    const tree = example()
    const sections = sectionsOf(tree)
    // Sets {a: 1, b: 2} and {a: 2} become {a: 2} and {a: 2} with one attribute too many, so the counts are changed as well.
    const builder = new TreeBuilder(init(Kind.directory))
    for (const value of ['1', '2']) builder.addEntry(0, value, builder.addInode(init(Kind.file, { xattrs: [{ name: 'user.a', value: Buffer.from(value) }] })))
    const twice = encoded(builder)
    twice[sectionsOf(twice)[section.xattrValues].offset] = 0x32
    assert.throws(() => decodeTree(twice), { code: 'FORMAT_INVALID' })
    assert.ok(sections.length > 0)
  })

  test('any section length in the table: refused without allocating it', () => {
    const random = new Random(seed)
    const bytes = example()
    for (let index = 0; index < sectionsOf(bytes).length; index++) {
      for (const length of [0, 1, 7, 8, 4096, 0x7fffffff, 0xfffffff8, 0xffffffff, random.uint32()]) {
        const changed = Uint8Array.from(bytes)
        new DataView(changed.buffer).setUint32(16 + 4 * index, length, true)
        decodeHostile(changed)
      }
    }
  })

  test('mutated and random bytes are refused or mean a tree that encodes to them', () => {
    const random = new Random(seed)
    const context = `VARVE_TEST_SEED=${seed}`
    try {
      let accepted = 0
      for (let round = 0; round < 200; round++) {
        const bytes = encodeTree(randomTree(random, { entries: random.below(30) }))
        for (let change = 0; change < 40; change++) {
          const changed = Uint8Array.from(bytes)
          for (let byte = random.between(1, 3); byte > 0; byte--) changed[random.below(changed.length)] = random.chance(0.3) ? random.below(256) : random.below(4)
          if (decodeHostile(changed) !== undefined) accepted++
        }
      }
      for (let round = 0; round < 500; round++) {
        const noise = Uint8Array.from(random.bytes(random.below(2000)))
        noise.set(Buffer.from('varvtree\x01\0\0\0\x1d\0\0\0', 'latin1').subarray(0, noise.length))
        decodeHostile(noise)
      }
      assert.ok(accepted > 0, 'some changes (a uid, a digest) leave a tree')
    } catch (cause) {
      throw new Error(context, { cause })
    }
  })
})

describe('tree builder', () => {
  const refused: [what: string, more: InodeInit, expected: object][] = [
    ['a mode above 07777', init(Kind.file, { mode: 0o10000 }), { name: 'RangeError' }],
    ['a negative owner', init(Kind.file, { uid: -1 }), { name: 'RangeError' }],
    ['a fraction of a second', init(Kind.file, { mtimeSeconds: 0.5 }), { name: 'RangeError' }],
    ['a second of nanoseconds', init(Kind.file, { mtimeNanoseconds: 1_000_000_000 }), { name: 'RangeError' }],
    ['a symlink without a target', init(Kind.symlink), { code: 'SOURCE_INVALID' }],
    ['a target above the limit', init(Kind.symlink, { target: Buffer.alloc(TARGET_BYTES_MAX + 1, 'x') }), { code: 'LIMIT_EXCEEDED' }],
    ['a link that leaves the tree', init(Kind.link, { target: Buffer.from('../x') }), { code: 'SOURCE_INVALID' }],
    ['an attribute above the limit', init(Kind.file, { xattrs: [{ name: 'user.a', value: new Uint8Array(XATTR_VALUE_BYTES_MAX + 1) }] }), { code: 'LIMIT_EXCEEDED' }],
    ['an attribute twice', init(Kind.file, { xattrs: [{ name: 'user.a', value: Buffer.of(1) }, { name: 'user.a', value: Buffer.of(2) }] }), { code: 'SOURCE_INVALID' }],
  ]
  for (const [what, more, expected] of refused) {
    test(`${what}: refused when it is added`, () => {
      assert.throws(() => new TreeBuilder(init(Kind.directory)).addInode(more), expected)
    })
  }

  test('a name twice in a directory, or two names of a directory: refused', () => {
    const twice = new TreeBuilder(init(Kind.directory))
    for (const uid of [1, 2]) twice.addEntry(0, 'n', twice.addInode(init(Kind.file, { uid })))
    assert.throws(() => twice.build(), { code: 'SOURCE_INVALID' })
    const linked = new TreeBuilder(init(Kind.directory))
    const directory = linked.addInode(init(Kind.directory))
    linked.addEntry(0, 'a', directory)
    linked.addEntry(0, 'b', directory)
    assert.throws(() => linked.build(), { code: 'SOURCE_INVALID' })
  })

  test('entries added in any order stand breadth first and by the bytes of their names', () => {
    const builder = new TreeBuilder(init(Kind.directory))
    const late = builder.addEntry(0, 'b', builder.addInode(init(Kind.directory)))
    builder.addEntry(late, 'z', builder.addInode(init(Kind.file)))
    const early = builder.addEntry(0, 'a', builder.addInode(init(Kind.directory)))
    builder.addEntry(early, 'y', builder.addInode(init(Kind.file)))
    builder.addEntry(late, '\xe9', builder.addInode(init(Kind.file)))
    builder.addEntry(late, 'A', builder.addInode(init(Kind.file)))
    const tree = builder.build()
    assert.deepEqual(Array.from({ length: tree.entryCount }, (_, entry) => tree.path(entry)), ['', 'a', 'b', 'a/y', 'b/A', 'b/z', 'b/\xe9'])
    assert.equal(tree.find('b/z'), 5)
    assert.equal(tree.find('b/nothing'), -1)
  })
})
