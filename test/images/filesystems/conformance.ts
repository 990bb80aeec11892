/**
 * What every Filesystem does, whatever it lies on. Each implementation's test file calls `filesystemConformance` with a filesystem and a model of what it holds,
 * or, where many filesystems are compared in one test, `checkFilesystem`.
 */
import assert from 'node:assert/strict'
import { describe, after, before, test } from 'node:test'
import type { ReadableDisk } from '@varve/images/device/block-device.ts'
import { extentAfter } from '@varve/images/filesystems/file-extents.ts'
import type { DirectoryEntry, FileExtent, FileNode, Filesystem, VolumeFilesystem } from '@varve/images/filesystems/filesystem.ts'
import { NAME_BYTES_MAX } from '@varve/images/tree/limits.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import type { Xattr } from '@varve/images/tree/tree.ts'
import { Random, testSeed } from '../../random.ts'
import { ContentDigest, digestWindows } from './model.ts'
import type { Model, ModelEntry } from './model.ts'

export interface FilesystemSubject {
  filesystem: Filesystem
  model: Model
  /** What the filesystem lies on, if it does: bytes at `diskOffset` are compared with the content. */
  volume?: ReadableDisk
  /** Names are the same whatever their case. */
  ignoresCase?: boolean
}

/** Files up to this size are read whole, and compared with themselves read at random; of larger ones, the neighbourhood of their extents. */
const WHOLE_BYTES_MAX = 4 << 20
const RANDOM_READS = 12

/** @param open is called once, and what it gives disposed of after the last test */
export function filesystemConformance(name: string, open: () => Promise<FilesystemSubject & AsyncDisposable>): void {
  const seed = testSeed()
  describe(`${name} as a filesystem (seed ${seed})`, () => {
    let subject: FilesystemSubject & AsyncDisposable
    let ids: Map<string, number>
    before(async () => {
      subject = await open()
    })
    after(async () => subject[Symbol.asyncDispose]())
    test('lists the names of the model', async () => {
      ids = await checkNames(subject)
    })
    test('finds each name, and no other', async () => checkChildren(subject, ids))
    test('nodes are as in the model', async () => checkNodes(subject, ids))
    test('targets and extended attributes are as in the model', async () => checkTargetsAndXattrs(subject, ids))
    test('content is as in the model, and where extents say', async () => checkContents(subject, ids, new Random(seed)))
    test('a part of a volume that nothing uses holds no content', async () => checkUnused(subject, ids))
    test('an id that was never given is a RangeError', async () => checkUnknownIds(subject))
    test('calls may run side by side', async () => checkSideBySide(subject, ids))
  })
}

/** All of the suite at once. @throws AssertionError, which names `seed` */
export async function checkFilesystem(subject: FilesystemSubject, seed: number): Promise<void> {
  try {
    const ids = await checkNames(subject)
    await checkChildren(subject, ids)
    await checkNodes(subject, ids)
    await checkTargetsAndXattrs(subject, ids)
    await checkContents(subject, ids, new Random(seed))
    await checkUnused(subject, ids)
    await checkUnknownIds(subject)
    await checkSideBySide(subject, ids)
  } catch (error) {
    if (error instanceof Error) error.message = `seed ${seed}: ${error.message}`
    throw error
  }
}

const parentOf = (path: string): string => path.slice(0, Math.max(0, path.lastIndexOf('/')))
const nameOf = (path: string): string => path.slice(path.lastIndexOf('/') + 1)
const joined = (path: string, name: string): string => (path === '' ? name : `${path}/${name}`)

/** Walks from the root. @returns the id of each path */
async function checkNames({ filesystem, model }: FilesystemSubject): Promise<Map<string, number>> {
  const expected = new Map<string, string[]>()
  for (const { path, kind } of model) {
    if (kind === Kind.directory) expected.set(path, [])
    if (path !== '') expected.get(parentOf(path))!.push(nameOf(path))
  }
  const ids = new Map([['', filesystem.root]])
  for (const [path, names] of expected) {
    const id = ids.get(path)!
    const entries = await filesystem.list(id)
    for (const entry of entries) checkEntry(entry, path)
    assert.deepEqual(entries.map(({ name }) => name).sort(), names.sort(), `names in ${JSON.stringify(path)}`)
    assert.deepEqual(await filesystem.list(id), entries, `${JSON.stringify(path)} listed twice`)
    for (const entry of entries) ids.set(joined(path, entry.name), entry.id)
  }
  return ids
}

