/** Merging by path: one test per rule of docs/merge.md. */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { Kind } from '@varve/images/tree/tree.ts'
import { MemoryStore } from '@varve/images/store/memory-store.ts'
import { mergeTrees } from '@varve/composer/merge/merge.ts'
import { contentOf, layerTree, mergeSpecs, paths } from './layers.ts'
import { rebuilt } from '../../images/tree/rebuilt-tree.ts'
import type { LayerSpec } from './layers.ts'

describe('a merge by path', () => {
  test('takes the last layer that has a path, and keeps what only one has', async () => {
    const merged = await mergeSpecs([{ 'a/x': 'low', 'a/y': 'only low' }, { 'a/x': 'high', 'a/z': 'only high' }])
    assert.deepEqual(paths(merged.tree), ['a', 'a/x', 'a/y', 'a/z'])
    assert.equal(contentOf(merged, 'a/x'), 'high')
    assert.equal(contentOf(merged, 'a/y'), 'only low')
  })

  test('gives a directory the metadata of the topmost layer that has it, the root too', async () => {
    const { tree } = await mergeSpecs([
      { '': { dir: true, mode: 0o755, uid: 1 }, d: { dir: true, mode: 0o700, mtimeSeconds: 5 } },
      { '': { dir: true, mode: 0o711, uid: 2 }, d: { dir: true, mode: 0o1777, mtimeSeconds: 6, xattrs: [{ name: 'user.a', value: Buffer.from('1') }] } },
      { '': { dir: true, mode: 0o700, uid: 3 } },
    ])
    const inode = tree.inode[tree.find('d')]
    assert.deepEqual([tree.mode[inode], tree.mtimeSeconds[inode], tree.xattrSets[tree.xattrSet[inode]].length], [0o1777, 6, 1])
    assert.deepEqual([tree.mode[0], tree.uid[0]], [0o700, 3])
  })

  test('deletes below a whiteout, and brings a name back above it', async () => {
    const merged = await mergeSpecs([{ 'd/x': '1', 'd/y': '1', 'e/f/g': '1' }, { 'd/x': { whiteout: true }, 'd/y': { whiteout: true }, e: { whiteout: true } }, { 'd/y': '3', 'e/f/h': '3' }])
    assert.deepEqual(paths(merged.tree), ['d', 'e', 'd/y', 'e/f', 'e/f/h'])
    assert.equal(contentOf(merged, 'd/y'), '3')
  })

  test('takes no harm from a whiteout of a name that does not exist', async () => {
    const { tree, report } = await mergeSpecs([{ a: '1' }, { b: { whiteout: true }, 'new/c': { whiteout: true }, a: { whiteout: true } }, { a: { whiteout: true } }], { report: 'all' })
    assert.deepEqual(paths(tree), ['new'])
    assert.deepEqual(report.paths.map(({ path }) => path), ['a'])
  })

  test('hides what lies below an opaque directory, and keeps what it has itself', async () => {
    const { tree } = await mergeSpecs([{ 'd/low': '1', 'd/sub/low': '1' }, { d: { dir: true, opaque: true }, 'd/high': '2', 'd/sub/high': '2' }, { 'd/top': '3' }])
    assert.deepEqual(paths(tree), ['d', 'd/high', 'd/sub', 'd/top', 'd/sub/high'])
    assert.equal(tree.opaque.includes(1), false)
  })

  test('hides everything below an opaque root', async () => {
    const { tree } = await mergeSpecs([{ a: '1', 'd/x': '1' }, { '': { dir: true, opaque: true }, 'd/y': '2' }, { c: '3' }])
    assert.deepEqual(paths(tree), ['c', 'd', 'd/y'])
  })

  test('replaces a directory with all below it by a file, and a file by a directory', async () => {
    const { tree } = await mergeSpecs([{ 'a/b/c': '1', f: '1', 'g/low': '1' }, { a: 'file', 'f/x': '2', g: { symlink: 'f' } }, { 'g/high': '3' }])
    assert.deepEqual(paths(tree), ['a', 'f', 'g', 'f/x', 'g/high'])
    assert.equal(tree.kind[tree.inode[tree.find('a')]], Kind.file)
  })

  test('gives a single layer back without whiteouts, opaque flags and links', async () => {
    const { tree } = await mergeSpecs([{ a: { whiteout: true }, d: { dir: true, opaque: true }, 'd/x': { content: 'x' }, 'd/y': { link: 'd/x' } }])
    assert.deepEqual(paths(tree), ['d', 'd/x', 'd/y'])
    assert.equal(tree.inode[tree.find('d/x')], tree.inode[tree.find('d/y')])
    assert.equal(tree.opaque.includes(1), false)
  })

  test('gives a plain single layer back as it is', async () => {
    const store = new MemoryStore()
    const tree = layerTree({ 'a/b': 'x' })
    await using writer = store.writer()
    assert.equal((await mergeTrees([{ name: 'a@1', kind: 'base', tree }], { store, writer })).tree, tree)
  })

  test('orders names by their bytes and numbers everything canonically', async () => {
    const xattrs = (value: string) => [{ name: 'user.x', value: Buffer.from(value) }]
    const { tree } = await mergeSpecs([
      { 'z/ÿ': { content: 'same', xattrs: xattrs('b') }, 'z/a': 'other', 'z/Z': { content: '', xattrs: xattrs('a') } },
      { 'z/\x80': 'same', 'z/b': { symlink: 'x' }, a: { content: 'new', xattrs: xattrs('b') }, 'z/h': { same: 'a' } },
    ])
    assert.deepEqual(tree, rebuilt(tree))
  })
})

