/**
 * What `varve mount` shows: files, with the snapshots of a CVD as directories beside them; or disks.
 */
import type { Logger } from 'pino'
import { DiskFiles } from '@varve/blockserver/fuse/disk-files.ts'
import type { DiskFile } from '@varve/blockserver/fuse/disk-files.ts'
import type { MountedDirectories, MountedFilesystem } from '@varve/blockserver/fuse/mounted-filesystem.ts'
import { serveMount } from '@varve/blockserver/fuse/serve-mount.ts'
import type { BlockDevice } from '@varve/images/device/block-device.ts'
import { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { isVarveError, VarveError } from '@varve/images/errors.ts'
import { computeImage } from '@varve/images/formats/compute-image.ts'
import { DISK_FORMATS } from '@varve/images/formats/disk-image.ts'
import { openImage } from '@varve/images/formats/open-image.ts'
import type { OpenImageFileOptions } from '@varve/images/formats/open-image.ts'
import type { Home } from '@varve/images/store/home.ts'
import { HomeExports } from '../exports.ts'
import { keptSnapshots } from '../look-snapshot.ts'
import { defaultCacheBytes } from '../service/settings.ts'
import { parseFilesReference } from './file-reference.ts'
import type { FilesReference } from './file-reference.ts'
import { openCurrentDisk } from './looked-at.ts'
import { openFiles } from './open-files.ts'
import type { FilesParts, OpenedFiles } from './open-files.ts'

export interface MountFilesOptions {
  directory: string
  home: Home
  log: Logger
  signal: AbortSignal
  /** Disks, not files. */
  disk: boolean
  allowOther: boolean
  /** How a disk image is opened, if that is what is shown. */
  image: OpenImageFileOptions
  /** Called once they can be used. */
  mounted: () => void
}

/** Serves the mount until it is gone. @throws VarveError MOUNT_FAILED, and what opening throws */
export async function mountFiles(what: string, { directory, home, log, signal, disk, allowOther, image, mounted }: MountFilesOptions): Promise<void> {
  const parts = { home, cache: ChunkCache.create({ bytesMax: defaultCacheBytes() }), log, signal, image }
  const reference = parseFilesReference(what)
  await using opened = new AsyncDisposableStack()
  const shown = await (disk ? openDisks(reference, parts, opened) : openTree(what, reference, parts, opened))
  await serveMount(directory, { source: what, readOnly: !disk || shown.isReadOnly, allowOther, log, signal, mounted, ...shown })
}

interface Shown {
  root: MountedFilesystem
  directories?: MountedDirectories
  isReadOnly: boolean
}

async function openTree(what: string, reference: FilesReference, parts: FilesParts, opened: AsyncDisposableStack): Promise<Shown> {
  const root = opened.use(await openFiles(what, parts))
  if (reference.kind !== 'cvd' || reference.snapshot !== undefined) return { root, isReadOnly: true }
  const names = await keptSnapshots(parts.home, reference.cvd)
  const open = async (name: string): Promise<OpenedFiles | undefined> => {
    try {
      return opened.use(await openFiles(`${reference.cvd}@${name}`, parts))
    } catch (error) {
      if (isVarveError(error, 'NOT_FOUND', 'NAME_INVALID', 'EXPORT_NOT_FOUND')) return undefined
      throw error
    }
  }
  return { root, directories: { names, open }, isReadOnly: true }
}

/** `disk.raw`, which of a CVD can be written to, and images of the disk as it is now. */
async function openDisks(reference: FilesReference, parts: FilesParts, opened: AsyncDisposableStack): Promise<Shown> {
  const { raw, still } = await openDisk(reference, parts, opened)
  const disks: DiskFile[] = [{ name: 'disk.raw', device: raw }]
  for (const format of DISK_FORMATS) if (format !== 'raw') disks.push({ name: `disk.${format}`, device: opened.use(await computeImage(format, still)) })
  const time = { seconds: Math.floor(Date.now() / 1000), nanoseconds: 0 }
  return { root: new DiskFiles(disks, { uid: process.geteuid!(), gid: process.getegid!(), time }), isReadOnly: raw.readOnly }
}

async function openDisk(reference: FilesReference, parts: FilesParts, opened: AsyncDisposableStack): Promise<{ raw: BlockDevice; still: BlockDevice }> {
  const { home, log, cache } = parts
  const exported = async (name: string): Promise<BlockDevice> => {
    const { device, ...rest } = await new HomeExports(home, log, cache).open(name)
    opened.defer(async () => rest.close?.())
    return device
  }
  if (reference.kind === 'cvd' && reference.snapshot === undefined) {
    // First what it shows now, which takes its owner's place for a moment.
    const { device: still } = opened.use(await openCurrentDisk(parts, reference.cvd))
    return { raw: await exported(reference.cvd), still }
  }
  if (reference.kind === 'directory') throw new VarveError('SOURCE_INVALID', 'a directory has no disk')
  const device = reference.kind === 'disk' ? opened.use(await openImage(reference.file, parts.image)).disk
    : await exported(reference.kind === 'cvd' ? `${reference.cvd}@${reference.snapshot!}` : `layer:${reference.layer}`)
  return { raw: device, still: device }
}
