/**
 * FileDevice: a raw disk image or a block device of this machine, byte for byte.
 */
import fs from 'node:fs'
import { promisify } from 'node:util'
import { VarveError } from '../errors.ts'
import { allocate, punchHole, seekData, seekHole } from '../native/libc.ts'
import { appendExtent, checkRange } from './block-device.ts'
import type { BlockDevice, DeviceExtent, WriteOptions, WriteZeroesOptions } from './block-device.ts'

/** Unit in which space is given back, bytes. */
const BLOCK_BYTES = 4096
const ZEROES = new Uint8Array(1 << 20)
const fdatasync = promisify(fs.fdatasync)

export interface FileDeviceOptions {
  path: string
  readOnly?: boolean
  /** Creates the file with this size, all holes; it must not exist. */
  createBytes?: number
}

export class FileDevice implements BlockDevice {
  readonly sizeBytes: number
  readonly blockBytes = BLOCK_BYTES
  readonly readOnly: boolean
  readonly #fd: number
  /** A block device has no holes that we could ask for. */
  readonly #isFile: boolean
  readonly #syncs = new Set<Promise<void>>()
  #closed = false

  private constructor(fd: number, sizeBytes: number, { readOnly, isFile }: { readOnly: boolean; isFile: boolean }) {
    this.#fd = fd
    this.sizeBytes = sizeBytes
    this.readOnly = readOnly
    this.#isFile = isFile
  }

  /** @throws VarveError SOURCE_INVALID if the path is neither a file nor a block device; errors of the system as they are */
  static open({ path, readOnly = false, createBytes }: FileDeviceOptions): FileDevice {
    const fd = fs.openSync(path, createBytes !== undefined ? 'wx+' : readOnly ? 'r' : 'r+')
    try {
      if (createBytes !== undefined) fs.ftruncateSync(fd, createBytes)
      const stat = fs.fstatSync(fd)
      if (!stat.isFile() && !stat.isBlockDevice()) throw new VarveError('SOURCE_INVALID', `${path} is neither a file nor a block device`)
      return new FileDevice(fd, stat.isFile() ? stat.size : blockDeviceBytes(stat.rdev), { readOnly, isFile: stat.isFile() })
    } catch (error) {
      fs.closeSync(fd)
      throw error
    }
  }

  read(into: Uint8Array, offset: number): void {
    this.#check(offset, into.length)
    for (let at = 0; at < into.length;) {
      const count = fs.readSync(this.#fd, into, at, into.length - at, offset + at)
      if (count === 0) throw new VarveError('SOURCE_CHANGED', `the file ends at byte ${offset + at}; it was longer when it was opened`)
      at += count
    }
  }

  write(bytes: Uint8Array, offset: number, options: WriteOptions = {}): void | Promise<void> {
    this.#checkWritable(offset, bytes.length)
    this.#write(bytes, offset)
    if (options.fua) return this.flush()
  }

  flush(): Promise<void> {
    this.#check(0, 0)
    const sync = fdatasync(this.#fd).finally(() => this.#syncs.delete(sync))
    this.#syncs.add(sync)
    return sync
  }

  trim(offset: number, length: number, options: WriteOptions = {}): void | Promise<void> {
    this.#checkWritable(offset, length)
    this.#zero(offset, length)
    if (options.fua) return this.flush()
  }

  writeZeroes(offset: number, length: number, options: WriteZeroesOptions = {}): void | Promise<void> {
    this.#checkWritable(offset, length)
    this.#zero(offset, length)
    if (options.noHole && this.#isFile && length > 0 && !allocate(this.#fd, offset, length)) this.#writeZeroes(offset, offset + length)
    if (options.fua) return this.flush()
  }

  extents(offset: number, length: number, most = Infinity): DeviceExtent[] {
    this.#check(offset, length)
    const end = offset + length
    const extents: DeviceExtent[] = []
    for (let at = offset; at < end && extents.length <= most;) {
      const data = this.#isFile ? seekData(this.#fd, at) : at
      const stop = data < 0 ? end : data > at ? data : this.#isFile ? seekHole(this.#fd, at) : end
      // A file that was cut short meanwhile has neither data nor a hole here.
      const next = stop < 0 ? end : Math.min(stop, end)
      appendExtent(extents, at, next - at, data === at ? 'data' : 'hole')
      at = next
    }
    return extents.slice(0, most)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    await Promise.allSettled(this.#syncs)
    fs.closeSync(this.#fd)
  }

  #write(bytes: Uint8Array, offset: number): void {
    for (let at = 0; at < bytes.length;) at += fs.writeSync(this.#fd, bytes, at, bytes.length - at, offset + at)
  }

  #zero(offset: number, length: number): void {
    const end = offset + length
    const from = Math.min(end, Math.ceil(offset / BLOCK_BYTES) * BLOCK_BYTES)
    const to = Math.max(from, end - (end % BLOCK_BYTES))
    const punched = to > from && punchHole(this.#fd, from, to - from)
    this.#writeZeroes(offset, punched ? from : to)
    this.#writeZeroes(to, end)
  }

  #writeZeroes(offset: number, end: number): void {
    for (let at = offset; at < end; at += ZEROES.length) this.#write(ZEROES.subarray(0, end - at), at)
  }

  #checkWritable(offset: number, length: number): void {
    this.#check(offset, length)
    if (this.readOnly) throw new VarveError('READ_ONLY', 'the disk image was opened for reading only')
  }

  #check(offset: number, length: number): void {
    if (this.#closed) throw new TypeError('the device is closed')
    checkRange(this, offset, length)
  }
}

/** Size of a block device, bytes; the kernel counts in sectors of 512 bytes, whatever the device's own are. */
export function blockDeviceBytes(rdev: number): number {
  // As glibc's gnu_dev_major and gnu_dev_minor; device numbers of Linux fit 32 bits.
  const major = (rdev >>> 8) & 0xfff
  const minor = (rdev & 0xff) | ((rdev >>> 12) & 0xfff00)
  return Number(fs.readFileSync(`/sys/dev/block/${major}:${minor}/size`, 'utf8')) * 512
}
