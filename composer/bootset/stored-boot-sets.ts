/**
 * Boot sets that are kept: learned ones by the name of a layer, so that every CVD over any version of it has them, and by CVD for what is in no
 * layer; and those that disks are laid out by, for each stack of layers.
 */
import { digestOf, digestToHex } from '@varve/images/chunk/digest.ts'
import type { Digest } from '@varve/images/chunk/digest.ts'
import { isVarveError } from '@varve/images/errors.ts'
import type { Catalog, Layer } from '@varve/images/store/catalog.ts'
import type { ChunkStore } from '@varve/images/store/chunk-store.ts'
import { getObject, putObject } from '@varve/images/store/object.ts'
import { decodeTree } from '@varve/images/tree/tree-format.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import type { Tree } from '@varve/images/tree/tree.ts'
import { BootSet, Part, tierOf } from './boot-set.ts'
import type { Place, PlacedChunk } from './boot-set.ts'

export interface BootSetHome {
  store: ChunkStore
  catalog: Catalog
}

/** What a disk is stacked from. */
export interface BootStack {
  /** Bottom first. */
  layers: readonly Layer[]
  /** The CVD whose disk it is, if it is one's alone. */
  cvd: { id: string } | undefined
}

/** Kind of the catalog's objects; keys are `layer NAME`, `cvd ID` and `stack DIGEST`. */
export const BOOT_SET_KIND = 'boot-set'

export function layerKey(name: string): string {
  return `layer ${name}`
}

export function cvdKey(id: string): string {
  return `cvd ${id}`
}

/** @param layers digests of the layers' trees, bottom first */
export function stackKey(layers: readonly Digest[]): string {
  return `stack ${digestToHex(digestOf(Buffer.concat(layers)))}`
}

/** What was learned under a key; undefined if nothing was, or it is lost: it will be learned again. */
export async function learnedBootSet(key: string, { store, catalog }: BootSetHome): Promise<{ digest: Digest; set: BootSet } | undefined> {
  const digest = await catalog.object(BOOT_SET_KIND, key)
  if (digest === undefined) return undefined
  try {
    return { digest, set: BootSet.decode(await getObject(store, digest)) }
  } catch (error) {
    if (isVarveError(error, 'CHUNK_MISSING', 'CHUNK_CORRUPT', 'FORMAT_INVALID', 'FORMAT_UNSUPPORTED', 'LIMIT_EXCEEDED')) return undefined
    throw error
  }
}

/**
 * All that was learned of a stack.
 * @returns `complete` is false if there is a layer that has not been in any boot yet: of what that adds, nothing is known
 */
export async function bootSetOf({ layers, cvd }: BootStack, home: BootSetHome): Promise<{ set: BootSet; complete: boolean }> {
  const sets: BootSet[] = []
  let complete = true
  for (const key of keysOf({ layers, cvd })) {
    const learned = await learnedBootSet(key, home)
    if (learned !== undefined) sets.push(learned.set)
    else if (cvd === undefined || key !== cvdKey(cvd.id)) complete = false
  }
  return { set: BootSet.combine(sets), complete }
}

/** Learns from one boot of a disk. @param chunks what it used, in the order of their first use */
export async function learnBoot({ layers, cvd }: BootStack, chunks: readonly PlacedChunk[], home: BootSetHome): Promise<void> {
  const owners = new Owners(layers, await Promise.all(layers.map(async (layer) => decodeTree(await getObject(home.store, layer.digest)))))
  const byKey = new Map<string, (PlacedChunk & { rank: number })[]>(keysOf({ layers, cvd }).map((key) => [key, []]))
  chunks.forEach(({ digest, places }, rank) => {
    const ofKey = new Map<string, Place[]>()
    for (const place of places) {
      const layer = owners.layerOf(place)
      const key = layer !== undefined ? layerKey(layer) : cvd === undefined ? undefined : cvdKey(cvd.id)
      if (key !== undefined) ofKey.set(key, [...(ofKey.get(key) ?? []), place])
    }
    for (const [key, own] of ofKey) byKey.get(key)!.push({ digest, places: own, rank })
  })
  for (const [key, own] of byKey) await addBoot(key, own, home)
}

/** A layer of which nothing was used has been in a boot too. Tried as often as somebody else was faster. */
async function addBoot(key: string, chunks: readonly (PlacedChunk & { rank: number })[], home: BootSetHome): Promise<void> {
  for (;;) {
    const before = await home.catalog.object(BOOT_SET_KIND, key)
    const learned = await learnedBootSet(key, home)
    if (learned === undefined && chunks.length === 0 && !key.startsWith(layerKey(''))) return
    await using writer = home.store.writer()
    const digest = putObject(writer, (learned?.set ?? BootSet.empty).with(chunks).encode())
    await writer.commit()
    if (await home.catalog.replaceObject(BOOT_SET_KIND, key, { before, digest })) return
  }
}

/**
 * The boot set that disks of this stack are laid out by. What was chosen stays chosen, whatever is learned later: all of its disks are alike.
 * @param layers bottom first @returns null while nothing has been learned
 */
export async function layoutBootSet(layers: readonly Layer[], home: BootSetHome): Promise<Digest | null> {
  const key = stackKey(layers.map(({ digest }) => digest))
  const chosen = await learnedBootSet(key, home)
  if (chosen !== undefined) return chosen.digest
  const { set: learned } = await bootSetOf({ layers, cvd: undefined }, home)
  // What one boot in ten used, or has no file, does not order files.
  const ordering = learned.entries.filter((entry) => entry.part === Part.file && tierOf(entry, learned.boots) < 2)
  if (ordering.length === 0) return null
  await using writer = home.store.writer()
  const digest = putObject(writer, new BootSet(learned.boots, ordering).encode())
  await writer.commit()
  const before = await home.catalog.object(BOOT_SET_KIND, key)
  if (await home.catalog.replaceObject(BOOT_SET_KIND, key, { before, digest })) return digest
  return layoutBootSet(layers, home)
}

function keysOf({ layers, cvd }: BootStack): string[] {
  return [...new Set(layers.map(({ name }) => layerKey(name))), ...(cvd === undefined ? [] : [cvdKey(cvd.id)])]
}

/** Which layer of a stack teaches others about a place: of a file the one that it is from, of a directory the one that is below the others that have it. */
class Owners {
  readonly #names: readonly string[]
  readonly #trees: readonly Tree[]

  constructor(layers: readonly Layer[], trees: readonly Tree[]) {
    this.#names = layers.map(({ name }) => name)
    this.#trees = trees
  }

  /** Name of the layer; undefined for what is in none. */
  layerOf({ part, path }: Place): string | undefined {
    if (part === Part.content) return undefined
    if (part === Part.area) return this.#names[0]
    const has = (tree: Tree): boolean => {
      const entry = tree.find(path)
      return entry >= 0 && tree.kind[tree.inode[entry]] !== Kind.whiteout
    }
    return this.#names[part === Part.file ? this.#trees.findLastIndex(has) : this.#trees.findIndex(has)]
  }
}
