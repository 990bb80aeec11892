/**
 * Disk images: the contract of the formats that hypervisors keep disks in. Each format is read by a function that gives the disk inside as a BlockDevice,
 * and offered by one that computes the image of a disk: a BlockDevice too, whose bytes are those of the image file, none of them written anywhere.
 */
import { VarveError } from '../errors.ts'
import type { BlockDevice, ReadableDisk } from '../device/block-device.ts'

/** As qemu-img names them, but `vhd` for its `vpc`. */
export const DISK_FORMATS = ['raw', 'vhd', 'vhdx', 'vmdk', 'qcow2'] as const
export type DiskFormat = (typeof DISK_FORMATS)[number]

/** A file of an image, closed by whoever owns it. */
export type ImageFile = ReadableDisk & AsyncDisposable

/** Opens another file that an image names: its parent, its backing file, its extents. */
export interface ImageFiles {
  /**
   * @param name as the image has it: absolute, or relative to the image
   * @returns the file, owned by whoever asked, and how to open what it names
   * @throws VarveError SOURCE_INVALID if it cannot be opened, or may not be
   */
  open(name: string): Promise<{ file: ImageFile; files: ImageFiles }>
}

/** Longest chain of images over one another, the upper one included. */
export const CHAIN_MAX = 256

export interface OpenImageOptions {
  /** Without it, an image that names another file is refused: SOURCE_UNSUPPORTED. */
  files?: ImageFiles
  /** Images above this one in a chain. */
  depth?: number
  /** Internal snapshot that is read instead of the disk as it is now, by id or name; only qcow2 has such. */
  snapshot?: string
  /** A qcow2 image without those below it: what it has not itself is a hole. */
  alone?: boolean
  /** Is told, in a line, what is wrong with an image that is read nevertheless. */
  warn?: (message: string) => void
}

/**
 * Options for the image below one that was opened with `options`.
 * @throws VarveError LIMIT_EXCEEDED
 */
export function below(options: OpenImageOptions, files: ImageFiles): OpenImageOptions {
  const depth = (options.depth ?? 0) + 1
  if (depth >= CHAIN_MAX) throw new VarveError('LIMIT_EXCEEDED', `more than ${CHAIN_MAX} images lie over one another`)
  return { ...options, files, depth, snapshot: undefined }
}

/**
 * Read-only disk inside an image; `extents` tells data, zero and hole as the format does, through all parents. It owns `file` once it was opened.
 * As extents are told at once, reads of the file's tables must complete at once, too: those of files do. Reads of its data need not.
 * @throws VarveError FORMAT_INVALID, FORMAT_UNSUPPORTED, LIMIT_EXCEEDED, SOURCE_INVALID, SOURCE_UNSUPPORTED
 */
export type OpenImage = (file: ImageFile, options?: OpenImageOptions) => Promise<BlockDevice>

/** Read-only file that holds `disk` in a format; the same disk gives the same bytes. It borrows the disk, which must not change. */
export type ComputeImage = (disk: BlockDevice) => Promise<BlockDevice>
