import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { describe, test } from 'node:test'
import { digestOf, digestToHex } from '@varve/images/chunk/digest.ts'
import { TreeBuilder } from '@varve/images/tree/tree-builder.ts'
import type { InodeInit } from '@varve/images/tree/tree-builder.ts'
import { decodeTree } from '@varve/images/tree/tree-format.ts'
import { HOLE, Kind } from '@varve/images/tree/tree.ts'
import { Workspace } from '@varve/images/tree/workspace.ts'
import { Random, testSeed } from '../../random.ts'
import { randomTree } from './random-tree.ts'
import { encodeTree, encoded } from './rebuilt-tree.ts'

const seed = testSeed()
const DIRECTORY: InodeInit = { kind: Kind.directory, mode: 0o755, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanoseconds: 0 }
const FILES = 100_000

/** Many files of all sorts in no order, and the path of each file with its size; the seed says which. */
function manyFiles(space: Workspace): { builder: TreeBuilder; sizes: Map<string, number> } {
  const random = new Random(seed)
  const builder = new TreeBuilder(DIRECTORY, space)
  const directories = Array.from({ length: FILES / 100 }, (_, index) => builder.addEntry(0, `directory-${index}`, builder.addInode(DIRECTORY)))
  const sizes = new Map<string, number>()
  const digest = new Uint8Array(32)
  for (let file = 0; file < FILES; file++) {
    const directory = random.below(directories.length)
    const xattrs = random.chance(0.05) ? [{ name: 'user.number', value: Uint8Array.of(random.below(256), random.below(256)) }] : []
    const inode = builder.addInode({ ...DIRECTORY, kind: Kind.file, mtimeSeconds: random.uint32(), xattrs })
    const chunks: number[] = []
    const lengths: number[] = []
    for (let piece = random.pick([0, 1, 1, 1, 1, 1, 2, 5]); piece > 0; piece--) {
      const isHole = random.chance(0.05)
      new DataView(digest.buffer).setUint32(0, random.chance(0.1) ? random.below(1000) : random.uint32())
      const bytes = isHole ? 2 ** 33 : 100 + digest[3]
      chunks.push(isHole ? HOLE : builder.addChunk(digest, bytes))
      lengths.push(bytes)
    }
    builder.setContent(inode, chunks, lengths)
    builder.addEntry(directories[directory], `file-${file}`, inode)
    sizes.set(`directory-${directory}/file-${file}`, lengths.reduce((sum, bytes) => sum + bytes, 0))
    if (random.chance(0.02)) {
      builder.addEntry(directories[0], `link-${file}`, inode)
      sizes.set(`directory-0/link-${file}`, sizes.get(`directory-${directory}/file-${file}`)!)
    }
  }
  return { builder, sizes }
}

describe('tree builder with a scratch file', () => {
  const directory = mkdtempSync(path.join(tmpdir(), 'varve-builder-'))
  test.after(() => rmSync(directory, { recursive: true }))

  test('gives the bytes that it gives from memory, and they hold what was added', () => {
    using space = new Workspace({ directory })
    const { builder, sizes } = manyFiles(space)
    const bytes = encoded(builder)
    assert.ok(bytes.equals(encoded(manyFiles(new Workspace()).builder)), `VARVE_TEST_SEED=${seed}`)
    const tree = decodeTree(bytes)
    assert.equal(tree.entryCount, 1 + FILES / 100 + sizes.size)
    for (const [file, size] of sizes) if (tree.sizeBytes[tree.inode[tree.find(file)]] !== size) assert.fail(`${file}, VARVE_TEST_SEED=${seed}`)
    assert.equal(space.bytes, 0, 'what it took is given back')
  })

  test('an entry takes 18 bytes of memory and its name, a chunk 12: five million files of a chunk each 200 MiB', () => {
    using space = new Workspace({ directory })
    const { builder, sizes } = manyFiles(space)
    const nameBytes = [...sizes.keys()].reduce((sum, file) => sum + file.length - file.indexOf('/') - 1, 0)
    const expected = builder.entryCount * 18 + nameBytes + builder.chunkCount * 12
    assert.ok(space.bytes < expected * 1.15, `${space.bytes} bytes instead of ${expected}`)
  })
})

describe('tree builder', () => {
  test('what was rolled back is not in the tree', () => {
    const build = (detour: boolean) => {
      const builder = new TreeBuilder(DIRECTORY)
      const kept = builder.addEntry(0, 'kept', builder.addInode(DIRECTORY))
      if (detour) {
        const mark = builder.mark()
        for (let file = 0; file < 1000; file++) builder.addEntry(kept, `gone-${file}`, builder.addInode({ ...DIRECTORY, kind: Kind.symlink, target: Buffer.from('x'), mtimeSeconds: 7 }))
        builder.rollBack(mark)
      }
      builder.addEntry(kept, 'file', builder.addInode({ ...DIRECTORY, kind: Kind.file }))
      return encoded(builder)
    }
    assert.deepEqual(build(true), build(false))
  })

  test('the bytes of trees have not changed', () => {
    // Of trees that the first version of the format's code has written.
    const digests = Array.from({ length: 40 }, (_, index) => {
      const random = new Random(index + 1)
      return digestOf(encodeTree(randomTree(random, { entries: random.below(400), depthMax: random.between(1, 12) })))
    })
    assert.equal(digestToHex(digestOf(Buffer.concat(digests))), '046c85567ebd8152ba13c102f583e0c7eb426f68ae332474620b203e4a9facba')
  })
})