function checkEntry({ name, id }: DirectoryEntry, path: string): void {
  const isPossible = name !== '' && name !== '.' && name !== '..' && !name.includes('/') && !name.includes('\0') && Buffer.from(name, 'latin1').toString('latin1') === name
  assert.ok(isPossible, `${JSON.stringify(path)} has the name ${JSON.stringify(name)}`)
  assert.ok(Number.isSafeInteger(id) && id > 0, `${JSON.stringify(joined(path, name))} has the id ${id}`)
}

async function checkChildren({ filesystem, model, ignoresCase = false }: FilesystemSubject, ids: Map<string, number>): Promise<void> {
  for (const { path, kind } of model) {
    const id = ids.get(path)!
    if (kind === Kind.directory) {
      for (const name of ['', '.', '..', 'no such name', '\xff\xfe', 'a/b', 'x'.repeat(NAME_BYTES_MAX + 1)]) {
        if (!ids.has(joined(path, name))) assert.equal(await filesystem.child(id, name), undefined, `${JSON.stringify(name)} in ${JSON.stringify(path)}`)
      }
    }
    if (path === '') continue
    const parent = ids.get(parentOf(path))!
    assert.equal(await filesystem.child(parent, nameOf(path)), id, path)
    const swapped = nameOf(path).replace(/[a-z]/gi, (letter) => (letter < 'a' ? letter.toLowerCase() : letter.toUpperCase()))
    const other = ids.get(joined(parentOf(path), swapped))
    assert.equal(await filesystem.child(parent, swapped), other ?? (ignoresCase ? id : undefined), `${path} in other case`)
  }
}

async function checkNodes({ filesystem, model }: FilesystemSubject, ids: Map<string, number>): Promise<void> {
  const idOfInode = new Map<bigint, number>()
  for (const entry of model) {
    const id = ids.get(entry.path)!
    const node = await filesystem.node(id)
    assert.equal(node.id, id, entry.path)
    for (const key of ['kind', 'mode', 'uid', 'gid', 'links', 'sizeBytes', 'modified', 'accessed', 'changed'] as const) {
      if (entry[key] !== undefined) assert.deepEqual(node[key], entry[key], `${key} of ${JSON.stringify(entry.path)}`)
    }
    if (entry.device !== undefined) assert.deepEqual({ major: node.deviceMajor, minor: node.deviceMinor }, entry.device, entry.path)
    else assert.ok(node.deviceMajor === 0 && node.deviceMinor === 0, entry.path)
    checkNode(node, entry.path)
    if (entry.inode === undefined) continue
    assert.equal(idOfInode.get(entry.inode) ?? id, id, `${entry.path} has the id of its other names`)
    idOfInode.set(entry.inode, id)
  }
  assert.equal(new Set(idOfInode.values()).size, idOfInode.size, 'files of their own have ids of their own')
}

function checkNode(node: FileNode, path: string): void {
  if (node.kind === Kind.directory) assert.equal(node.links, 1, path)
  if (node.kind !== Kind.file && node.kind !== Kind.symlink) assert.equal(node.sizeBytes, 0, path)
  for (const { seconds, nanoseconds } of [node.modified, node.accessed, node.changed]) {
    assert.ok(Number.isSafeInteger(seconds) && Number.isInteger(nanoseconds) && nanoseconds >= 0 && nanoseconds < 1e9, `times of ${path}`)
  }
}

async function checkTargetsAndXattrs({ filesystem, model }: FilesystemSubject, ids: Map<string, number>): Promise<void> {
  for (const { path, kind, target, xattrs } of model) {
    const id = ids.get(path)!
    if (kind === Kind.symlink) {
      const bytes = await filesystem.target(id)
      assert.equal(bytes.length, (await filesystem.node(id)).sizeBytes, path)
      if (target !== undefined) assert.equal(Buffer.from(bytes).toString('latin1'), target, path)
    }
    const found = await filesystem.xattrs(id)
    const names = found.map(({ name }) => name)
    assert.deepEqual(names, [...new Set(names)].sort(), `names of attributes of ${JSON.stringify(path)}`)
    if (xattrs !== undefined) assert.deepEqual(found.map(describeXattr), xattrs.map(describeXattr), `attributes of ${JSON.stringify(path)}`)
  }
}

