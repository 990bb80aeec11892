/** Contents that are merged by meaning: limits, damage, and how they are stored. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { digestOf } from '@varve/images/chunk/digest.ts'
import { MemoryStore } from '@varve/images/store/memory-store.ts'
import { TreeBuilder } from '@varve/images/tree/tree-builder.ts'
import { HOLE, Kind } from '@varve/images/tree/tree.ts'
import type { Tree } from '@varve/images/tree/tree.ts'
import { mergeTrees } from '@varve/composer/merge/merge.ts'
import { MERGED_FILE_BYTES_MAX } from '@varve/composer/merge/merge-contents.ts'
import { contentOf, mergeSpecs } from './layers.ts'

const METADATA = { mode: 0o644, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanoseconds: 0 }

/** A layer whose etc/passwd has the given pieces; a piece without a digest is a hole. */
function passwdTree(pieces: { digest?: Uint8Array; bytes: number }[]): Tree {
  const builder = new TreeBuilder({ ...METADATA, kind: Kind.directory })
  const inode = builder.addInode({ ...METADATA, kind: Kind.file })
  builder.addEntry(builder.addEntry(0, 'etc', builder.addInode({ ...METADATA, kind: Kind.directory })), 'passwd', inode)
  builder.setContent(inode, pieces.map(({ digest, bytes }) => (digest === undefined ? HOLE : builder.addChunk(digest, bytes))), pieces.map(({ bytes }) => bytes))
  return builder.build()
}

async function mergePasswd(store: MemoryStore, ...trees: Tree[]) {
  await using writer = store.writer()
  const result = await mergeTrees(trees.map((tree, index) => ({ name: `layer@${index}`, kind: 'app', tree })), { store, writer })
  await writer.commit()
  return result
}

test('a version above the limit is refused before it is read', async () => {
  await assert.rejects(mergePasswd(new MemoryStore(), passwdTree([]), passwdTree([{ bytes: MERGED_FILE_BYTES_MAX + 1 }])), { code: 'LIMIT_EXCEEDED' })
})

test('a missing chunk, and one of another length than its tree says, are errors with a code', async () => {
  const store = new MemoryStore()
  await using writer = store.writer()
  const digest = writer.put(Buffer.from('a:x:1:1::/:\n'))
  await writer.commit()
  await assert.rejects(mergePasswd(store, passwdTree([]), passwdTree([{ digest: digestOf(Buffer.from('gone')), bytes: 4 }])), { code: 'CHUNK_MISSING' })
  await assert.rejects(mergePasswd(store, passwdTree([]), passwdTree([{ digest, bytes: 5 }])), { code: 'FORMAT_INVALID' })
})

test('layers that give one chunk two lengths are refused', async () => {
  const digest = digestOf(Buffer.from('x'))
  const other = new TreeBuilder({ ...METADATA, kind: Kind.directory })
  const inode = other.addInode({ ...METADATA, kind: Kind.file })
  other.addEntry(0, 'x', inode)
  other.setContent(inode, [other.addChunk(digest, 1)], [1])
  await assert.rejects(mergePasswd(new MemoryStore(), passwdTree([{ digest, bytes: 2 }]), other.build()), { code: 'FORMAT_INVALID' })
})

test('a file of several chunks and holes is read whole and cut as an import cuts it', async () => {
  const lines = Array.from({ length: 30_000 }, (_, index) => `user${index}:x:${index}:${index}::/home/user${index}:/bin/sh\n`)
  const merged = await mergeSpecs([{ 'etc/passwd': lines.slice(0, 20_000).join('') }, { 'etc/passwd': lines.slice(10_000).join('') }])
  assert.equal(contentOf(merged, 'etc/passwd'), lines.join(''))
  const imported = await mergeSpecs([{ 'etc/passwd': lines.join('') }])
  assert.deepEqual(merged.tree.chunkDigests, imported.tree.chunkDigests)
  const holes = await mergePasswd(new MemoryStore(), passwdTree([{ bytes: 5 }]), passwdTree([{ bytes: 7 }]))
  assert.equal(holes.tree.sizeBytes[holes.tree.inode[holes.tree.find('etc/passwd')]], 14)
})

test('a merge that was called off rejects', async () => {
  await assert.rejects(mergeSpecs([{ a: 'x' }], { signal: AbortSignal.abort() }), { name: 'AbortError' })
})
