/**
 * From names to a recipe: layers by their digests, policy, and the boot kit. What depends on the catalog and on the machine is settled here,
 * once, so that composing (compose.ts) depends on the recipe alone.
 */
import type { Catalog, JsonObject, Layer } from '@varve/images/store/catalog.ts'
import type { ChunkStore } from '@varve/images/store/chunk-store.ts'
import { VarveError } from '@varve/images/errors.ts'
import type { Digest } from '@varve/images/chunk/digest.ts'
import { storedBootKit } from './boot/stored-boot-kit.ts'
import { layoutBootSet } from './bootset/stored-boot-sets.ts'
import { recipeDigest } from './recipe.ts'
import type { DiskOptions, Recipe } from './recipe.ts'

/** What a person may say about a CVD's disk; what is left out takes its default. Kept as the CVD's policy, in JSON. */
export interface ComposePolicy {
  boot?: DiskOptions['boot']
  /** Bytes of the whole disk, a multiple of 512. */
  sizeBytes?: number
  /** Free space of the root filesystem, bytes. */
  freeBytes?: number
  /** Label of the root filesystem, up to 16 bytes. */
  label?: string
  /** Appended to the kernel's command line: printable ASCII. */
  kernelCommandLine?: string
  /** Conflict key to the name of the layer that is right: `app@3`, or `app` whatever its version. */
  decisions?: Record<string, string>
}

export interface RecipeRequest {
  /** Name of a CVD: its layers and its policy. */
  cvd?: string
  /** Instead of a CVD: `NAME` or `NAME@N`, bottom first. */
  layers?: readonly string[]
  /** Goes before the CVD's own. */
  policy?: ComposePolicy
}

export interface PrepareOptions {
  catalog: Catalog
  store: ChunkStore
  signal?: AbortSignal
}

/** Both a screen and a serial line show the boot; the last one is where the system's own messages go. */
export const KERNEL_COMMAND_LINE = 'console=tty0 console=ttyS0,115200'
const LABEL = 'root'
const LABEL_BYTES_MAX = 16
const COMMAND_LINE_CHARACTERS_MAX = 1024

/** @throws VarveError NOT_FOUND, BOOT_MISSING, NAME_INVALID, FORMAT_UNSUPPORTED (a layer that is a disk, not files) */
export async function prepareRecipe(request: RecipeRequest, options: PrepareOptions): Promise<Recipe> {
  const { layers, policy, started } = await layersAndPolicy(request, options.catalog)
  if (layers.length === 0) throw new VarveError('NOT_FOUND', `${request.cvd ?? 'the stack'} has no layers; there is nothing to compose`)
  if (policy.boot === 'own') return ownDiskRecipe(layers)
  for (const layer of layers) {
    if (layer.content !== 'tree') throw new VarveError('FORMAT_UNSUPPORTED', `layer ${nameOf(layer)} is a disk and cannot be composed with others; serve it as layer:${nameOf(layer)}`)
  }
  checkPolicy(policy)
  const boot = policy.boot ?? 'grub'
  const bootKit = boot === 'none' ? null : await storedBootKit(layers.map(({ digest }) => digest), options)
  const recipe: Recipe = {
    layers: layers.map((layer) => ({ name: nameOf(layer), kind: layer.kind, tree: layer.digest })),
    decisions: new Map(Object.entries(policy.decisions ?? {}).map(([key, name]) => [key, versionOf(layers, name)])),
    disk: {
      boot,
      bootKit,
      sizeBytes: policy.sizeBytes ?? null,
      freeBytes: policy.freeBytes ?? null,
      label: policy.label ?? LABEL,
      filesystem: 'ext4',
      bootSet: null,
      kernelCommandLine: policy.kernelCommandLine ?? KERNEL_COMMAND_LINE,
    },
  }
  return request.cvd === undefined ? recipe : withBootSet(recipe, { layers, started, options })
}

