/**
 * Files that are copied out of hostile filesystems stay below the target.
 */
import assert from 'node:assert/strict'
import { closeSync, lstatSync, mkdirSync, openSync, readFileSync, readdirSync, symlinkSync } from 'node:fs'
import { test } from 'node:test'
import { isVarveError } from '@varve/images/errors.ts'
import type { ErrorCode } from '@varve/images/errors.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import { CopyOut } from '@varve/tools/files/copy-out.ts'
import { HostileFilesystem } from '../../images/filesystems/hostile-filesystem.ts'
import type { HostileNode } from '../../images/filesystems/hostile-filesystem.ts'
import { ScratchDirectory } from '../../varve-command.ts'

async function copied(scratch: ScratchDirectory, nodes: Record<number, HostileNode>): Promise<void> {
  mkdirSync(scratch.join('outside'), { recursive: true })
  mkdirSync(scratch.join('target'), { recursive: true })
  const fd = openSync(scratch.join('target'), 'r')
  try {
    const files = new HostileFilesystem(nodes)
    await new CopyOut(files, fd, new AbortController().signal).copyInside(files.node(1))
  } finally {
    closeSync(fd)
  }
}

async function refused(nodes: (scratch: ScratchDirectory) => Record<number, HostileNode>, code: ErrorCode): Promise<void> {
  using scratch = new ScratchDirectory('copy-out')
  await assert.rejects(() => copied(scratch, nodes(scratch)), (error) => isVarveError(error, code))
  assert.deepEqual(readdirSync(scratch.join('outside')), [])
  assert.deepEqual(readdirSync(scratch.path).sort(), ['outside', 'target'])
}

const file: HostileNode = { kind: Kind.file, content: 'written' }

test('names that lead elsewhere are refused', async () => {
  for (const name of ['..', '.', '', '../outside/x', 'a/b', 'a\0b', '/x']) {
    await refused(() => ({ 1: { kind: Kind.directory, entries: [{ name, id: 2 }] }, 2: file }), 'FORMAT_INVALID')
  }
})

test('a name that stands twice, first as a symlink, is refused', async () => {
  await refused((scratch) => ({
    1: { kind: Kind.directory, entries: [{ name: 'a', id: 2 }, { name: 'a', id: 3 }] },
    2: { kind: Kind.symlink, target: scratch.join('outside') },
    3: { kind: Kind.directory, entries: [{ name: 'x', id: 4 }] },
    4: file,
  }), 'FORMAT_INVALID')
})

test('nothing is written through a symlink that lies in the target', async () => {
  using scratch = new ScratchDirectory('copy-out')
  mkdirSync(scratch.join('target'))
  mkdirSync(scratch.join('outside'))
  symlinkSync(scratch.join('outside'), scratch.join('target', 'a'))
  for (const node of [file, { kind: Kind.directory, entries: [{ name: 'x', id: 3 }] } satisfies HostileNode]) {
    await assert.rejects(() => copied(scratch, { 1: { kind: Kind.directory, entries: [{ name: 'a', id: 2 }] }, 2: node, 3: file }), (error) => isVarveError(error, 'ALREADY_EXISTS'))
  }
  assert.deepEqual(readdirSync(scratch.join('outside')), [])
})

test('directories in a circle are refused', async () => {
  await refused(() => ({ 1: { kind: Kind.directory, entries: [{ name: 'a', id: 1 }] } }), 'FORMAT_INVALID')
})

test('symlinks that lead out are copied, and not followed; modes and times are those of the file', async () => {
  using scratch = new ScratchDirectory('copy-out')
  await copied(scratch, {
    1: { kind: Kind.directory, entries: [{ name: 'link', id: 2 }, { name: 'file', id: 3 }, { name: 'fifo', id: 4 }] },
    2: { kind: Kind.symlink, target: '../outside' },
    3: file,
    4: { kind: Kind.fifo },
  })
  assert.deepEqual(readdirSync(scratch.join('outside')), [])
  assert.equal(readFileSync(scratch.join('target', 'file'), 'utf8'), 'written')
  assert.equal(lstatSync(scratch.join('target', 'file')).mode & 0o7777, 0o6777)
  assert.equal(lstatSync(scratch.join('target', 'fifo'), { bigint: true }).mtimeNs, 1_000_000_002n)
  assert.ok(lstatSync(scratch.join('target', 'link')).isSymbolicLink())
})
