/**
 * A store and a cache directory to import into, in a temporary directory that is removed at the end.
 */
import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { digestOf, digestToHex } from '@varve/images/chunk/digest.ts'
import { getObject } from '@varve/images/store/object.ts'
import { PackStore } from '@varve/images/store/pack-store.ts'
import type { Tree } from '@varve/images/tree/tree.ts'
import { decodeTree } from '@varve/images/tree/tree-format.ts'
import { encodeTree } from '../../images/tree/rebuilt-tree.ts'
import { importTrees } from '@varve/composer/import/import-layer.ts'
import type { ImportTreesOptions } from '@varve/composer/import/import-layer.ts'

export class ImportHome implements AsyncDisposable {
  readonly directory = mkdtempSync(path.join(tmpdir(), 'varve-import-'))
  readonly store = PackStore.open(path.join(this.directory, 'packs'))
  readonly cacheDirectory = path.join(this.directory, 'cache')

  /** Path of something inside the temporary directory. */
  path(...names: string[]): string {
    return path.join(this.directory, ...names)
  }

  /** A new directory inside it. */
  makeDirectory(name: string): string {
    mkdirSync(this.path(name), { recursive: true })
    return this.path(name)
  }

  async import(source: string, options: Partial<ImportTreesOptions> = {}) {
    const { trees, figures } = await importTrees({ store: this.store, cacheDirectory: this.cacheDirectory, source, ...options })
    return { trees: await Promise.all(trees.map(async ({ digest }) => decodeTree(await getObject(this.store, digest)))), figures }
  }

  /** The only tree of a source. */
  async tree(source: string, options: Partial<ImportTreesOptions> = {}): Promise<Tree> {
    const { trees } = await this.import(source, options)
    if (trees.length !== 1) throw new Error(`${source} gives ${trees.length} trees`)
    return trees[0]
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.store[Symbol.asyncDispose]()
    // Node cannot remove paths longer than PATH_MAX.
    execFileSync('rm', ['-rf', this.directory])
  }
}

export function treeDigest(tree: Tree): string {
  return digestToHex(digestOf(encodeTree(tree)))
}
