import assert from 'node:assert/strict'
import { test } from 'node:test'
import { isVarveError } from '@varve/images/errors.ts'
import type { ErrorCode } from '@varve/images/errors.ts'
import { resolvePath } from '@varve/images/filesystems/file-paths.ts'
import { walk } from '@varve/images/filesystems/walk.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import { HostileFilesystem } from './hostile-filesystem.ts'

const files = new HostileFilesystem({
  1: { kind: Kind.directory, entries: [{ name: 'usr', id: 2 }, { name: 'lib', id: 3 }, { name: 'loop', id: 4 }, { name: 'out', id: 5 }, { name: 'self', id: 9 }] },
  2: { kind: Kind.directory, entries: [{ name: 'lib', id: 6 }] },
  3: { kind: Kind.symlink, target: 'usr/lib' },
  4: { kind: Kind.symlink, target: '/loop' },
  5: { kind: Kind.symlink, target: '../../../usr/./lib/../lib//file' },
  6: { kind: Kind.directory, entries: [{ name: 'file', id: 7 }, { name: 'up', id: 8 }] },
  7: { kind: Kind.file, content: 'x' },
  8: { kind: Kind.symlink, target: '/usr/lib/file' },
  9: { kind: Kind.symlink, target: '.' },
})

async function idOf(path: string, follow = false): Promise<number> {
  return (await resolvePath(files, path, { follow })).id
}

async function refused(work: () => Promise<unknown>, code: ErrorCode): Promise<void> {
  await assert.rejects(work, (error) => isVarveError(error, code))
}

test('symlinks are followed inside of the filesystem, the last one only if it is asked for', async () => {
  assert.equal(await idOf('/lib/file'), 7)
  assert.equal(await idOf('lib'), 3)
  assert.equal(await idOf('lib/'), 6)
  assert.equal(await idOf('lib', true), 6)
  assert.equal(await idOf('lib/up', true), 7)
  assert.equal(await idOf('out', true), 7)
  assert.equal(await idOf('self/self/self/usr'), 2)
})

test('nothing is above the root', async () => {
  assert.equal(await idOf('../../..'), 1)
  assert.equal(await idOf('/usr/../../lib/../lib'), 6)
})

test('what is not there, or goes round in a circle, is refused', async () => {
  await refused(() => idOf('usr/bin'), 'NOT_FOUND')
  await refused(() => idOf('lib/file/x'), 'NOT_FOUND')
  await refused(() => idOf('lib/file/..'), 'NOT_FOUND')
  await refused(() => idOf('loop', true), 'LIMIT_EXCEEDED')
  await refused(() => idOf('x/'.repeat(100_000)), 'LIMIT_EXCEEDED')
})

test('a walk gives names in the order of their bytes, and ends at directories in a circle and names that stand twice', async () => {
  const paths: string[] = []
  for await (const { path } of walk(files, { sorted: true })) paths.push(path)
  assert.deepEqual(paths, ['', 'lib', 'loop', 'out', 'self', 'usr', 'usr/lib', 'usr/lib/file', 'usr/lib/up'])
  const below: string[] = []
  for await (const { path } of walk(files, { from: await idOf('usr'), sorted: true })) below.push(path)
  assert.deepEqual(below, ['', 'lib', 'lib/file', 'lib/up'])
  const circle = new HostileFilesystem({ 1: { kind: Kind.directory, entries: [{ name: 'a', id: 1 }] } })
  const twice = new HostileFilesystem({ 1: { kind: Kind.directory, entries: [{ name: 'a', id: 2 }, { name: 'a', id: 3 }] }, 2: { kind: Kind.symlink, target: '/' }, 3: { kind: Kind.directory, entries: [] } })
  for (const hostile of [circle, twice]) await refused(async () => { for await (const { path } of walk(hostile, { sorted: true })) paths.push(path) }, 'FORMAT_INVALID')
})
