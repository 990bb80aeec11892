/**
 * Opens disk images of all formats, which are known by their content, never by a name. What each holds that is read or refused: docs/formats-of-images.md
 */
import { dirname } from 'node:path'
import type { BlockDevice, ReadableDisk } from '../device/block-device.ts'
import { VarveError } from '../errors.ts'
import type { DiskFormat, ImageFile, OpenImage, OpenImageOptions } from './disk-image.ts'
import { LocalImageFiles, openLocalFile } from './local-image-files.ts'
import { openQcow2 } from './qcow2/reader.ts'
import { openRaw } from './raw.ts'
import { endsAsVhd, openVhd } from './vhd/open-vhd.ts'
import { openVhdx } from './vhdx/open-vhdx.ts'
import { isVmdk } from './vmdk/descriptor.ts'
import { openVmdk } from './vmdk/reader.ts'

const OPENERS: Record<DiskFormat, OpenImage> = { raw: openRaw, vhd: openVhd, vhdx: openVhdx, vmdk: openVmdk, qcow2: openQcow2 }

/** How images of qcow2 spell the formats of their backing files, where it is not our own word. */
const BACKING_FORMATS: Record<string, DiskFormat> = { vpc: 'vhd', file: 'raw', host_device: 'raw' }

/** Formats that are known, but not read; they would be taken for raw disks otherwise. */
const FOREIGN: readonly { name: string; at: number; magic: string }[] = [
  { name: 'VDI', at: 64, magic: '\x7f\x10\xda\xbe' },
  { name: 'QED', at: 0, magic: 'QED\0' },
  { name: 'Parallels', at: 0, magic: 'WithoutFreeSpace' },
  { name: 'Parallels', at: 0, magic: 'WithouFreSpacExt' },
  { name: 'bochs', at: 0, magic: 'Bochs Virtual HD Image' },
  { name: 'cloop', at: 0, magic: '#!/bin/sh\n#V2.0 Format\nmodprobe cloop' },
]
const COMPRESSED: readonly { name: string; magic: string }[] = [
  { name: 'gzip', magic: '\x1f\x8b\x08' },
  { name: 'xz', magic: '\xfd7zXZ\0' },
  { name: 'zstd', magic: '\x28\xb5\x2f\xfd' },
  { name: 'bzip2', magic: 'BZh' },
]
const START_BYTES = 4096
const VHD_FOOTER_BYTES = 512

export interface OpenedImage extends AsyncDisposable {
  format: DiskFormat
  /** Read-only; closed with this. */
  disk: BlockDevice
}

export interface OpenImageFileOptions extends Pick<OpenImageOptions, 'snapshot' | 'warn'> {
  /** Without it, the format is found in the content. A raw disk may hold anything, an image too: whoever knows that it is raw, says so. */
  format?: DiskFormat
  /** Directories below which, besides the image's own, files may be that images name: see local-image-files.ts. */
  allow?: readonly string[]
}

/**
 * The disk in an image file, with all that it lies over.
 * @throws VarveError FORMAT_INVALID, FORMAT_UNSUPPORTED, LIMIT_EXCEEDED, NOT_FOUND (a snapshot), SOURCE_INVALID, SOURCE_UNSUPPORTED
 */
export async function openImage(path: string, { format, allow = [], snapshot, warn }: OpenImageFileOptions = {}): Promise<OpenedImage> {
  const { file, identity } = openLocalFile(path, path)
  try {
    const files = LocalImageFiles.around(dirname(path), { allow, identity })
    const found = format ?? (await detectFormat(file))
    if (snapshot !== undefined && found !== 'qcow2') throw new VarveError('FORMAT_UNSUPPORTED', `an image of format ${found} has no snapshots inside; ${JSON.stringify(snapshot)} was asked for`)
    const disk = await OPENERS[found](file, { files, snapshot, warn })
    return { format: found, disk, [Symbol.asyncDispose]: () => disk[Symbol.asyncDispose]() }
  } catch (error) {
    await file[Symbol.asyncDispose]()
    throw error
  }
}

/**
 * The disk that a qcow2 image lies over.
 * @param format as the image states it; if it does not, it is found in the content
 * @throws VarveError as `openImage`
 */
export async function openBacking(file: ImageFile, format: string | undefined, options: OpenImageOptions): Promise<BlockDevice> {
  const known = format === undefined ? await detectFormat(file) : (BACKING_FORMATS[format] ?? (format as DiskFormat))
  if (!Object.hasOwn(OPENERS, known)) throw new VarveError('FORMAT_UNSUPPORTED', `the image lies over one of format ${JSON.stringify(format)}, which is not read; convert it with 'qemu-img convert -O qcow2'`)
  return OPENERS[known](file, options)
}

/**
 * Format of an image, by its content; what no format claims is a raw disk.
 * @param file borrowed
 * @throws VarveError FORMAT_UNSUPPORTED for formats that are known, but not read
 */
export async function detectFormat(file: ReadableDisk): Promise<DiskFormat> {
  const start = Buffer.alloc(Math.min(file.sizeBytes, START_BYTES))
  await file.read(start, 0)
  const begins = (magic: string, at = 0) => start.toString('latin1', at, at + magic.length) === magic
  if (begins('QFI\xfb')) return 'qcow2'
  if (begins('vhdxfile')) return 'vhdx'
  if (begins('conectix') || (await hasVhdFooter(file))) return 'vhd'
  if (isVmdk(start, file.sizeBytes)) return 'vmdk'
  const foreign = FOREIGN.find(({ magic, at }) => begins(magic, at))
  if (foreign !== undefined) throw new VarveError('FORMAT_UNSUPPORTED', `a ${foreign.name} image, which is not read; convert it with 'qemu-img convert -O qcow2', or say that it is raw`)
  const compression = COMPRESSED.find(({ magic }) => begins(magic))
  if (compression !== undefined) throw new VarveError('FORMAT_UNSUPPORTED', `the image is compressed with ${compression.name}; decompress it first, or say that it is raw`)
  return 'raw'
}

/** A fixed VHD is a raw disk with a footer. */
async function hasVhdFooter(file: ReadableDisk): Promise<boolean> {
  if (file.sizeBytes < VHD_FOOTER_BYTES) return false
  const end = Buffer.alloc(VHD_FOOTER_BYTES)
  await file.read(end, file.sizeBytes - end.length)
  return endsAsVhd(end)
}
