/**
 * Random layers, made as directories in overlayfs' own spelling, are mounted by the kernel; mergeTrees must give what the mount shows:
 * names, kinds, metadata, contents, extended attributes, and which names share an inode.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { chmodSync, linkSync, lstatSync, lchownSync, lutimesSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, readlinkSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { readXattrs } from '@varve/images/native/libc.ts'
import { MemoryStore } from '@varve/images/store/memory-store.ts'
import type { ChunkWriter } from '@varve/images/store/chunk-store.ts'
import { TreeBuilder } from '@varve/images/tree/tree-builder.ts'
import type { InodeInit } from '@varve/images/tree/tree-builder.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import type { Tree, Xattr } from '@varve/images/tree/tree.ts'
import { mergeTrees } from '@varve/composer/merge/merge.ts'
import { Random, testSeed } from '../../random.ts'
import { contentOf, setContent } from './layers.ts'
import { rebuilt } from '../../images/tree/rebuilt-tree.ts'

const ROUNDS = 20
const NAMES = ['a', 'b', 'c', 'd', 'B', 'a.b', 'é', 'aa']
const DEPTH_MAX = 4

test('a merge shows what overlayfs shows', async () => {
  const seed = testSeed()
  const random = new Random(seed)
  const root = mkdtempSync(join(tmpdir(), 'varve-overlayfs-'))
  try {
    const whiteout = join(root, 'whiteout')
    execFileSync('mknod', [whiteout, 'c', '0', '0'])
    for (let round = 0; round < ROUNDS; round++) {
      const directory = join(root, String(round))
      const layers = Array.from({ length: random.between(2, 6) }, (_, index) => {
        const path = join(directory, String(index))
        makeLayer(path, { random, layer: index, whiteout })
        return path
      })
      const store = new MemoryStore()
      await using writer = store.writer()
      const merged = await mergeTrees(layers.map((path, index) => ({ name: `layer@${index}`, kind: 'app', tree: scan(path, writer) })), { store, writer, report: random.pick(['all', 'conflicts']) })
      await writer.commit()
      assert.deepEqual(described({ tree: merged.tree, store }), mounted(directory, layers, random.chance(0.5)), `seed ${seed}, round ${round}`)
      assert.deepEqual(merged.tree, rebuilt(merged.tree), `seed ${seed}, round ${round}`)
      assert.equal(merged.report.open, 0)
      rmSync(directory, { recursive: true })
    }
  } finally {
    rmSync(root, { recursive: true })
  }
})

/** Whiteouts as character devices 0/0, opaque directories by their attribute. */
function makeLayer(path: string, { random, layer, whiteout }: { random: Random; layer: number; whiteout: string }): void {
  const files: string[] = []
  const fifos: string[] = []
  /** As `getfattr --dump` writes it. */
  const attributes: string[] = []
  const made: string[] = [path]
  const fill = (directory: string, depth: number) => {
    for (const name of NAMES) {
      if (!random.chance(depth === 0 ? 0.7 : 0.4)) continue
      const entry = join(directory, name)
      const kind = random.below(20)
      if (layer > 0 && kind < 4) {
        linkSync(whiteout, entry)
        continue
      }
      if (kind < 12 && depth < DEPTH_MAX) {
        mkdirSync(entry)
        if (layer > 0 && random.chance(0.2)) attributes.push(`# file: ${entry.slice(1)}\ntrusted.overlay.opaque="y"\n`)
        fill(entry, depth + 1)
      } else if (kind < 14 && files.length > 0) {
        linkSync(random.pick(files), entry)
        continue
      } else if (kind === 14) {
        symlinkSync(random.pick(NAMES), entry)
      } else if (kind === 15) {
        fifos.push(entry)
      } else {
        writeFileSync(entry, random.chance(0.2) ? '' : `${layer} ${random.below(1000)}`)
        files.push(entry)
      }
      if (kind !== 14 && random.chance(0.2)) attributes.push(`# file: ${entry.slice(1)}\n${kind === 15 ? 'trusted.other' : 'user.test'}="${random.below(3)}"\n`)
      made.push(entry)
    }
  }
  mkdirSync(path, { recursive: true })
  fill(path, 0)
  if (fifos.length > 0) execFileSync('mkfifo', fifos)
  if (attributes.length > 0) execFileSync('setfattr', ['--restore=-'], { input: attributes.join('\n'), cwd: '/' })
  for (const entry of made.toReversed()) {
    lchownSync(entry, random.below(3) * 70_000, random.below(3))
    if (!lstatSync(entry).isSymbolicLink()) chmodSync(entry, random.pick([0o644, 0o755, 0o4711, 0o1777]))
    lutimesSync(entry, 0, random.between(-1000, 1_000_000) + random.below(4) / 4)
  }
}

