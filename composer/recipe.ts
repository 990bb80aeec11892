/**
 * Recipe: everything that determines a composed disk. Its digest names the disk, and every identifier on the disk is derived from it.
 * Not the composition itself (compose.ts). Bytes of the canonical encoding: docs/formats/recipe.md
 *
 * The names of layers are for people: the encoding leaves them out and writes decisions by the layer's place in the stack,
 * so that the same layers give the same disk under any names.
 */
import { DIGEST_BYTES, digestOf, digestToHex } from '@varve/images/chunk/digest.ts'
import type { Digest } from '@varve/images/chunk/digest.ts'
import { VarveError } from '@varve/images/errors.ts'
import type { LayerKind } from '@varve/images/store/catalog.ts'

/**
 * Part of every recipe's digest. Raised whenever composing the same recipe would give other bytes than before, so that a composed map
 * that an older version has cached is never taken for today's.
 */
export const RECIPE_VERSION = 1

/** Layers of one recipe, at most. */
export const RECIPE_LAYERS_MAX = 1024

export interface RecipeLayer {
  /** `app@3`; for people and for decisions. */
  name: string
  kind: LayerKind
  /** Digest of the layer's encoded tree. */
  tree: Digest
}

export interface DiskOptions {
  /**
   * `grub`: GPT with an EFI system partition, BIOS boot code and a root partition. `none`: GPT with the root partition alone.
   * `own`: the disk that the one layer was imported from, as it was; nothing else here matters then.
   */
  boot: 'grub' | 'none' | 'own'
  /** Where `boot` is `own`: the block map of that disk. */
  map?: Digest
  /** Bytes of the whole disk; null: as large as content and `freeBytes` ask for. */
  sizeBytes: number | null
  /** Free space of the root filesystem where `sizeBytes` is null, bytes; null: content + 25%, at least 1 GiB. */
  freeBytes: number | null
  /** Label of the root filesystem. */
  label: string
  /** Digest of the boot loader's files (an object in the store); null where `boot` is `none`. */
  bootKit: Digest | null
  filesystem: 'ext4'
  /** Digest of the boot set in whose order files are laid out, or null. */
  bootSet: Digest | null
  /** Appended to the kernel command line. */
  kernelCommandLine: string
}

export interface Recipe {
  /** Bottom first, at least one. */
  layers: readonly RecipeLayer[]
  /** Conflict key, as the merge report prints it, to the name of the layer that is right. */
  decisions: ReadonlyMap<string, string>
  disk: DiskOptions
}

/**
 * Canonical encoding: JSON by RFC 8785 (sorted keys, no white space), UTF-8.
 * @throws VarveError NOT_FOUND if a decision names a layer that is not in the recipe
 */
export function encodeRecipe(recipe: Recipe): Uint8Array {
  const { layers, decisions, disk } = recipe
  if (layers.length === 0) throw new RangeError('a recipe has at least one layer')
  if (layers.length > RECIPE_LAYERS_MAX) {
    throw new VarveError('LIMIT_EXCEEDED', `the recipe has ${layers.length} layers; at most ${RECIPE_LAYERS_MAX} are accepted`)
  }
  return Buffer.from(
    canonicalJson({
      decisions: Object.fromEntries([...decisions].map(([key, name]) => [key, layerPlace(layers, key, name)])),
      disk: {
        boot: disk.boot,
        bootKit: hexOrNull(disk.bootKit),
        bootSet: hexOrNull(disk.bootSet),
        filesystem: disk.filesystem,
        freeBytes: disk.freeBytes,
        kernelCommandLine: disk.kernelCommandLine,
        label: disk.label,
        ...(disk.map === undefined ? {} : { map: hexOrNull(disk.map) }),
        sizeBytes: disk.sizeBytes,
      },
      layers: layers.map(({ kind, tree }) => ({ kind, tree: hexOrNull(tree) })),
      version: RECIPE_VERSION,
    }),
    'utf8',
  )
}

/** The name of the disk that the recipe gives. @throws VarveError NOT_FOUND if a decision names a layer that is not in the recipe */
export function recipeDigest(recipe: Recipe): Digest {
  return digestOf(encodeRecipe(recipe))
}

/**
 * Identifier for one purpose on a disk (`root filesystem`, `disk`, `partition 1`): RFC 9562 version 8.
 * @returns 16 bytes in the order of RFC 9562; GPT stores the first three fields little-endian
 */
export function deriveUuid(recipe: Digest, purpose: string): Uint8Array {
  const uuid = derive(recipe, 'uuid', purpose).slice(0, 16)
  uuid[6] = (uuid[6] & 0x0f) | 0x80
  uuid[8] = (uuid[8] & 0x3f) | 0x80
  return uuid
}

/** `01234567-89ab-8def-8123-456789abcdef` */
export function uuidToString(uuid: Uint8Array): string {
  const hex = Buffer.from(uuid.buffer, uuid.byteOffset, 16).toString('hex')
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`
}

/** 32-bit identifier for one purpose (serial number of a FAT volume, signature of an MBR); never 0. */
export function deriveSerial(recipe: Digest, purpose: string): number {
  const bytes = derive(recipe, 'serial', purpose)
  const serial = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true)
  return serial === 0 ? 1 : serial
}

function derive(recipe: Digest, form: string, purpose: string): Uint8Array {
  if (recipe.length !== DIGEST_BYTES) throw new RangeError('the digest of a recipe has 32 bytes')
  return digestOf(Buffer.concat([Buffer.from(`varve ${form}\0${purpose}\0`, 'utf8'), recipe]))
}

function layerPlace(layers: readonly RecipeLayer[], key: string, name: string): number {
  const place = layers.findLastIndex((layer) => layer.name === name)
  if (place < 0) throw new VarveError('NOT_FOUND', `the decision ${key} names ${name}, which is not a layer of this recipe; name one that is`)
  return place
}

function hexOrNull(digest: Digest | null): string | null {
  if (digest === null) return null
  if (digest.length !== DIGEST_BYTES) throw new RangeError('a digest has 32 bytes')
  return digestToHex(digest)
}

type Json = null | number | string | readonly Json[] | { readonly [key: string]: Json }

/** RFC 8785 for what a recipe holds: whole numbers, strings of whole characters, arrays, objects. */
function canonicalJson(value: Json): string {
  if (value === null) return 'null'
  if (typeof value === 'number') {
    if (!Number.isSafeInteger(value) || value < 0) throw new RangeError(`${value} is not a whole number`)
    return String(value)
  }
  if (typeof value === 'string') {
    if (!value.isWellFormed()) throw new RangeError(`${JSON.stringify(value)} has half a character`)
    return JSON.stringify(value)
  }
  if (Array.isArray(value)) return `[${(value as readonly Json[]).map(canonicalJson).join(',')}]`
  const object = value as { readonly [key: string]: Json }
  // sort() without a function orders by UTF-16 code units, as RFC 8785 asks
  return `{${Object.keys(object).sort().map((key) => `${canonicalJson(key)}:${canonicalJson(object[key])}`).join(',')}}`
}
