import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { test } from 'node:test'
import { findKernels, linksTo, resolve } from '@varve/composer/boot/kernels.ts'
import { compareVersions } from '@varve/composer/boot/version-order.ts'
import { TreeBuilder } from '@varve/images/tree/tree-builder.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import type { Tree } from '@varve/images/tree/tree.ts'
import { Random, testSeed } from '../../random.ts'

/** A tree of files (of one byte) and symlinks (`path -> target`). */
function treeOf(...lines: string[]): Tree {
  const common = { mode: 0o755, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanoseconds: 0 }
  const builder = new TreeBuilder({ ...common, kind: Kind.directory })
  const directories = new Map([['', 0]])
  for (const line of lines) {
    const [path, target] = line.split(' -> ')
    const names = path.split('/')
    const name = names.pop()!
    let parent = 0
    names.forEach((directory, index) => {
      const key = names.slice(0, index + 1).join('/')
      if (!directories.has(key)) directories.set(key, builder.addEntry(parent, directory, builder.addInode({ ...common, kind: Kind.directory })))
      parent = directories.get(key)!
    })
    const inode = builder.addInode(target === undefined ? { ...common, kind: Kind.file } : { ...common, kind: Kind.symlink, target: Buffer.from(target) })
    if (target === undefined) builder.setContent(inode, [builder.addChunk(Buffer.alloc(32), 1)], [1])
    builder.addEntry(parent, name, inode)
  }
  return builder.build()
}

test('kernels are found newest first, each with its initrd', () => {
  const tree = treeOf('boot/vmlinuz-6.1.0-9-amd64', 'boot/vmlinuz-6.1.0-10-amd64', 'boot/initrd.img-6.1.0-10-amd64', 'boot/vmlinuz-virt', 'boot/initramfs-virt', 'boot/config-6.1.0-9-amd64', 'boot/vmlinuz -> vmlinuz-virt')
  assert.deepEqual(findKernels(tree), [
    { version: 'virt', path: 'boot/vmlinuz-virt', initrdPath: 'boot/initramfs-virt' },
    { version: '6.1.0-10-amd64', path: 'boot/vmlinuz-6.1.0-10-amd64', initrdPath: 'boot/initrd.img-6.1.0-10-amd64' },
    { version: '6.1.0-9-amd64', path: 'boot/vmlinuz-6.1.0-9-amd64', initrdPath: undefined },
  ])
  assert.deepEqual(findKernels(treeOf('etc/passwd')), [])
})

test('the links count only if kernel and initrd lead to the newest', () => {
  const files = ['boot/vmlinuz-2', 'boot/initrd.img-2', 'boot/vmlinuz-1', 'boot/initrd.img-1']
  const linksOf = (...more: string[]) => {
    const tree = treeOf(...files, ...more)
    return linksTo(tree, findKernels(tree)[0])?.kernel
  }
  assert.equal(linksOf('vmlinuz -> boot/vmlinuz-2', 'initrd.img -> /boot/initrd.img-2'), 'vmlinuz')
  assert.equal(linksOf('vmlinuz -> boot/vmlinuz-2', 'initrd.img -> boot/initrd.img-1'), undefined)
  assert.equal(linksOf('vmlinuz -> boot/vmlinuz-1', 'initrd.img -> boot/initrd.img-1'), undefined)
  assert.equal(linksOf('boot/vmlinuz -> vmlinuz-2', 'boot/initrd.img -> ../boot/./initrd.img-2'), 'boot/vmlinuz')
  assert.equal(linksOf(), undefined)
})

test('links that lead nowhere or in a circle are not followed for ever', () => {
  const tree = treeOf('a -> b', 'b -> a', 'c -> /nothing/here', 'd -> ../../../e', 'e')
  assert.equal(resolve(tree, 'a'), -1)
  assert.equal(resolve(tree, 'c'), -1)
  assert.equal(resolve(tree, 'd'), tree.find('e'))
})

test('versions are ordered as dpkg orders them', () => {
  const seed = testSeed()
  const random = new Random(seed)
  const pairs: [string, string][] = [['6.1.0-9', '6.1.0-10'], ['1.0~rc1', '1.0'], ['1.0', '1.0a'], ['1.0+b', '1.0'], ['007', '7'], ['6.12', '6.12-amd64']]
  for (let index = 0; index < 150; index++) {
    const version = () => `1${Array.from({ length: random.between(0, 8) }, () => random.pick([...'0129.+~aZ'])).join('')}`
    pairs.push([version(), version()])
  }
  for (const [a, b] of pairs) {
    const expected = (['lt', 'eq', 'gt'] as const).find((relation) => dpkgAgrees(a, relation, b))
    const actual = compareVersions(a, b)
    assert.equal(actual < 0 ? 'lt' : actual > 0 ? 'gt' : 'eq', expected, `${a} and ${b}; VARVE_TEST_SEED=${seed}`)
    assert.equal(Math.sign(compareVersions(b, a)) + Math.sign(actual), 0)
  }
})

function dpkgAgrees(a: string, relation: string, b: string): boolean {
  try {
    // A dash would split off a revision, which names of kernels do not have.
    execFileSync('dpkg', ['--compare-versions', a.replaceAll('-', '+'), relation, b.replaceAll('-', '+')], { stdio: 'ignore' })
    return true
  } catch {
    return false
  }
}