describe('hard links', () => {
  const inodesOf = (merged: Awaited<ReturnType<typeof mergeSpecs>>, ...names: string[]) => names.map((name) => merged.tree.inode[merged.tree.find(name)])

  test('of one layer share their inode in the result', async () => {
    const merged = await mergeSpecs([{ a: 'x', 'd/b': { same: 'a' } }, { 'd/c': 'y', e: { same: 'd/c' } }])
    const [a, b, c, e] = inodesOf(merged, 'a', 'd/b', 'd/c', 'e')
    assert.equal(a, b)
    assert.equal(c, e)
    assert.notEqual(a, c)
  })

  test('keep the content when a name of it is replaced or deleted above', async () => {
    const merged = await mergeSpecs([{ a: 'x', b: { same: 'a' }, c: { same: 'a' }, d: { same: 'a' } }, { a: 'new' }, { b: { whiteout: true } }])
    const [a, c, d] = inodesOf(merged, 'a', 'c', 'd')
    assert.equal(c, d)
    assert.notEqual(a, c)
    assert.deepEqual([contentOf(merged, 'a'), contentOf(merged, 'c')], ['new', 'x'])
    assert.deepEqual(paths(merged.tree), ['a', 'c', 'd'])
  })

  test('to a path of the layers below share the inode there, with its metadata', async () => {
    const merged = await mergeSpecs([{ 'usr/bin/a': { content: 'x', mode: 0o4755, uid: 7 } }, { 'bin/b': { link: 'usr/bin/a', mode: 0o600, uid: 9 } }])
    const [a, b] = inodesOf(merged, 'usr/bin/a', 'bin/b')
    assert.equal(a, b)
    assert.deepEqual([merged.tree.mode[a], merged.tree.uid[a]], [0o4755, 7])
    assert.equal(merged.tree.kind.includes(Kind.link), false)
  })

  test('to a path below stay with that inode when the path is replaced or deleted later', async () => {
    const merged = await mergeSpecs([{ a: 'old', d: 'old d' }, { b: { link: 'a' }, e: { link: 'd' } }, { a: 'new', d: { whiteout: true } }])
    assert.deepEqual([contentOf(merged, 'a'), contentOf(merged, 'b'), contentOf(merged, 'e')], ['new', 'old', 'old d'])
  })

  test('to a path that their own layer deletes keep its content', async () => {
    const merged = await mergeSpecs([{ a: 'old' }, { a: { whiteout: true }, b: { link: 'a' } }])
    assert.deepEqual(paths(merged.tree), ['b'])
    assert.equal(contentOf(merged, 'b'), 'old')
  })

  test('to links, across layers, end at the file', async () => {
    const merged = await mergeSpecs([{ 'd/a': 'x' }, { 'd/b': { link: 'd/a' } }, { c: { link: 'd/b' }, e: { link: 'c' } }])
    assert.equal(new Set(inodesOf(merged, 'd/a', 'd/b', 'c', 'e')).size, 1)
  })

  test('that lead nowhere are a conflict that names them, and are left out', async () => {
    const specs: LayerSpec[] = [{ a: 'x', d: { dir: true } }, { b: { link: 'missing' }, c: { link: 'd' }, x: { link: 'y' }, y: { link: 'x' }, a: { whiteout: true } }, { z: { link: 'a' } }]
    const { tree, report } = await mergeSpecs(specs)
    assert.deepEqual(paths(tree), ['d'])
    assert.deepEqual(report.conflicts.map(({ key }) => key), ['b#link', 'c#link', 'x#link', 'y#link', 'z#link'])
    assert.equal(report.open, 5)
    assert.match(report.conflicts[0].detail, /missing/)
    const decided = await mergeSpecs(specs, { decisions: new Map([['b#link', 'layer@1']]) })
    assert.equal(decided.report.open, 4)
  })
})

