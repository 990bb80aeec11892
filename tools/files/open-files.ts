/**
 * Files of whatever a reference names (file-reference.ts): opened read-only, without a mount, and without composing again what was composed before.
 */
import path from 'node:path'
import type { MountedFilesystem } from '@varve/blockserver/fuse/mounted-filesystem.ts'
import type { BlockDevice } from '@varve/images/device/block-device.ts'
import { TreeFilesystem } from '@varve/images/filesystems/tree-filesystem.ts'
import { readLayerTree } from '../names.ts'
import { parseFilesReference } from './file-reference.ts'
import type { FilesReference } from './file-reference.ts'
import { openCurrentDisk, openSnapshotDisk } from './looked-at.ts'
import type { DiskParts } from './looked-at.ts'

export interface OpenedFiles extends MountedFilesystem, AsyncDisposable {
  /** As it was asked for. */
  readonly name: string
}

/** Opens the files that `text` names. @throws VarveError NAME_INVALID, NOT_FOUND, FORMAT_INVALID, FORMAT_UNSUPPORTED, and what opening a CVD throws */
export async function openFiles(text: string, parts: DiskParts): Promise<OpenedFiles> {
  const reference = parseFilesReference(text)
  await using opened = new AsyncDisposableStack()
  const mounted = await openMounted(reference, parts, opened)
  const stack = opened.move()
  return { ...mounted, name: text, [Symbol.asyncDispose]: () => stack[Symbol.asyncDispose]() }
}

async function openMounted(reference: FilesReference, parts: DiskParts, opened: AsyncDisposableStack): Promise<MountedFilesystem> {
  const { home, cache } = parts
  switch (reference.kind) {
    case 'layer': {
      const lease = home.store.lease()
      opened.defer(() => lease.release())
      return { files: new TreeFilesystem(await readLayerTree(home, await home.catalog.layer(reference.layer)), home.store, cache) }
    }
    case 'cvd': {
      const { cvd, snapshot } = reference
      const { device } = opened.use(await (snapshot === undefined ? openCurrentDisk(parts, cvd) : openSnapshotDisk(parts, cvd, snapshot)))
      return openVolume(device, reference)
    }
  }
  throw new Error('not yet')
}

async function openVolume(device: BlockDevice, reference: FilesReference): Promise<MountedFilesystem> {
  void device
  void reference
  throw new Error('not yet')
}
void path
