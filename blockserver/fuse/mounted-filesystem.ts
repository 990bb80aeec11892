/**
 * What a mount shows: filesystems that are read, and files that are devices.
 */
import type { BlockDevice, DeviceView } from '@varve/images/device/block-device.ts'
import type { Filesystem } from '@varve/images/filesystems/filesystem.ts'

/** Where the bytes of a filesystem lie: what hands out its own memory spares a copy. */
export interface FilesystemVolume {
  /** Offsets are bytes from the start of the volume. */
  read(into: Uint8Array, offset: number): void | Promise<void>
  view?(offset: number, length: number): DeviceView | undefined
}

export interface MountedFilesystem {
  readonly files: Filesystem
  readonly volume?: FilesystemVolume
  /** The device that is all of a file's content, and is written to with it unless it is read-only. */
  device?(file: number): BlockDevice | undefined
}

/** Further filesystems, as directories in the root of the first. */
export interface MountedDirectories {
  /** Those that the root lists. Latin1, as all names. */
  readonly names: readonly string[]
  /** Opens one, also one that is not listed; it stays open until the mount ends. @returns undefined if there is none of this name */
  open(name: string): Promise<MountedFilesystem | undefined>
}
