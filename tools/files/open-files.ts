/**
 * Files of whatever a reference names (file-reference.ts): opened read-only, without a mount, and without composing again what was composed before.
 */
import type { MountedFilesystem } from '@varve/blockserver/fuse/mounted-filesystem.ts'
import { DirectoryFilesystem } from '@varve/images/filesystems/directory-filesystem.ts'
import type { FileNode } from '@varve/images/filesystems/filesystem.ts'
import { openImage } from '@varve/images/formats/open-image.ts'
import type { OpenImageFileOptions } from '@varve/images/formats/open-image.ts'
import { TreeFilesystem } from '@varve/images/filesystems/tree-filesystem.ts'
import { readLayerTree } from '../names.ts'
import { openVolume } from './disk-volumes.ts'
import { parseFilesReference } from './file-reference.ts'
import type { FilesReference } from './file-reference.ts'
import { openCurrentDisk, openSnapshotDisk } from './looked-at.ts'
import type { DiskParts } from './looked-at.ts'

export interface ReadFiles extends MountedFilesystem {
  /** What two files of one size and one key have in common is their content; files without one may have it, too. */
  contentKey?(file: FileNode): string | undefined | Promise<string | undefined>
}

export interface OpenedFiles extends ReadFiles, AsyncDisposable {
  /** As it was asked for. */
  readonly name: string
}

export interface FilesParts extends DiskParts {
  /** How a disk image is opened, if the files are in one. */
  image?: OpenImageFileOptions
}

/** Opens the files that `text` names. @throws VarveError NAME_INVALID, NOT_FOUND, FORMAT_INVALID, FORMAT_UNSUPPORTED, and what opening a CVD throws */
export async function openFiles(text: string, parts: FilesParts): Promise<OpenedFiles> {
  await using opened = new AsyncDisposableStack()
  const read = await openRead(parseFilesReference(text), parts, opened)
  const stack = opened.move()
  return { ...read, name: text, [Symbol.asyncDispose]: () => stack[Symbol.asyncDispose]() }
}

async function openRead(reference: FilesReference, parts: FilesParts, opened: AsyncDisposableStack): Promise<ReadFiles> {
  const { home, cache } = parts
  switch (reference.kind) {
    case 'layer': {
      const lease = home.store.lease()
      opened.defer(() => lease.release())
      const files = new TreeFilesystem(await readLayerTree(home, await home.catalog.layer(reference.layer)), home.store, cache)
      return { files, contentKey: ({ id }) => files.contentKey(id) }
    }
    case 'cvd': {
      const { cvd, snapshot } = reference
      const { device } = opened.use(await (snapshot === undefined ? openCurrentDisk(parts, cvd) : openSnapshotDisk(parts, cvd, snapshot)))
      return openVolume(device, undefined)
    }
    case 'disk':
      return openVolume(opened.use(await openImage(reference.file, parts.image)).disk, reference.volume)
    case 'directory':
      return { files: new DirectoryFilesystem(reference.directory) }
  }
}
