import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { isVarveError } from '@varve/images/errors.ts'
import { TreeFilesystem } from '@varve/images/filesystems/tree-filesystem.ts'
import { MemoryStore } from '@varve/images/store/memory-store.ts'
import { Random, testSeed } from '../../random.ts'
import { checkFilesystem, filesystemConformance } from './conformance.ts'
import { MemoryTree } from './memory-tree.ts'
import { randomTree } from './random-tree.ts'
import { modelOfTree, storeOfTree } from './tree-model.ts'
import { tortureTree } from './torture-tree.ts'

const SMALL = { crowd: 2000, subdirectories: 500, entries: 8000, holes: 300, sparseBytes: 5 * 2 ** 30 }
/** Smaller than most chunks: reads go around it, too. */
const CACHE_BYTES = 8 << 20

filesystemConformance('the torture tree', async () => {
  const built = tortureTree(testSeed(), SMALL)
  const store = await storeOfTree(built)
  const filesystem = new TreeFilesystem(built.tree, store, ChunkCache.create({ bytesMax: CACHE_BYTES }))
  return { filesystem, model: modelOfTree(built), [Symbol.asyncDispose]: async () => store[Symbol.asyncDispose]() }
})

test('random trees are as their models, from stores that answer late too', async () => {
  const seed = testSeed()
  const random = new Random(seed)
  for (let round = 0; round < 6; round++) {
    const built = randomTree(random)
    await using store = await storeOfTree(built)
    if (round % 2 === 1) Object.assign(store, { get: async (...args: Parameters<MemoryStore['get']>) => MemoryStore.prototype.get.apply(store, args) })
    await checkFilesystem({ filesystem: new TreeFilesystem(built.tree, store, ChunkCache.create({ bytesMax: CACHE_BYTES })), model: modelOfTree(built) }, seed)
  }
})

test('files of the same chunks have the same key, whatever their names', async () => {
  const tree = new MemoryTree()
  const [one, other] = [Buffer.alloc(5000, 1), Buffer.alloc(5000, 2)]
  for (const [name, pieces] of [['a', [one, 8192, other]], ['b', [one, 8192, other]], ['c', [one, 8191, other]], ['d', [other, 8192, one]]] as const) tree.file(0, name, [...pieces])
  const filesystem = new TreeFilesystem(tree.build().tree, new MemoryStore(), ChunkCache.create({ bytesMax: CACHE_BYTES }))
  const [a, b, c, d] = filesystem.list(1).map(({ id }) => filesystem.contentKey(id))
  assert.equal(a, b)
  assert.equal(new Set([a, c, d]).size, 3)
})

test('a file of many pieces is read alike from its start, from its end, and in turns with another', async () => {
  const random = new Random(testSeed())
  const tree = new MemoryTree()
  const contents = ['a', 'b'].map((name) => {
    const pieces = Array.from({ length: 700 }, () => (random.chance(0.2) ? random.between(1, 5000) : random.bytes(random.between(1, 3000))))
    tree.file(0, name, pieces)
    return Buffer.concat(pieces.map((piece) => (typeof piece === 'number' ? Buffer.alloc(piece) : piece)))
  })
  const built = tree.build()
  await using store = await storeOfTree(built)
  const filesystem = new TreeFilesystem(built.tree, store, ChunkCache.create({ bytesMax: CACHE_BYTES }))
  for (let round = 0; round < 500; round++) {
    const content = random.pick(contents)
    const offset = random.below(content.length + 1)
    const into = Buffer.alloc(random.below(Math.min(20_000, content.length - offset) + 1), 7)
    await filesystem.read(filesystem.child(1, content === contents[0] ? 'a' : 'b')!, into, offset)
    assert.ok(into.equals(content.subarray(offset, offset + into.length)), `${into.length} bytes at ${offset}`)
  }
})

test('a chunk that is missing is an error of the read, with its code', async () => {
  const tree = new MemoryTree()
  tree.file(0, 'lost', [Buffer.alloc(5000, 1)])
  const filesystem = new TreeFilesystem(tree.build().tree, new MemoryStore(), ChunkCache.create({ bytesMax: CACHE_BYTES }))
  await assert.rejects(async () => filesystem.read(filesystem.child(1, 'lost')!, new Uint8Array(10), 0), (error) => isVarveError(error, 'CHUNK_MISSING'))
})