describe('the report', () => {
  test('names owner, winner, losers and why for every path of several layers', async () => {
    const { report } = await mergeSpecs(
      [
        { same: 'x', changed: 'x', gone: 'x', 'dir/a': 'x', 'opaque/a': 'x', 'opaque/b': 'x', file: 'x', quiet: { dir: true } },
        { same: 'x', changed: 'y', 'opaque/b': 'y', quiet: { dir: true } },
        { changed: 'z', gone: { whiteout: true }, dir: 'file', opaque: { dir: true, opaque: true, mode: 0o700 }, 'opaque/b': 'z', 'file/a': 'x', only: 'x' },
      ],
      { report: 'all' },
    )
    const rows = Object.fromEntries(report.paths.map(({ path, owner, winner, losers, why }) => [path, [owner, winner, losers.join(' '), why]]))
    assert.deepEqual(rows, {
      changed: ['layer@0', 'layer@2', 'layer@0 layer@1', 'last layer'],
      dir: ['layer@0', 'layer@2', 'layer@0', 'replaces directory'],
      file: ['layer@0', 'layer@2', 'layer@0', 'replaced by directory'],
      gone: ['layer@0', 'layer@2', 'layer@0', 'whiteout'],
      opaque: ['layer@0', 'layer@2', 'layer@0 layer@1', 'opaque directory'],
      'opaque/b': ['layer@0', 'layer@2', 'layer@0 layer@1', 'opaque directory'],
      same: ['layer@0', 'layer@1', 'layer@0', 'identical'],
    })
  })

  test('has a directory where the metadata of the layers differ', async () => {
    const { report } = await mergeSpecs([{ d: { dir: true, mode: 0o700 }, e: { dir: true } }, { d: { dir: true, mode: 0o755 }, e: { dir: true } }], { report: 'all' })
    assert.deepEqual(report.paths.map(({ path, why }) => [path, why]), [['d', 'last layer']])
  })

  test('has only conflicts unless more is asked for, and tells which decisions fit none', async () => {
    const { report } = await mergeSpecs([{ a: 'x' }, { a: 'y' }], { decisions: new Map([['etc/passwd#nobody', 'layer@1']]) })
    assert.deepEqual(report, { paths: [], conflicts: [], open: 0, unusedDecisions: ['etc/passwd#nobody'] })
  })

  test('does not change the tree', async () => {
    const specs: LayerSpec[] = [{ 'd/a': 'x', 'e/b/c': 'x' }, { d: { dir: true, opaque: true }, 'd/b': 'y', 'e/b/c': 'x' }, { 'd/a': { whiteout: true }, 'd/q/r': 'z' }]
    assert.deepEqual((await mergeSpecs(specs, { report: 'all' })).tree, (await mergeSpecs(specs)).tree)
  })
})
