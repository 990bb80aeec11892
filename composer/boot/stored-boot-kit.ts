/**
 * The boot kit for a stack of layers: found in the catalog, or built and kept there. What was chosen for a stack stays chosen,
 * so that an upgrade of GRUB on this machine does not give a CVD another disk.
 */
import { digestOf, digestToHex } from '@varve/images/chunk/digest.ts'
import type { Digest } from '@varve/images/chunk/digest.ts'
import { isVarveError } from '@varve/images/errors.ts'
import type { Catalog } from '@varve/images/store/catalog.ts'
import type { ChunkStore } from '@varve/images/store/chunk-store.ts'
import { getObject, objectChunks, putObject } from '@varve/images/store/object.ts'
import { decodeTree } from '@varve/images/tree/tree-format.ts'
import type { Tree } from '@varve/images/tree/tree.ts'
import { encodeBootKit } from './boot-kit.ts'
import { bootKitKey, buildBootKit } from './build-boot-kit.ts'
import type { GrubSources } from './build-boot-kit.ts'
import { hostGrubFiles, treeGrubFiles } from './grub-modules.ts'
import type { GrubPlatform } from './grub-modules.ts'

export interface BootKitOptions {
  store: ChunkStore
  catalog: Catalog
  signal?: AbortSignal
}

/** Kind of the catalog's objects; keys are `stack DIGEST` and `grub DIGEST`. */
const KIND = 'boot-kit'

/**
 * Digest of the kit's object. GRUB's files are taken from the topmost layer that has them, otherwise from this machine's packages.
 * @param layers digests of the layers' trees, bottom first
 * @throws VarveError BOOT_MISSING, naming the packages to install
 */
export async function storedBootKit(layers: readonly Digest[], options: BootKitOptions): Promise<Digest> {
  const stackKey = `stack ${digestToHex(digestOf(Buffer.concat(layers)))}`
  const chosen = await keptKit(stackKey, options)
  if (chosen !== undefined) return chosen
  const sources = await grubSources(layers, options)
  const grubKey = `grub ${digestToHex(await bootKitKey(sources))}`
  const kit = (await keptKit(grubKey, options)) ?? (await keepNewKit(grubKey, sources, options))
  await options.catalog.setObject(KIND, stackKey, kit)
  return kit
}

/** A kit whose content is gone counts as none: it can be built again. */
async function keptKit(key: string, { catalog, store }: BootKitOptions): Promise<Digest | undefined> {
  const digest = await catalog.object(KIND, key)
  return digest !== undefined && (await isWhole(digest, store)) ? digest : undefined
}

async function isWhole(object: Digest, store: ChunkStore): Promise<boolean> {
  try {
    for (const digest of await objectChunks(store, object)) if (!(await store.has(digest))) return false
    return true
  } catch (error) {
    if (isVarveError(error)) return false
    throw error
  }
}

async function keepNewKit(key: string, sources: GrubSources, { store, catalog, signal }: BootKitOptions): Promise<Digest> {
  const kit = encodeBootKit(await buildBootKit(sources, { signal }))
  await using writer = store.writer({ signal })
  const digest = putObject(writer, kit)
  await writer.commit()
  await catalog.setObject(KIND, key, digest)
  return digest
}

async function grubSources(layers: readonly Digest[], { store, signal }: BootKitOptions): Promise<GrubSources> {
  const sources: Partial<GrubSources> = {}
  for (const layer of layers.toReversed()) {
    signal?.throwIfAborted()
    const tree: Tree = decodeTree(await getObject(store, layer))
    for (const platform of ['i386-pc', 'x86_64-efi'] as GrubPlatform[]) sources[platform] ??= treeGrubFiles(platform, tree, store)
    if (sources['i386-pc'] !== undefined && sources['x86_64-efi'] !== undefined) break
  }
  return { 'i386-pc': sources['i386-pc'] ?? hostGrubFiles('i386-pc'), 'x86_64-efi': sources['x86_64-efi'] ?? hostGrubFiles('x86_64-efi') }
}
