/**
 * VolumeView: a volume as a disk of its own, wherever its parts lie on the disk below.
 */
import { appendExtent, checkRange } from '../device/block-device.ts'
import type { DeviceExtent, ReadableDisk } from '../device/block-device.ts'
import { settled } from '../device/settled.ts'

/** A part of a volume that lies in one piece, bytes. */
export interface VolumeSegment {
  /** From the start of the volume. */
  offset: number
  /** From the start of the disk. */
  diskOffset: number
  length: number
}

export class VolumeView implements ReadableDisk {
  readonly sizeBytes: number
  readonly extents: ReadableDisk['extents']
  readonly #disk: ReadableDisk
  readonly #segments: readonly VolumeSegment[]

  /** @param disk borrowed @param segments in order, the first at 0, without gaps, inside the disk */
  constructor(disk: ReadableDisk, segments: readonly VolumeSegment[]) {
    const last = segments[segments.length - 1]
    this.#disk = disk
    this.#segments = segments
    this.sizeBytes = last.offset + last.length
    if (disk.extents !== undefined) this.extents = (offset, length, most) => this.#extents(offset, length, most)
  }

  /** Where a range lies on the disk, in order. @throws RangeError for one that is outside */
  places(offset: number, length: number): VolumeSegment[] {
    checkRange(this, offset, length)
    const places: VolumeSegment[] = []
    for (let index = this.#indexAt(offset), at = offset; at < offset + length; index++) {
      const segment = this.#segments[index]
      const end = Math.min(offset + length, segment.offset + segment.length)
      places.push({ offset: at, diskOffset: segment.diskOffset + at - segment.offset, length: end - at })
      at = end
    }
    return places
  }

  read(into: Uint8Array, offset: number): void | Promise<void> {
    const places = this.places(offset, into.length)
    if (places.length === 1) return this.#disk.read(into, places[0].diskOffset)
    const pending = places.map(({ offset: at, diskOffset, length }) => this.#disk.read(into.subarray(at - offset, at - offset + length), diskOffset)).filter((read) => read !== undefined)
    if (pending.length > 0) return settled(pending)
  }

  #extents(offset: number, length: number, most = Infinity): DeviceExtent[] {
    const extents: DeviceExtent[] = []
    for (const place of this.places(offset, length)) {
      let end = place.diskOffset
      for (const extent of this.#disk.extents!(place.diskOffset, place.length, most - extents.length + 1)) {
        appendExtent(extents, extent.offset - place.diskOffset + place.offset, extent.length, extent.type)
        end = extent.offset + extent.length
      }
      if (extents.length > most || end < place.diskOffset + place.length) break
    }
    return extents.slice(0, most)
  }

  #indexAt(offset: number): number {
    let low = 0
    for (let high = this.#segments.length - 1; low < high;) {
      const middle = (low + high + 1) >>> 1
      if (this.#segments[middle].offset <= offset) low = middle
      else high = middle - 1
    }
    return low
  }
}