/** @throws VarveError FORMAT_UNSUPPORTED if there is no one disk that is meant */
function ownDiskRecipe(layers: readonly Layer[]): Recipe {
  const [layer] = layers
  if (layers.length > 1) throw new VarveError('FORMAT_UNSUPPORTED', `a disk as it was imported is of one layer, and these are ${layers.length}; say --boot grub to compose their files`)
  if (layer.map === null) throw new VarveError('FORMAT_UNSUPPORTED', `layer ${nameOf(layer)} was not imported from a disk; say --boot grub or none to compose its files`)
  return {
    layers: [{ name: nameOf(layer), kind: layer.kind, tree: layer.digest }],
    decisions: new Map(),
    disk: { boot: 'own', map: layer.map, bootKit: null, sizeBytes: null, freeBytes: null, label: '', filesystem: 'ext4', bootSet: null, kernelCommandLine: '' },
  }
}

/** A CVD takes the boot set of its stack with its first start. One that was started without keeps its disk. */
async function withBootSet(recipe: Recipe, { layers, started, options }: { layers: readonly Layer[]; started: Digest | null; options: PrepareOptions }): Promise<Recipe> {
  const bootSet = await layoutBootSet(layers, options)
  const ordered = { ...recipe, disk: { ...recipe.disk, bootSet } }
  return started === null || Buffer.compare(recipeDigest(ordered), started) === 0 ? ordered : recipe
}

/** @returns besides, the recipe that the CVD was started by */
async function layersAndPolicy({ cvd, layers, policy }: RecipeRequest, catalog: Catalog): Promise<{ layers: Layer[]; policy: ComposePolicy; started: Digest | null }> {
  if ((cvd === undefined) === (layers === undefined)) throw new TypeError('a recipe is made from a CVD or from layers')
  if (cvd === undefined) return { layers: await Promise.all(layers!.map((name) => catalog.layer(name))), policy: policy ?? {}, started: null }
  const found = await catalog.cvd(cvd)
  const own = found.policy as ComposePolicy & JsonObject
  return { layers: found.layers, policy: { ...own, ...policy, decisions: { ...own.decisions, ...policy?.decisions } }, started: found.recipe }
}

/** @throws VarveError NAME_INVALID, LIMIT_EXCEEDED */
export function checkPolicy({ boot, sizeBytes, freeBytes, label, kernelCommandLine }: ComposePolicy): void {
  if (boot !== undefined && boot !== 'grub' && boot !== 'none' && boot !== 'own') throw new VarveError('NAME_INVALID', `${String(boot)} is not a way to boot; there are grub, none and own`)
  for (const bytes of [sizeBytes, freeBytes]) {
    if (bytes !== undefined && !(Number.isSafeInteger(bytes) && bytes >= 0)) throw new VarveError('LIMIT_EXCEEDED', `${bytes} is not a number of bytes`)
  }
  if (sizeBytes !== undefined && sizeBytes % 512 !== 0) throw new VarveError('LIMIT_EXCEEDED', `a disk of ${sizeBytes} bytes: the size is a multiple of 512`)
  if (label !== undefined && (Buffer.byteLength(label) > LABEL_BYTES_MAX || label.includes('\0'))) {
    throw new VarveError('NAME_INVALID', `the label ${JSON.stringify(label)} is longer than ${LABEL_BYTES_MAX} bytes`)
  }
  if (kernelCommandLine !== undefined && !/^[\x20-\x7e]*$/.test(kernelCommandLine)) {
    throw new VarveError('NAME_INVALID', 'the kernel command line has characters that are not printable ASCII')
  }
  if (kernelCommandLine !== undefined && kernelCommandLine.length > COMMAND_LINE_CHARACTERS_MAX) {
    throw new VarveError('LIMIT_EXCEEDED', `the kernel command line is longer than ${COMMAND_LINE_CHARACTERS_MAX} characters`)
  }
}

function nameOf({ name, version }: Layer): string {
  return `${name}@${version}`
}

/** The layer of the stack that a decision means, with its version; a name that fits none is left for the recipe to refuse. */
function versionOf(layers: readonly Layer[], wanted: string): string {
  const layer = layers.findLast((candidate) => candidate.name === wanted || nameOf(candidate) === wanted)
  return layer === undefined ? wanted : nameOf(layer)
}
