/**
 * RecordingDevice: the disk of a block map whose reads are noted by a ReadRecorder. It changes nothing of what is read.
 */
import type { BlockMap } from '../blockmap/block-map.ts'
import type { BlockDevice, DeviceExtent, DeviceView } from './block-device.ts'
import { ReadRecorder } from './read-recorder.ts'

export class RecordingDevice implements BlockDevice {
  readonly sizeBytes: number
  readonly blockBytes: number
  readonly readOnly: boolean
  readonly map: BlockMap
  readonly recorder: ReadRecorder
  readonly #device: BlockDevice

  /** @param device shows `map`; closed with this one */
  constructor(device: BlockDevice & { readonly map: BlockMap }) {
    this.sizeBytes = device.sizeBytes
    this.blockBytes = device.blockBytes
    this.readOnly = device.readOnly
    this.map = device.map
    this.recorder = new ReadRecorder(device.map)
    this.#device = device
  }

  read(into: Uint8Array, offset: number): void | Promise<void> {
    const answer = this.#device.read(into, offset)
    this.recorder.note(offset, into.length)
    return answer
  }

  view(offset: number, length: number): DeviceView | undefined {
    const view = this.#device.view?.(offset, length)
    // Without one, `read` follows.
    if (view !== undefined) this.recorder.note(offset, length)
    return view
  }

  write(bytes: Uint8Array, offset: number): void | Promise<void> {
    return this.#device.write(bytes, offset)
  }

  flush(): void | Promise<void> {
    return this.#device.flush()
  }

  trim(offset: number, length: number): void | Promise<void> {
    return this.#device.trim(offset, length)
  }

  writeZeroes(offset: number, length: number): void | Promise<void> {
    return this.#device.writeZeroes(offset, length)
  }

  extents(offset: number, length: number, most?: number): DeviceExtent[] {
    return this.#device.extents(offset, length, most)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#device[Symbol.asyncDispose]()
  }
}
