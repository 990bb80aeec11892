/**
 * Seeds: what this machine has already. Files below a directory, and those of an old disk, are cut as an import cuts them; an old disk is compared
 * place by place too. Whatever is a chunk that the disk lacks is put there, after its digest was checked, and need not come over the line.
 */
import fs from 'node:fs'
import path from 'node:path'
import { SPECIAL_MIN } from '@varve/images/blockmap/block-map.ts'
import type { ChunkTable } from '@varve/images/chunk/chunk-table.ts'
import { digestWords } from '@varve/images/chunk/chunk-table.ts'
import { cutContent } from '@varve/images/chunk/cut.ts'
import { digestOf } from '@varve/images/chunk/digest.ts'
import { CUT_BYTES_MAX, SEGMENT_BYTES } from '@varve/images/chunk/limits.ts'
import { FileDevice } from '@varve/images/device/file-device.ts'
import { isVarveError, VarveError } from '@varve/images/errors.ts'
import { openExt4 } from '@varve/images/filesystems/ext4/filesystem.ts'
import type { Ext4Filesystem } from '@varve/images/filesystems/ext4/filesystem.ts'
import { walk } from '@varve/images/filesystems/walk.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import { readVolumes } from '@varve/images/volumes/volume-table.ts'
import type { StreamedDisk } from './streamed-disk.ts'

/** Work that is done in one go, before others have their turn, bytes. */
const TURN_BYTES = 1 << 20

export interface SeedReport {
  /** Bytes that were looked at, and bytes that came from there. */
  readBytes: number
  takenBytes: number
  /** Files that could not be read. */
  failures: number
}

export class Seeds {
  readonly #disk: StreamedDisk
  readonly #chunkOf: ChunkTable
  readonly #supplied: (chunk: number, content: Uint8Array) => void
  readonly #signal: AbortSignal
  /** Lengths that chunks of the disk have: most files need not be read. */
  readonly #lengths: Set<number>
  readonly report: SeedReport = { readBytes: 0, takenBytes: 0, failures: 0 }
  #sinceTurn = 0

  /** @param options.chunkOf numbers of the disk's chunks by digest @param options.supplied is told what was put there */
  constructor(disk: StreamedDisk, { chunkOf, supplied, signal }: { chunkOf: ChunkTable; supplied(this: void, chunk: number, content: Uint8Array): void; signal: AbortSignal }) {
    this.#disk = disk
    this.#supplied = supplied
    this.#chunkOf = chunkOf
    this.#signal = signal
    this.#lengths = new Set(disk.map.chunkBytes)
  }

  /** @param seed a directory, a disk image or a block device @throws VarveError SOURCE_INVALID */
  async take(seed: string): Promise<void> {
    let stat: fs.Stats
    try {
      stat = fs.statSync(seed)
    } catch (cause) {
      throw new VarveError('SOURCE_INVALID', `the seed ${seed} cannot be read: ${(cause as Error).message}`, { cause })
    }
    if (stat.isDirectory()) await this.#takeDirectory(seed, stat.dev)
    else await this.#takeDisk(seed)
  }

