/**
 * Recording: what a real guest read of its disk, and when. What it read of its own writes is left out: an agent's target has these wherever the
 * rest is. The disk is local, so that the time between two reads is the guest's own.
 */
import { readFileSync, renameSync, writeFileSync } from 'node:fs'
import type { BlockDevice, DeviceExtent, WriteOptions, WriteZeroesOptions } from '@varve/images/device/block-device.ts'

export interface RecordedRead {
  /** Since power-on. */
  ms: number
  offset: number
  /** Bytes. */
  length: number
}

export interface Recording {
  /** Of what was done after the boot. */
  seed: number
  /** When the boot was over, since power-on. */
  markMs: number
  /** What was done after it, and when. */
  actions: { ms: number; command: string }[]
  reads: RecordedRead[]
}

/** The part of a recording that is the boot. */
export function bootOf({ reads, markMs }: Recording): RecordedRead[] {
  return reads.filter(({ ms }) => ms <= markMs)
}

interface RecordingFile extends Omit<Recording, 'reads'> {
  /** Each ms, offset, length. */
  reads: [number, number, number][]
}

/** Only a finished recording has the name. */
export function writeRecording(file: string, { reads, ...rest }: Recording): void {
  const document: RecordingFile = { ...rest, reads: reads.map(({ ms, offset, length }) => [Number(ms.toFixed(3)), offset, length]) }
  writeFileSync(`${file}.new`, JSON.stringify(document))
  renameSync(`${file}.new`, file)
}

export function readRecording(file: string): Recording {
  const { reads, ...rest } = JSON.parse(readFileSync(file, 'utf8')) as RecordingFile
  return { ...rest, reads: reads.map(([ms, offset, length]) => ({ ms, offset, length })) }
}

/** A disk whose reads are noted with their times. */
export class TimedReadsDevice implements BlockDevice {
  readonly sizeBytes: number
  readonly blockBytes: number
  readonly readOnly: boolean
  readonly reads: RecordedRead[] = []
  readonly #device: BlockDevice
  readonly #startMs = performance.now()
  /** By block: 1 if the guest wrote it. */
  readonly #written: Uint8Array

  /** @param device closed with this one */
  constructor(device: BlockDevice) {
    this.sizeBytes = device.sizeBytes
    this.blockBytes = device.blockBytes
    this.readOnly = device.readOnly
    this.#device = device
    this.#written = new Uint8Array(Math.ceil(device.sizeBytes / device.blockBytes))
  }

  /** Since it was opened. */
  get ms(): number {
    return performance.now() - this.#startMs
  }

  read(into: Uint8Array, offset: number): void | Promise<void> {
    if (this.#blocks(offset, into.length).includes(0)) this.reads.push({ ms: this.ms, offset, length: into.length })
    return this.#device.read(into, offset)
  }

  write(bytes: Uint8Array, offset: number, options?: WriteOptions): void | Promise<void> {
    this.#blocks(offset, bytes.length).fill(1)
    return this.#device.write(bytes, offset, options)
  }

  flush(): void | Promise<void> {
    return this.#device.flush()
  }

  trim(offset: number, length: number, options?: WriteOptions): void | Promise<void> {
    this.#blocks(offset, length).fill(1)
    return this.#device.trim(offset, length, options)
  }

  writeZeroes(offset: number, length: number, options?: WriteZeroesOptions): void | Promise<void> {
    this.#blocks(offset, length).fill(1)
    return this.#device.writeZeroes(offset, length, options)
  }

  extents(offset: number, length: number, most?: number): DeviceExtent[] {
    return this.#device.extents(offset, length, most)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#device[Symbol.asyncDispose]()
  }

  #blocks(offset: number, length: number): Uint8Array {
    return this.#written.subarray(Math.floor(offset / this.blockBytes), Math.ceil((offset + length) / this.blockBytes))
  }
}
