/**
 * DiskFiles: devices as the files of one directory.
 */
import type { BlockDevice } from '@varve/images/device/block-device.ts'
import type { DirectoryEntry, FileExtent, FileNode, Filesystem, Timestamp } from '@varve/images/filesystems/filesystem.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import type { MountedFilesystem } from './mounted-filesystem.ts'

export interface DiskFile {
  /** Latin1. */
  name: string
  device: BlockDevice
}

export interface DiskFilesOptions {
  uid: number
  gid: number
  time: Timestamp
}

const ROOT = 1

/** Ids are 1 for the directory, and from 2 on the files. */
export class DiskFiles implements Filesystem, MountedFilesystem {
  readonly type = 'disk'
  readonly blockBytes = 4096
  readonly sizeBytes: number
  readonly root = ROOT
  readonly files = this
  readonly #disks: readonly DiskFile[]
  readonly #options: DiskFilesOptions

  /** The devices are borrowed. */
  constructor(disks: readonly DiskFile[], options: DiskFilesOptions) {
    this.#disks = disks
    this.#options = options
    this.sizeBytes = disks.reduce((sum, { device }) => sum + device.sizeBytes, 0)
  }

  device(file: number): BlockDevice | undefined {
    return file > ROOT ? this.#disks.at(file - ROOT - 1)?.device : undefined
  }

  node(id: number): FileNode {
    const device = id === ROOT ? undefined : this.#disk(id)
    const { uid, gid, time } = this.#options
    return {
      id,
      kind: device === undefined ? Kind.directory : Kind.file,
      mode: device === undefined ? 0o700 : device.readOnly ? 0o400 : 0o600,
      uid,
      gid,
      sizeBytes: device?.sizeBytes ?? 0,
      links: 1,
      modified: time,
      accessed: time,
      changed: time,
      deviceMajor: 0,
      deviceMinor: 0,
    }
  }

  list(directory: number): DirectoryEntry[] {
    if (directory !== ROOT) throw new RangeError(`${directory} is no directory`)
    return this.#disks.map(({ name }, index) => ({ name, id: ROOT + 1 + index }))
  }

  child(directory: number, name: string): number | undefined {
    return this.list(directory).find((entry) => entry.name === name)?.id
  }

  target(symlink: number): never {
    throw new RangeError(`${symlink} is no symlink`)
  }

  xattrs(): [] {
    return []
  }

  extents(file: number): FileExtent[] {
    const device = this.#disk(file)
    return device.extents(0, device.sizeBytes).filter(({ type }) => type === 'data').map(({ offset, length }) => ({ fileOffset: offset, length }))
  }

  read(file: number, into: Uint8Array, offset: number): void | Promise<void> {
    return this.#disk(file).read(into, offset)
  }

  #disk(id: number): BlockDevice {
    const device = this.device(id)
    if (device === undefined) throw new RangeError(`no file has the id ${id}`)
    return device
  }
}
