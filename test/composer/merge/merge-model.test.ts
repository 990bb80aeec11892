/**
 * Merging against a plain model: layers are laid onto a map of paths one after the other, as unpacking would do it.
 * Covers what overlayfs does not have: links to paths of lower layers, opaque roots.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Kind } from '@varve/images/tree/tree.ts'
import type { Tree } from '@varve/images/tree/tree.ts'
import { Random, testSeed } from '../../random.ts'
import { mergeSpecs } from './layers.ts'
import { rebuilt } from '../../images/tree/rebuilt-tree.ts'
import type { LayerSpec } from './layers.ts'

const ROUNDS = 1500
const NAMES = ['a', 'b', 'c', 'd']

interface Node {
  directory: boolean
  /** Names with the same text share an inode; for a directory what tells its metadata. */
  inode: string
}

function randomLayer(random: Random, layer: number): LayerSpec {
  const spec: LayerSpec = { '': { dir: true, uid: layer, opaque: layer > 0 && random.chance(0.04) } }
  const files: string[] = []
  const fill = (directory: string, depth: number) => {
    for (const name of NAMES) {
      const path = directory === '' ? name : `${directory}/${name}`
      const kind = random.below(16)
      if (kind < 3) {
        if (depth < 3) {
          spec[path] = { dir: true, uid: layer, opaque: random.chance(0.2) }
          fill(path, depth + 1)
        }
      } else if (kind === 3 && files.length > 0) spec[path] = { same: random.pick(files) }
      else if (kind < 6) spec[path] = { whiteout: true }
      else if (kind < 8) spec[path] = { link: Array.from({ length: random.between(1, 3) }, () => random.pick(NAMES)).join('/') }
      else if (kind < 10) {
        spec[path] = `${layer} ${path}`
        files.push(path)
      }
    }
  }
  fill('', 0)
  return spec
}

function lay(below: Map<string, Node>, spec: LayerSpec, layer: number): Map<string, Node> {
  const state = new Map(below)
  const clear = (path: string, self: boolean) => {
    for (const known of [...state.keys()]) if ((self && known === path) || (known !== path && (path === '' || known.startsWith(`${path}/`)))) state.delete(known)
  }
  const resolve = (path: string, seen: string[]): Node | undefined => {
    const own = spec[path]
    if (own === undefined || (typeof own === 'object' && own.whiteout === true)) return below.get(path)
    if (typeof own === 'string') return { directory: false, inode: `${layer} ${path}` }
    if (own.same !== undefined) return { directory: false, inode: `${layer} ${own.same}` }
    if (own.link !== undefined && !seen.includes(own.link)) return resolve(own.link, [...seen, own.link])
    return undefined
  }
  for (const [path, entry] of Object.entries(spec)) {
    if (typeof entry === 'object' && entry.whiteout === true) {
      clear(path, true)
    } else if (typeof entry === 'object' && entry.dir === true) {
      if (entry.opaque === true) clear(path, false)
      state.set(path, { directory: true, inode: `${layer} ${path}` })
    } else {
      clear(path, true)
      const node = resolve(path, [path])
      if (node !== undefined && !node.directory) state.set(path, node)
    }
  }
  return state
}

/** By path: `directory`, or the first of the names that share the inode. */
function modelShown(state: Map<string, Node>): Record<string, string> {
  const first = new Map<string, string>()
  return Object.fromEntries([...state].sort(([a], [b]) => (a < b ? -1 : 1)).map(([path, { directory, inode }]) => {
    if (directory) return [path, `directory of ${inode.split(' ')[0]}`]
    if (!first.has(inode)) first.set(inode, path)
    return [path, first.get(inode)!]
  }))
}

function treeShown(tree: Tree): Record<string, string> {
  const first = new Map<number, string>()
  const entries = Array.from({ length: tree.entryCount }, (_, entry) => ({ path: tree.path(entry), inode: tree.inode[entry] }))
  return Object.fromEntries(entries.sort((a, b) => (a.path < b.path ? -1 : 1)).map(({ path, inode }) => {
    if (tree.kind[inode] === Kind.directory) return [path, `directory of ${tree.uid[inode]}`]
    if (!first.has(inode)) first.set(inode, path)
    return [path, first.get(inode)!]
  }))
}

test('a merge gives what laying one layer after the other gives', async () => {
  const seed = testSeed()
  const random = new Random(seed)
  for (let round = 0; round < ROUNDS; round++) {
    const specs = Array.from({ length: random.between(1, 5) }, (_, layer) => randomLayer(random, layer))
    let state = new Map<string, Node>()
    specs.forEach((spec, layer) => (state = lay(state, spec, layer)))
    const { tree } = await mergeSpecs(specs, { report: random.pick(['all', 'conflicts']) })
    assert.deepEqual(treeShown(tree), modelShown(state), `seed ${seed}, round ${round}: ${JSON.stringify(specs)}`)
    assert.deepEqual(tree, rebuilt(tree), `seed ${seed}, round ${round}`)
  }
})