  /** @param device of its filesystem: others that are mounted below are no seeds, some of them never end */
  async #takeDirectory(directory: string, device: number): Promise<void> {
    // By a list of our own: names that another process removes meanwhile are no failure of the whole.
    const waiting = [directory]
    for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
      for (const entry of this.#tried(() => fs.readdirSync(next, { withFileTypes: true })) ?? []) {
        const name = path.join(next, entry.name)
        if (entry.isDirectory() && this.#tried(() => fs.lstatSync(name).dev) === device) waiting.push(name)
        else if (entry.isFile()) await this.#takeFile(name)
      }
    }
  }

  async #takeFile(file: string): Promise<void> {
    const fd = this.#tried(() => fs.openSync(file, fs.constants.O_RDONLY | fs.constants.O_NOFOLLOW | fs.constants.O_NONBLOCK))
    if (fd === undefined) return
    try {
      const { size } = fs.fstatSync(fd)
      if (size <= CUT_BYTES_MAX && !this.#lengths.has(size)) return
      for (let at = 0; at < size; at += SEGMENT_BYTES) {
        const segment = Buffer.allocUnsafe(Math.min(SEGMENT_BYTES, size - at))
        const read = this.#tried(() => fs.readSync(fd, segment, 0, segment.length, at))
        if (read !== segment.length) return
        await this.#offerSegment(segment)
      }
    } finally {
      fs.closeSync(fd)
    }
  }

  async #takeDisk(file: string): Promise<void> {
    await using device = FileDevice.open({ path: file, readOnly: true })
    await this.#takePlaces(device)
    for (const { view } of (await readVolumes(device)).volumes) {
      try {
        await this.#takeFiles(await openExt4(view))
      } catch (error) {
        this.#signal.throwIfAborted()
        if (!isVarveError(error)) throw error
        // Another filesystem, or one that is damaged.
        this.report.failures++
      }
    }
  }

  async #takeFiles(files: Ext4Filesystem): Promise<void> {
    for await (const { node } of walk(files, { damaged: () => this.report.failures++ })) {
      const { id, kind, sizeBytes } = node
      if (kind !== Kind.file || (sizeBytes <= CUT_BYTES_MAX && !this.#lengths.has(sizeBytes))) continue
      try {
        for (let at = 0; at < sizeBytes; at += SEGMENT_BYTES) {
          const segment = Buffer.allocUnsafe(Math.min(SEGMENT_BYTES, sizeBytes - at))
          await files.read(id, segment, at)
          await this.#offerSegment(segment)
        }
      } catch (error) {
        this.#signal.throwIfAborted()
        if (!isVarveError(error)) throw error
        this.report.failures++
      }
    }
  }

  /** Chunks that lie where they lie on the disk that is to be. */
  async #takePlaces(device: FileDevice): Promise<void> {
    const { map } = this.#disk
    for (let index = 0; index < map.extentCount; index++) {
      const chunk = map.refs[index]
      const [start, end] = [map.starts[index], map.endOf(index)]
      if (chunk >= SPECIAL_MIN || end - start !== map.chunkBytes[chunk] || end > device.sizeBytes || !this.#disk.needs(chunk)) continue
      const content = Buffer.allocUnsafe(end - start)
      device.read(content, start)
      if (Buffer.compare(digestOf(content), map.chunkDigest(chunk)) === 0) this.#give(chunk, content)
      await this.#turn(content.length)
    }
  }

  /** Of a file, or all of one. */
  async #offerSegment(segment: Uint8Array): Promise<void> {
    let start = 0
    for (const end of cutContent(segment)) {
      this.#offer(segment.subarray(start, end))
      await this.#turn(end - start)
      start = end
    }
  }

  #offer(content: Uint8Array): void {
    if (!this.#lengths.has(content.length)) return
    const digest = new Uint8Array(digestOf(content))
    const chunk = this.#chunkOf.findAny(digestWords(digest), 0)
    if (chunk >= 0 && this.#disk.needs(chunk)) this.#give(chunk, content)
  }

  #give(chunk: number, content: Uint8Array): void {
    this.#disk.install(chunk, content)
    this.#supplied(chunk, content)
    this.report.takenBytes += content.length
  }

  async #turn(bytes: number): Promise<void> {
    this.report.readBytes += bytes
    this.#sinceTurn += bytes
    if (this.#sinceTurn < TURN_BYTES) return
    this.#sinceTurn = 0
    await new Promise<void>((resolve) => setImmediate(resolve))
    this.#signal.throwIfAborted()
  }

  #tried<Result>(act: () => Result): Result | undefined {
    try {
      return act()
    } catch {
      this.report.failures++
      return undefined
    }
  }
}
