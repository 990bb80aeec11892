/**
 * Workspace: what a tree takes while it is put together, bounded whatever the source holds. Memory is counted, and ends at a limit with an error
 * instead of the process; what need not be at hand goes to a scratch file, which has no name any more once it is open and so goes with the process.
 */
import { randomBytes } from 'node:crypto'
import { closeSync, openSync, readSync, unlinkSync, writeSync } from 'node:fs'
import path from 'node:path'
import { VarveError } from '../errors.ts'
import { TREE_BYTES_MAX } from './limits.ts'

export interface WorkspaceOptions {
  /** Where the scratch file is. Without one, all stays in memory: for small trees. */
  directory?: string
  /** Of all columns in memory; default TREE_BYTES_MAX. */
  bytesMax?: number
}

export class Workspace implements Disposable {
  readonly #directory: string | undefined
  readonly #bytesMax: number
  #fd = -1
  #fileBytes = 0
  #bytes = 0

  constructor({ directory, bytesMax = TREE_BYTES_MAX }: WorkspaceOptions = {}) {
    this.#directory = directory
    this.#bytesMax = bytesMax
  }

  /** True if blocks can be written. */
  get hasFile(): boolean {
    return this.#directory !== undefined
  }

  /** Memory taken, bytes. */
  get bytes(): number {
    return this.#bytes
  }

  /**
   * Counts memory that a column, or what else the source needs, takes or gives back.
   * @throws VarveError LIMIT_EXCEEDED
   */
  take(bytes: number): void {
    if (this.#bytes + bytes > this.#bytesMax) {
      throw new VarveError('LIMIT_EXCEEDED', `what must be at hand of the source (its names and chunks, and the window that it was compressed with) does not fit the ${this.#bytesMax >> 20} MiB of memory that it may take; import it in parts, or with fewer workers`)
    }
    this.#bytes += bytes
  }

  /** Appends a block. @returns where it is */
  write(block: Uint8Array): number {
    if (this.#fd < 0) this.#fd = this.#open()
    const at = this.#fileBytes
    this.#fileBytes += block.length
    this.overwrite(at, block)
    return at
  }

  overwrite(at: number, bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length; ) done += writeSync(this.#fd, bytes, done, bytes.length - done, at + done)
  }

  /** Fills `target` from there on. */
  read(at: number, target: Uint8Array): void {
    for (let done = 0; done < target.length; ) {
      const bytes = readSync(this.#fd, target, done, target.length - done, at + done)
      if (bytes === 0) throw new RangeError('a scratch file ends before what was written to it')
      done += bytes
    }
  }

  #open(): number {
    const file = path.join(this.#directory!, `scratch-${randomBytes(8).toString('hex')}`)
    const fd = openSync(file, 'wx+', 0o600)
    unlinkSync(file)
    return fd
  }

  [Symbol.dispose](): void {
    if (this.#fd >= 0) closeSync(this.#fd)
    this.#fd = -1
  }
}
