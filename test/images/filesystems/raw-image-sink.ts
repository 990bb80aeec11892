/**
 * RawImageSink: writes what a filesystem writer lays out into a sparse raw file, content of chunks included, for judges that want a file.
 * Checks the contract of LayoutSink: nothing outside of the volume, and (by `check`) nothing mentioned twice.
 */
import { closeSync, ftruncateSync, openSync, writeSync } from 'node:fs'
import type { LayoutSink } from '@varve/images/blockmap/layout-sink.ts'

export class RawImageSink implements LayoutSink {
  readonly #fd: number
  readonly #sizeBytes: number
  readonly #content: (chunk: number) => Uint8Array
  readonly #ranges: { offset: number; length: number }[] = []
  /** Bytes that the writer generated. */
  generatedBytes = 0
  /** Calls of `bytes` and `chunk`. */
  calls = 0

  /** @param content of chunk number `chunk` of the tree */
  constructor(path: string, sizeBytes: number, content: (chunk: number) => Uint8Array) {
    this.#fd = openSync(path, 'w+')
    ftruncateSync(this.#fd, sizeBytes)
    this.#sizeBytes = sizeBytes
    this.#content = content
  }

  bytes(offset: number, bytes: Uint8Array): void {
    this.generatedBytes += bytes.length
    this.#put(offset, bytes)
  }

  chunk(offset: number, length: number, chunk: number, chunkOffset: number): void {
    const content = this.#content(chunk)
    if (chunkOffset < 0 || length < 1 || chunkOffset + length > content.length) throw new RangeError(`chunk ${chunk}: ${chunkOffset}+${length} of ${content.length} bytes`)
    this.#put(offset, content.subarray(chunkOffset, chunkOffset + length))
  }

  /** Closes the file. @throws if anything was mentioned twice */
  close(): void {
    closeSync(this.#fd)
    this.#ranges.sort((a, b) => a.offset - b.offset)
    for (let index = 1; index < this.#ranges.length; index++) {
      const before = this.#ranges[index - 1]
      if (before.offset + before.length > this.#ranges[index].offset) throw new Error(`offset ${this.#ranges[index].offset} is mentioned twice`)
    }
  }

  #put(offset: number, bytes: Uint8Array): void {
    if (!Number.isSafeInteger(offset) || offset < 0 || offset + bytes.length > this.#sizeBytes) throw new RangeError(`${offset}+${bytes.length} is outside of the volume`)
    this.calls++
    this.#ranges.push({ offset, length: bytes.length })
    for (let done = 0; done < bytes.length;) done += writeSync(this.#fd, bytes, done, bytes.length - done, offset + done)
  }
}
