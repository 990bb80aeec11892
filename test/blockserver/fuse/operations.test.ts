/**
 * What the kernel asks of a mount, without a kernel: answers by bytes, and requests that no kernel writes.
 */
import assert from 'node:assert/strict'
import { readFileSync, readdirSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { DiskFiles } from '@varve/blockserver/fuse/disk-files.ts'
import { ENODATA, ENOENT, ENOSPC, ENOSYS, ENXIO, EPERM, ERANGE, EROFS, Refusal, errnoOf } from '@varve/blockserver/fuse/errno.ts'
import { Operations } from '@varve/blockserver/fuse/operations.ts'
import type { Reply } from '@varve/blockserver/fuse/operations.ts'
import { FallocateMode, InitFlag, Opcode, Request, SEEK_DATA, SEEK_HOLE } from '@varve/blockserver/fuse/protocol.ts'
import { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { MemoryDevice } from '@varve/images/device/memory-device.ts'
import { VarveError } from '@varve/images/errors.ts'
import { TreeFilesystem } from '@varve/images/filesystems/tree-filesystem.ts'
import { Random, testSeed } from '../../random.ts'
import { MemoryTree } from '../../images/filesystems/memory-tree.ts'
import { storeOfTree } from '../../images/filesystems/tree-model.ts'
import { name, requestBytes, u32s, u64s } from './requests.ts'

const ROUNDS = Number(process.env.VARVE_FUZZ_ROUNDS ?? 20_000)
const HEADER_BYTES = 16
const corpus = path.join(import.meta.dirname, 'corpus')

async function mountedTree(): Promise<Operations> {
  const tree = new MemoryTree()
  tree.file(0, 'file', [Buffer.from('content'), 100_000, Buffer.alloc(50_000, 7)], { xattrs: [{ name: 'user.note', value: Buffer.from('value') }] })
  tree.symlink(0, 'link', 'file')
  const directory = tree.directory(0, 'directory')
  for (let index = 0; index < 300; index++) tree.file(directory, `file ${index}`, [])
  const built = tree.build()
  const files = new TreeFilesystem(built.tree, await storeOfTree(built), ChunkCache.create({ bytesMax: 8 << 20 }))
  return new Operations({ files }, { names: ['kept'], open: async (of) => (of === 'kept' ? { files } : undefined) })
}

function mountedDisk(sizeBytes = 1 << 20): { operations: Operations; disk: MemoryDevice } {
  const disk = new MemoryDevice(sizeBytes)
  return { disk, operations: new Operations(new DiskFiles([{ name: 'disk.raw', device: disk }], { uid: 0, gid: 0, time: { seconds: 1, nanoseconds: 2 } })) }
}

async function asked(operations: Operations, bytes: Buffer): Promise<Buffer> {
  const reply: Reply = await operations.handle(new Request(bytes))
  const answer = Buffer.concat([reply.head, ...(reply.parts ?? [])]).subarray(HEADER_BYTES)
  reply.release?.()
  return Buffer.from(answer)
}

async function refused(operations: Operations, bytes: Buffer): Promise<number> {
  try {
    await asked(operations, bytes)
  } catch (error) {
    return errnoOf(error)
  }
  return 0
}

async function nodeOf(operations: Operations, text: string, nodeId = 1n): Promise<bigint> {
  return (await asked(operations, requestBytes({ opcode: Opcode.lookup, nodeId, body: name(text) }))).readBigUInt64LE(0)
}

function readIn(offset: number, size: number): Buffer {
  return Buffer.concat([u64s(0, offset), u32s(size, 0), u64s(0), u32s(0, 0)])
}

test('a file is found, and read with its holes; behind its end there is nothing', async () => {
  const operations = await mountedTree()
  const file = await nodeOf(operations, 'file')
  const whole = await asked(operations, requestBytes({ opcode: Opcode.read, nodeId: file, body: readIn(0, 1 << 20) }))
  assert.ok(whole.equals(Buffer.concat([Buffer.from('content'), Buffer.alloc(100_000), Buffer.alloc(50_000, 7)])))
  assert.equal((await asked(operations, requestBytes({ opcode: Opcode.read, nodeId: file, body: readIn(150_007, 4096) }))).length, 0)
  assert.equal((await asked(operations, requestBytes({ opcode: Opcode.read, nodeId: file, body: readIn(2 ** 50, 4096) }))).length, 0)
})

test('SEEK_DATA and SEEK_HOLE see the holes, and the end as one', async () => {
  const operations = await mountedTree()
  const file = await nodeOf(operations, 'file')
  const seek = async (offset: number, whence: number): Promise<number> => Number((await asked(operations, requestBytes({ opcode: Opcode.lseek, nodeId: file, body: Buffer.concat([u64s(0, offset), u32s(whence, 0)]) }))).readBigUInt64LE(0))
  assert.equal(await seek(0, SEEK_DATA), 0)
  assert.equal(await seek(0, SEEK_HOLE), 7)
  assert.equal(await seek(7, SEEK_DATA), 100_007)
  assert.equal(await seek(100_007, SEEK_HOLE), 150_007)
  for (const whence of [SEEK_DATA, SEEK_HOLE]) {
    assert.equal(await refused(operations, requestBytes({ opcode: Opcode.lseek, nodeId: file, body: Buffer.concat([u64s(0, 150_007), u32s(whence, 0)]) })), ENXIO)
  }
})

test('a directory is listed in any steps, each entry once, with and without attributes', async () => {
  const operations = await mountedTree()
  const directory = await nodeOf(operations, 'directory')
  for (const [opcode, headBytes] of [[Opcode.readdir, 0], [Opcode.readdirplus, 128]] as const) {
    const found: string[] = []
    for (let offset = 0n; ; ) {
      const bytes = await asked(operations, requestBytes({ opcode, nodeId: directory, body: readIn(Number(offset), 1000) }))
      if (bytes.length === 0) break
      for (let at = 0; at < bytes.length; ) {
        const length = bytes.readUInt32LE(at + headBytes + 16)
        found.push(bytes.toString('latin1', at + headBytes + 24, at + headBytes + 24 + length))
        offset = bytes.readBigUInt64LE(at + headBytes + 8)
        at += headBytes + ((24 + length + 7) & ~7)
      }
    }
    assert.deepEqual(found.sort(), ['.', '..', ...Array.from({ length: 300 }, (_, index) => `file ${index}`)].sort())
  }
})

test('snapshots are directories of the root, with files of their own', async () => {
  const operations = await mountedTree()
  const snapshot = await nodeOf(operations, '@kept')
  assert.equal(snapshot >> 48n, 1n)
  const inside = await nodeOf(operations, 'file', snapshot)
  assert.equal(inside >> 48n, 1n)
  assert.equal(await refused(operations, requestBytes({ opcode: Opcode.lookup, body: name('@gone') })), ENOENT)
  assert.equal((await nodeOf(operations, '@kept', snapshot)), 0n)
  assert.equal((await asked(operations, requestBytes({ opcode: Opcode.read, nodeId: inside, body: readIn(0, 7) }))).toString(), 'content')
})

test('attributes are given by name, and only if there is room', async () => {
  const operations = await mountedTree()
  const file = await nodeOf(operations, 'file')
  const get = (text: string, size: number) => requestBytes({ opcode: Opcode.getxattr, nodeId: file, body: Buffer.concat([u32s(size, 0), name(text)]) })
  assert.equal((await asked(operations, get('user.note', 0))).readUInt32LE(0), 5)
  assert.equal((await asked(operations, get('user.note', 5))).toString(), 'value')
  assert.equal(await refused(operations, get('user.note', 4)), ERANGE)
  assert.equal(await refused(operations, get('user.other', 100)), ENODATA)
  assert.equal((await asked(operations, requestBytes({ opcode: Opcode.listxattr, nodeId: file, body: u32s(100, 0) }))).toString(), 'user.note\0')
})

test('a kernel that is too old is refused; others are offered what they have', async () => {
  const operations = await mountedTree()
  await assert.rejects(async () => asked(operations, requestBytes({ opcode: Opcode.init, body: u32s(7, 27, 4096, 0) })), VarveError)
  const answer = await asked(operations, requestBytes({ opcode: Opcode.init, body: u32s(7, 31, 131072, InitFlag.maxPages | InitFlag.asyncRead | 1 << 16) }))
  assert.deepEqual([answer.readUInt32LE(0), answer.readUInt32LE(4), answer.readUInt32LE(12)], [7, 31, InitFlag.maxPages | InitFlag.asyncRead])
})

test('nothing of files can be changed', async () => {
  const operations = await mountedTree()
  const file = await nodeOf(operations, 'file')
  const changes = [[Opcode.mkdir, u32s(0, 0)], [Opcode.unlink, name('file')], [Opcode.create, Buffer.alloc(40)], [Opcode.setattr, Buffer.alloc(88)], [Opcode.write, Buffer.alloc(60)], [Opcode.setxattr, Buffer.alloc(40)], [Opcode.fallocate, Buffer.alloc(32)]] as const
  for (const [opcode, body] of changes) assert.equal(await refused(operations, requestBytes({ opcode, nodeId: file, body })), EROFS, `request ${opcode}`)
  assert.equal(await refused(operations, requestBytes({ opcode: 4095 })), ENOSYS)
})

test('a disk is written to, flushed and trimmed by its file, and keeps its size', async () => {
  const { operations, disk } = mountedDisk()
  const file = await nodeOf(operations, 'disk.raw')
  const write = (offset: number, bytes: Buffer) => requestBytes({ opcode: Opcode.write, nodeId: file, body: Buffer.concat([u64s(0, offset), u32s(bytes.length, 0), u64s(0), u32s(0, 0), bytes]) })
  assert.equal((await asked(operations, write(4096, Buffer.from('written')))).readUInt32LE(0), 7)
  assert.equal((await asked(operations, requestBytes({ opcode: Opcode.read, nodeId: file, body: readIn(4096, 7) }))).toString(), 'written')
  await asked(operations, requestBytes({ opcode: Opcode.fsync, nodeId: file, body: Buffer.concat([u64s(0), u32s(0, 0)]) }))
  assert.equal((await asked(operations, write(disk.sizeBytes - 3, Buffer.from('written')))).readUInt32LE(0), 3)
  assert.equal(await refused(operations, write(disk.sizeBytes, Buffer.from('written'))), ENOSPC)
  const allocate = (mode: number, length: number) => requestBytes({ opcode: Opcode.fallocate, nodeId: file, body: Buffer.concat([u64s(0, 4096, length), u32s(mode, 0)]) })
  assert.equal(await refused(operations, allocate(FallocateMode.zeroRange, disk.sizeBytes)), EPERM)
  await asked(operations, allocate(FallocateMode.punchHole | FallocateMode.keepSize, 4096))
  assert.ok((await asked(operations, requestBytes({ opcode: Opcode.read, nodeId: file, body: readIn(4096, 7) }))).equals(Buffer.alloc(7)))
  const resize = (valid: number, size: number) => requestBytes({ opcode: Opcode.setattr, nodeId: file, body: Buffer.concat([u32s(valid, 0), u64s(0, size), Buffer.alloc(64)]) })
  assert.equal(await refused(operations, resize(8, 0)), EPERM)
  assert.equal(await refused(operations, resize(8, disk.sizeBytes)), 0)
})

test('requests that no kernel writes are refused with a code, and hurt nobody', async () => {
  const seed = testSeed()
  const random = new Random(seed)
  const kept = readdirSync(corpus).map((file) => Buffer.from(readFileSync(path.join(corpus, file), 'utf8').replaceAll(/#.*|\s/g, ''), 'hex'))
  const targets = [await mountedTree(), mountedDisk().operations]
  const nodes = [1n, 2n, 3n, 0n, 1n << 48n, (1n << 48n) + 3n, 2n ** 64n - 1n, 2n ** 53n]
  for (let round = 0; round < ROUNDS + kept.length; round++) {
    const bytes = round < kept.length ? kept[round] : randomRequest(random, nodes)
    for (const operations of targets) {
      try {
        assert.ok((await asked(operations, bytes)).length <= 2 << 20)
      } catch (error) {
        const isAnswer = error instanceof Refusal || error instanceof VarveError || error instanceof RangeError && /^(?:no file has the id|there is no filesystem|\d+ is no )/.test(error.message)
        assert.ok(isAnswer, `seed ${seed}, round ${round}: ${bytes.toString('hex')}: ${(error as Error).stack}`)
      }
    }
  }
})

function randomRequest(random: Random, nodes: readonly bigint[]): Buffer {
  const numbers = [0, 1, 7, 8, 4096, 100_007, 150_007, 2 ** 31, 2 ** 32, 2 ** 53, 2 ** 63, random.below(2 ** 53)]
  const parts = Array.from({ length: random.below(12) }, () => u64s(random.pick(numbers)))
  if (random.chance(0.3)) parts.push(random.bytes(random.below(100)))
  if (random.chance(0.3)) parts.unshift(name(random.pick(['file', '..', '.', '', '@kept', '@../x', 'a/b', 'directory', 'x'.repeat(5000)])))
  const body = Buffer.concat(parts)
  const bytes = requestBytes({ opcode: random.chance(0.9) ? random.pick(Object.values(Opcode)) : random.uint32(), nodeId: random.pick(nodes), unique: random.chance(0.9) ? 2n : 2n ** 64n - 1n, body, ...(random.chance(0.1) ? { lengthBytes: random.uint32() } : {}) })
  return random.chance(0.1) ? bytes.subarray(0, random.below(bytes.length + 1)) : bytes
}