/** Short enough for a message. */
function describeXattr({ name, value }: Xattr): string {
  return value.length <= 64 ? `${name}=${Buffer.from(value).toString('hex')}` : `${name}=${value.length} bytes, ${ContentDigest.of(value)}`
}

async function checkContents(subject: FilesystemSubject, ids: Map<string, number>, random: Random): Promise<void> {
  const done = new Set<number>()
  for (const entry of subject.model) {
    const id = ids.get(entry.path)!
    if (entry.kind !== Kind.file || done.has(id)) continue
    done.add(id)
    if (entry.isDamaged === true) {
      const { sizeBytes } = await subject.filesystem.node(id)
      await assert.rejects(readRange(subject.filesystem, id, 0, sizeBytes), { code: 'FORMAT_INVALID' }, `${entry.path}, which is damaged`)
    } else await checkContent(subject, id, entry, random)
  }
}

async function checkContent({ filesystem, volume }: FilesystemSubject, id: number, entry: ModelEntry, random: Random): Promise<void> {
  const { sizeBytes } = await filesystem.node(id)
  const extents = await filesystem.extents(id)
  checkOrder(extents, { sizeBytes, path: entry.path, volumeBytes: volume?.sizeBytes ?? filesystem.sizeBytes })
  if (entry.data !== undefined) assert.deepEqual(mergedParts(extents), entry.data, `where ${entry.path} has data`)
  const digest = new ContentDigest(sizeBytes)
  const parts = extents.map(({ fileOffset, length }) => ({ offset: fileOffset, length }))
  const isWhole = sizeBytes <= WHOLE_BYTES_MAX
  for (const { offset, length } of digestWindows(isWhole ? [{ offset: 0, length: sizeBytes }] : parts, sizeBytes)) {
    const bytes = await readRange(filesystem, id, offset, length)
    digest.add(offset, bytes)
    checkHoles(extents, bytes, offset, entry.path)
  }
  if (entry.contentDigest !== undefined) assert.equal(digest.digest(), entry.contentDigest, `content of ${entry.path}`)
  if (volume !== undefined) await checkPlaces({ filesystem, volume, id, extents, path: entry.path, random })
  await checkRandomReads({ filesystem, id, sizeBytes, extents, path: entry.path, random })
}

function checkOrder(extents: readonly FileExtent[], { sizeBytes, path, volumeBytes }: { sizeBytes: number; path: string; volumeBytes: number }): void {
  let end = 0
  for (const { fileOffset, length, diskOffset } of extents) {
    assert.ok(fileOffset >= end && length >= 1, `extents of ${path} at ${fileOffset}`)
    end = fileOffset + length
    assert.ok(diskOffset === undefined || (diskOffset >= 0 && diskOffset + length <= volumeBytes), `${path} at ${fileOffset} lies outside of the volume`)
  }
  assert.ok(end <= sizeBytes, `extents of ${path} end at ${end}, behind its end`)
}

function mergedParts(extents: readonly FileExtent[]): { offset: number; length: number }[] {
  const parts: { offset: number; length: number }[] = []
  for (const { fileOffset, length } of extents) {
    const last = parts.at(-1)
    if (last !== undefined && last.offset + last.length === fileOffset) last.length += length
    else parts.push({ offset: fileOffset, length })
  }
  return parts
}

async function readRange(filesystem: Filesystem, id: number, offset: number, length: number): Promise<Buffer> {
  const bytes = Buffer.alloc(length, 0xa5)
  await filesystem.read(id, bytes, offset)
  return bytes
}

/** What no extent covers is zero. @param bytes the content at `offset` */
function checkHoles(extents: readonly FileExtent[], bytes: Uint8Array, offset: number, path: string): void {
  let at = offset
  const end = offset + bytes.length
  for (let index = extentAfter(extents, offset); at < end; index++) {
    const next = Math.min(end, extents[index]?.fileOffset ?? end)
    if (next > at) assert.ok(bytes.subarray(at - offset, next - offset).every((byte) => byte === 0), `a hole of ${path} in ${at}..${next} holds something`)
    at = Math.max(next, extents[index] === undefined ? end : extents[index].fileOffset + extents[index].length)
  }
}

/** Bytes that an extent is compared by: all of a small one, a part of a larger one. */
const PLACE_BYTES_MAX = 64 << 10

