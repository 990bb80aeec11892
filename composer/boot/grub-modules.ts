/**
 * GRUB's own files for one platform: boot sectors, kernel and modules, from the layers of a disk or from the packages of this machine.
 */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Kind, HOLE } from '@varve/images/tree/tree.ts'
import type { Tree } from '@varve/images/tree/tree.ts'
import type { ChunkStore } from '@varve/images/store/chunk-store.ts'
import { VarveError } from '@varve/images/errors.ts'

export type GrubPlatform = 'i386-pc' | 'x86_64-efi'

/** Where the packages grub-pc-bin and grub-efi-amd64-bin put their files. */
export const GRUB_DIRECTORY = '/usr/lib/grub'
const PACKAGES: Record<GrubPlatform, string> = { 'i386-pc': 'grub-pc-bin', 'x86_64-efi': 'grub-efi-amd64-bin' }

/** A file of GRUB is not larger, bytes. */
const FILE_BYTES_MAX = 8 << 20
/** Which module needs which. */
export const DEPENDENCIES_FILE = 'moddep.lst'
/** Text with the version of the package. */
export const INFO_FILE = 'modinfo.sh'

/** One platform's directory of GRUB files. */
export interface GrubFiles {
  /** For messages. */
  readonly where: string
  /** @returns undefined if there is no such file */
  read(name: string): Promise<Uint8Array | undefined>
}

/** Files of the packages on this machine. */
export function hostGrubFiles(platform: GrubPlatform, directory = GRUB_DIRECTORY): GrubFiles {
  const where = join(directory, platform)
  return {
    where,
    read: async (name) => {
      try {
        return readFileSync(join(where, name))
      } catch (cause) {
        if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined
        throw new VarveError('BOOT_MISSING', `${join(where, name)} cannot be read`, { cause })
      }
    },
  }
}

/** Files in a tree, below usr/lib/grub; undefined if it has none for the platform. */
export function treeGrubFiles(platform: GrubPlatform, tree: Tree, store: ChunkStore): GrubFiles | undefined {
  const directory = tree.find(`usr/lib/grub/${platform}`)
  if (directory < 0 || tree.child(directory, DEPENDENCIES_FILE) < 0 || tree.child(directory, 'kernel.img') < 0) return undefined
  return {
    where: `/usr/lib/grub/${platform} of a layer`,
    read: async (name) => {
      const entry = tree.child(directory, name)
      if (entry < 0 || tree.kind[tree.inode[entry]] !== Kind.file) return undefined
      return readContent(tree, tree.inode[entry], store)
    },
  }
}

async function readContent(tree: Tree, inode: number, store: ChunkStore): Promise<Uint8Array> {
  if (tree.sizeBytes[inode] > FILE_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `a file of GRUB of ${tree.sizeBytes[inode]} bytes; at most ${FILE_BYTES_MAX} are expected`)
  const bytes = new Uint8Array(tree.sizeBytes[inode])
  let at = 0
  for (let piece = tree.firstPiece[inode]; piece < tree.firstPiece[inode] + tree.pieceCount[inode]; piece++) {
    if (tree.pieceChunk[piece] !== HOLE) bytes.set(await store.get(tree.chunkDigest(tree.pieceChunk[piece])), at)
    at += tree.pieceBytes[piece]
  }
  return bytes
}

/** @throws VarveError BOOT_MISSING, naming the package */
export async function readGrubFile(files: GrubFiles, platform: GrubPlatform, name: string): Promise<Uint8Array> {
  const bytes = await files.read(name)
  if (bytes === undefined) throw new VarveError('BOOT_MISSING', `${files.where} has no ${name}; install the package ${PACKAGES[platform]}, or give the CVD --boot none`)
  return bytes
}

/**
 * `modules` and everything that they need.
 * @param dependencies text of moddep.lst: `module: needed needed ...`
 */
export function withDependencies(modules: readonly string[], dependencies: string): string[] {
  const needs = new Map<string, string[]>()
  for (const line of dependencies.split('\n')) {
    const colon = line.indexOf(':')
    if (colon > 0) needs.set(line.slice(0, colon).trim(), line.slice(colon + 1).split(' ').filter((name) => name !== ''))
  }
  const all = new Set<string>(modules)
  for (const module of all) for (const needed of needs.get(module) ?? []) if (/^[\w-]+$/.test(needed)) all.add(needed)
  return [...all].sort()
}