/** The tree of a directory that holds a layer. */
function scan(path: string, writer: ChunkWriter): Tree {
  const builder = new TreeBuilder(inodeOf(path))
  const known = new Map<bigint, number>()
  const add = (directory: string, parent: number) => {
    for (const bytes of readdirSync(directory, { encoding: 'buffer' })) {
      const entryPath = join(directory, bytes.toString())
      const { ino } = lstatSync(entryPath, { bigint: true })
      const init = inodeOf(entryPath)
      let inode = known.get(ino)
      if (inode === undefined) {
        inode = builder.addInode(init)
        known.set(ino, inode)
        if (init.kind === Kind.file) setContent(builder, inode, readFileSync(entryPath), writer)
      }
      const entry = builder.addEntry(parent, bytes.toString('latin1'), inode)
      if (init.kind === Kind.directory) add(entryPath, entry)
    }
  }
  add(path, 0)
  return builder.build()
}

function inodeOf(path: string): InodeInit {
  const stat = lstatSync(path, { bigint: true })
  const xattrs = readXattrs(Buffer.from(path))
  const kind = stat.isFile() ? Kind.file : stat.isDirectory() ? Kind.directory : stat.isSymbolicLink() ? Kind.symlink : stat.isFIFO() ? Kind.fifo : Kind.whiteout
  const second = 1_000_000_000n
  const nanoseconds = ((stat.mtimeNs % second) + second) % second
  return {
    kind,
    mode: Number(stat.mode & 0o7777n),
    uid: Number(stat.uid),
    gid: Number(stat.gid),
    mtimeSeconds: Number((stat.mtimeNs - nanoseconds) / second),
    mtimeNanoseconds: Number(nanoseconds),
    opaque: xattrs.some(({ name }) => name === 'trusted.overlay.opaque'),
    ...(kind === Kind.symlink ? { target: readlinkSync(path, 'buffer') } : {}),
    xattrs: xattrs.filter(({ name }) => !name.startsWith('trusted.overlay.')),
  }
}

/** All that the kernel shows, by path. */
function mounted(directory: string, layers: string[], withUpper: boolean): Record<string, unknown> {
  const target = join(directory, 'mounted')
  mkdirSync(target)
  mkdirSync(join(directory, 'work'))
  const lower = layers.slice(0, withUpper ? -1 : undefined).reverse().join(':')
  const upper = withUpper ? `,upperdir=${layers.at(-1)},workdir=${join(directory, 'work')}` : ''
  execFileSync('mount', ['-t', 'overlay', 'overlay', '-o', `ro,lowerdir=${lower}${upper}`, target])
  try {
    const shown = new Shown()
    const walk = (path: string, name: string) => {
      const init = inodeOf(path)
      shown.add(name, init, lstatSync(path).ino, init.kind === Kind.file ? readFileSync(path, 'latin1') : '')
      if (init.kind !== Kind.directory) return
      for (const child of readdirSync(path)) {
        // the kernel lists the whiteouts of a directory that only one layer has, but does not find them
        const exists = lstatSync(join(path, child), { throwIfNoEntry: false }) !== undefined
        if (exists) walk(join(path, child), name === '' ? child : `${name}/${child}`)
      }
    }
    walk(target, '')
    return shown.entries
  } finally {
    execFileSync('umount', [target])
  }
}

function described({ tree, store }: { tree: Tree; store: MemoryStore }): Record<string, unknown> {
  const shown = new Shown()
  const walk = (entry: number) => {
    const inode = tree.inode[entry]
    const target = tree.targets.get(inode)
    const init: InodeInit = {
      kind: tree.kind[inode] as Kind,
      mode: tree.mode[inode],
      uid: tree.uid[inode],
      gid: tree.gid[inode],
      mtimeSeconds: tree.mtimeSeconds[inode],
      mtimeNanoseconds: tree.mtimeNanoseconds[inode],
      opaque: tree.opaque[inode] === 1,
      ...(target === undefined ? {} : { target }),
      xattrs: tree.xattrSets[tree.xattrSet[inode]],
    }
    shown.add(Buffer.from(tree.path(entry), 'latin1').toString(), init, inode, init.kind === Kind.file ? contentOf({ tree, store }, tree.path(entry)) : '')
    for (let child = 0; child < tree.childCount[entry]; child++) walk(tree.firstChild[entry] + child)
  }
  walk(0)
  return shown.entries
}

/** Entries in a form that can be compared: names that share an inode get the first of them, by the order of names. */
class Shown {
  readonly #entries = new Map<string, { inode: number; shown: object }>()

  add(path: string, { xattrs, target, ...init }: InodeInit, inode: number, content: string): void {
    const attributes = (xattrs ?? []).map(({ name, value }: Xattr) => `${name}=${Buffer.from(value).toString('latin1')}`)
    this.#entries.set(path, { inode, shown: { ...init, content, attributes, ...(target === undefined ? {} : { target: Buffer.from(target).toString('latin1') }) } })
  }

  get entries(): Record<string, unknown> {
    const first = new Map<number, string>()
    const sorted = [...this.#entries].sort(([a], [b]) => (a < b ? -1 : 1))
    for (const [path, { inode }] of sorted) if (!first.has(inode)) first.set(inode, path)
    return Object.fromEntries(sorted.map(([path, { inode, shown }]) => [path, { ...shown, sharedWith: first.get(inode) }]))
  }
}