async function checkPlaces({ filesystem, volume, id, extents, path, random }: { filesystem: Filesystem; volume: ReadableDisk; id: number; extents: readonly FileExtent[]; path: string; random: Random }): Promise<void> {
  for (const { fileOffset, length, diskOffset } of extents) {
    if (diskOffset === undefined) continue
    const count = Math.min(length, PLACE_BYTES_MAX)
    const from = random.below(length - count + 1)
    const stands = Buffer.alloc(count)
    await volume.read(stands, diskOffset + from)
    assert.ok(stands.equals(await readRange(filesystem, id, fileOffset + from, count)), `${path} at ${fileOffset + from} is not at ${diskOffset + from} of the volume`)
  }
}

async function checkRandomReads({ filesystem, id, sizeBytes, extents, path, random }: { filesystem: Filesystem; id: number; sizeBytes: number; extents: readonly FileExtent[]; path: string; random: Random }): Promise<void> {
  await filesystem.read(id, new Uint8Array(0), sizeBytes)
  for (let round = 0; round < RANDOM_READS && sizeBytes > 0; round++) {
    // Half of the ranges begin near the edge of an extent.
    const edge = extents.length > 0 && random.chance(0.5) ? random.pick(extents).fileOffset - random.below(8192) : random.below(sizeBytes)
    const offset = Math.max(0, edge)
    const length = Math.min(sizeBytes - offset, random.chance(0.3) ? random.between(1, 64) : random.between(1, 200_000))
    const bytes = await readRange(filesystem, id, offset, length)
    const cut = random.below(length + 1)
    const halves = [await readRange(filesystem, id, offset, cut), await readRange(filesystem, id, offset + cut, length - cut)]
    assert.ok(Buffer.concat(halves).equals(bytes), `${path} in ${offset}+${length}, in one piece and in two`)
    const from = offset - (offset % 4096)
    const around = await readRange(filesystem, id, from, Math.min(sizeBytes, offset + length) - from)
    assert.ok(around.subarray(offset - from).equals(bytes), `${path} in ${offset}+${length}, and from ${from} on`)
    checkHoles(extents, bytes, offset, path)
  }
}

/** Ranges of a volume that nothing uses are ordered, disjoint, inside of it, and no file lies there. */
async function checkUnused(subject: FilesystemSubject, ids: Map<string, number>): Promise<void> {
  if (!('unused' in subject.filesystem)) return
  const filesystem = subject.filesystem as VolumeFilesystem
  const unused: FileExtent[] = []
  let end = 0
  for await (const { offset, length } of filesystem.unused()) {
    assert.ok(offset >= end && length >= 1, `unused ranges at ${offset}`)
    end = offset + length
    unused.push({ fileOffset: offset, length })
  }
  assert.ok(end <= (subject.volume?.sizeBytes ?? filesystem.sizeBytes), `an unused range ends at ${end}, behind the volume`)
  for (const { path, kind } of subject.model) {
    if (kind !== Kind.file) continue
    for (const { diskOffset, length } of await filesystem.extents(ids.get(path)!)) {
      if (diskOffset === undefined) continue
      const next = unused[extentAfter(unused, diskOffset)]
      assert.ok(next === undefined || next.fileOffset >= diskOffset + length, `${path} lies at ${diskOffset}+${length}, which is said to be unused`)
    }
  }
}

async function checkUnknownIds({ filesystem }: FilesystemSubject): Promise<void> {
  for (const id of [0, -1, 1.5, NaN, Number.MAX_SAFE_INTEGER]) await assert.rejects(async () => filesystem.node(id), RangeError, `node ${id}`)
}

async function checkSideBySide({ filesystem }: FilesystemSubject, ids: Map<string, number>): Promise<void> {
  const some = [...ids.values()].slice(0, 64)
  const nodes = await Promise.all(some.map(async (id) => filesystem.node(id)))
  const files = nodes.filter(({ kind, sizeBytes }) => kind === Kind.file && sizeBytes > 0)
  const starts = async (file: FileNode) => readRange(filesystem, file.id, 0, Math.min(file.sizeBytes, 70_000))
  const together = await Promise.all(files.map(starts))
  for (const [index, file] of files.entries()) assert.ok((await starts(file)).equals(together[index]), `file ${file.id} read beside others`)
}
