/**
 * Logical volumes of LVM2: linear and striped ones whose physical volumes are all on one disk. Others are refused one by one, with the reason.
 * What the metadata says: docs/volumes.md.
 */
import type { ReadableDisk } from '../device/block-device.ts'
import { VarveError } from '../errors.ts'
import { readPhysicalVolume } from './lvm-label.ts'
import { parseLvmText } from './lvm-text.ts'
import type { LvmSection, LvmValue } from './lvm-text.ts'
import { VolumeView } from './volume-view.ts'
import type { VolumeSegment } from './volume-view.ts'
import type { Volume, VolumeTable } from './volume-table.ts'

/** LVM counts in sectors of this size, whatever the disk's are. Bytes. */
const SECTOR_BYTES = 512
/** Of all logical volumes of a disk together, which may lie on each other; a striped one of 64 KiB has 16 in each MiB. */
const SEGMENTS_MAX = 1 << 22
/** Of all texts of a disk: each metadata area of each physical volume has a copy. */
const TEXT_BYTES_MAX = 64 << 20

/** Where a physical volume lies, by its id without dashes. */
type Places = ReadonlyMap<string, Volume>

/** Adds to `table` the logical volumes that lie on its volumes. @throws what `disk.read` throws */
export async function readLogicalVolumes(disk: ReadableDisk, table: VolumeTable): Promise<void> {
  const places = new Map<string, Volume>()
  const texts = new Set<string>()
  let textBytes = 0
  for (const volume of table.volumes) {
    const found = await readPhysicalVolume(volume.view, { textBytesMax: TEXT_BYTES_MAX - textBytes })
    if (found === undefined) continue
    textBytes += found.textBytes
    const title = volume.name === '' ? 'the disk' : `partition ${volume.name}`
    for (const notice of found.notices) table.notices.push(`${title} is a physical volume of LVM: ${notice}`)
    if (places.has(found.id)) table.notices.push(`${title} has the same id as another physical volume, and is not used`)
    else places.set(found.id, volume)
    for (const text of found.texts) texts.add(text)
  }
  const volumes: Volume[] = []
  let segmentsMax = SEGMENTS_MAX
  for (const [name, group] of newestGroups(texts, table.notices)) segmentsMax = new Group(name, group, { places, segmentsMax }).addVolumes(disk, volumes, table.refused)
  table.volumes.push(...volumes.sort((a, b) => (a.name < b.name ? -1 : 1)))
}

/** Each area has a copy, of which one may be older. @returns sections of volume groups by name */
function newestGroups(texts: ReadonlySet<string>, notices: string[]): [string, LvmSection][] {
  const newest = new Map<string, { name: string; group: LvmSection; version: number }>()
  for (const text of texts) {
    try {
      for (const [name, group] of parseLvmText(text)) {
        if (!(group instanceof Map)) continue
        const [id, version] = [string(group, 'id'), integer(group, 'seqno')]
        if ((newest.get(id)?.version ?? -1) < version) newest.set(id, { name, group, version })
      }
    } catch (error) {
      if (!(error instanceof VarveError)) throw error
      notices.push(error.message)
    }
  }
  return [...newest.values()].map(({ name, group }) => [name, group])
}

class Group {
  readonly #name: string
  readonly #places: Places
  readonly #group: LvmSection
  /** Why a logical volume is not what its segments say. */
  readonly #special = new Map<string, string>()
  /** Names of logical volumes that only tie a snapshot to its origin. */
  readonly #ties = new Set<string>()
  #segmentsLeft: number

  constructor(name: string, group: LvmSection, { places, segmentsMax }: { places: Places; segmentsMax: number }) {
    this.#name = name
    this.#group = group
    this.#places = places
    this.#segmentsLeft = segmentsMax
  }

  /** @returns how many segments other groups may still have */
  addVolumes(disk: ReadableDisk, volumes: Volume[], refused: VolumeTable['refused']): number {
    const all = [...optionalSection(this.#group, 'logical_volumes')].filter((entry): entry is [string, LvmSection] => entry[1] instanceof Map)
    this.#findSnapshots(all)
    for (const [name, logical] of all) {
      const title = `${this.#name}/${name}`
      try {
        const special = this.#special.get(name)
        if (special !== undefined) throw new VarveError('FORMAT_UNSUPPORTED', `${special}; only linear and striped volumes are read`)
        const status = logical.get('status')
        // Parts of other logical volumes are not seen by themselves.
        if (!Array.isArray(status) || !status.includes('VISIBLE') || this.#ties.has(name)) continue
        const segments = this.#segments(logical)
        volumes.push({ name: title, type: 'lvm', label: '', segments, view: new VolumeView(disk, segments) })
      } catch (error) {
        if (!(error instanceof VarveError)) throw error
        refused.push({ name: title, reason: error.message })
      }
    }
    return this.#segmentsLeft
  }

  /** A snapshot is a volume that names the two that it is made of: only what was changed, and the origin. */
  #findSnapshots(all: readonly [string, LvmSection][]): void {
    for (const [name, logical] of all) {
      for (const segment of logical.values()) {
        if (!(segment instanceof Map) || segment.get('type') !== 'snapshot') continue
        this.#ties.add(name)
        const [store, merging, origin] = ['cow_store', 'merging_store', 'origin'].map((key) => segment.get(key))
        if (typeof store === 'string') this.#special.set(store, 'it is a snapshot')
        if (typeof merging === 'string') this.#special.set(merging, 'it is a snapshot')
        if (typeof merging === 'string' && typeof origin === 'string') this.#special.set(origin, 'a snapshot is being merged into it')
      }
    }
  }

  /** @throws VarveError FORMAT_UNSUPPORTED, FORMAT_INVALID, LIMIT_EXCEEDED */
  #segments(logical: LvmSection): VolumeSegment[] {
    const extentBytes = integer(this.#group, 'extent_size') * SECTOR_BYTES
    const segments: VolumeSegment[] = []
    const count = integer(logical, 'segment_count')
    let end = 0
    for (let index = 1; index <= count; index++) {
      const segment = section(logical, `segment${index}`)
      if (integer(segment, 'start_extent') * extentBytes !== end) throw invalid('its segments leave a gap')
      this.#addSegment(segment, extentBytes, segments)
      const last = segments.at(-1)!
      end = last.offset + last.length
    }
    if (end === 0) throw invalid('it has no segments')
    return segments
  }

  #addSegment(segment: LvmSection, extentBytes: number, segments: VolumeSegment[]): void {
    const type = string(segment, 'type')
    if (type !== 'striped' && type !== 'linear') throw new VarveError('FORMAT_UNSUPPORTED', `it is of the type ${JSON.stringify(type.slice(0, 32))}; only linear and striped volumes are read`)
    const offset = integer(segment, 'start_extent') * extentBytes
    const length = integer(segment, 'extent_count') * extentBytes
    const stripes = list(segment, 'stripes')
    const count = stripes.length / 2
    if (!(length > 0) || count < 1 || !Number.isInteger(count) || !Number.isInteger(length / count)) throw invalid('a segment has a length or stripes that cannot be')
    const starts = Array.from({ length: count }, (_, index) => this.#place(stripes[2 * index], stripes[2 * index + 1], extentBytes, length / count))
    if (count === 1) {
      this.#takeSegments(1)
      return addSegment(segments, { offset, diskOffset: starts[0], length })
    }
    const stripeBytes = integer(segment, 'stripe_size') * SECTOR_BYTES
    if (!(stripeBytes > 0) || (length / count) % stripeBytes !== 0) throw invalid('its stripes do not fit its extents')
    this.#takeSegments(length / stripeBytes)
    for (let at = 0; at < length; at += stripeBytes) {
      const stripe = at / stripeBytes
      addSegment(segments, { offset: offset + at, diskOffset: starts[stripe % count] + Math.floor(stripe / count) * stripeBytes, length: stripeBytes })
    }
  }

  /** Before they are made: neighbours count, too, which become one. */
  #takeSegments(count: number): void {
    if (count > this.#segmentsLeft) throw new VarveError('LIMIT_EXCEEDED', `logical volumes of more than ${SEGMENTS_MAX} segments, or stripes, of one disk are not read; it has ${count}`)
    this.#segmentsLeft -= count
  }

  /** Where a run of extents of a physical volume lies on the disk, bytes. */
  #place(physicalName: LvmValue, extent: LvmValue, extentBytes: number, length: number): number {
    if (typeof physicalName !== 'string' || typeof extent !== 'number') throw invalid('a stripe cannot be understood')
    const physical = optionalSection(this.#group, 'physical_volumes').get(physicalName)
    if (!(physical instanceof Map)) throw new VarveError('FORMAT_UNSUPPORTED', `it lies on ${JSON.stringify(physicalName.slice(0, 64))}, which is no physical volume (as while extents are being moved)`)
    const id = string(physical, 'id')
    const volume = this.#places.get(id.replaceAll('-', ''))
    if (volume === undefined) throw new VarveError('FORMAT_UNSUPPORTED', `a part of it lies on the physical volume ${JSON.stringify(id.slice(0, 38))}, which is on another disk`)
    const offset = integer(physical, 'pe_start') * SECTOR_BYTES + extent * extentBytes
    if (!Number.isSafeInteger(offset) || offset < 0 || offset + length > volume.view.sizeBytes) throw invalid('a part of it lies beyond the end of its physical volume')
    return volume.view.places(offset, length)[0].diskOffset
  }
}

/** Neighbours that go on in each other become one. */
function addSegment(segments: VolumeSegment[], segment: VolumeSegment): void {
  const last = segments.at(-1)
  if (last !== undefined && last.diskOffset + last.length === segment.diskOffset) last.length += segment.length
  else segments.push(segment)
}

function section(parent: LvmSection, name: string): LvmSection {
  const value = parent.get(name)
  if (!(value instanceof Map)) throw invalid(`there is no ${name}`)
  return value
}

function optionalSection(parent: LvmSection, name: string): LvmSection {
  const value = parent.get(name)
  return value instanceof Map ? value : new Map()
}

function string(parent: LvmSection, name: string): string {
  const value = parent.get(name)
  if (typeof value !== 'string') throw invalid(`there is no ${name}`)
  return value
}

/** Not negative, and whole. */
function integer(parent: LvmSection, name: string): number {
  const value = parent.get(name)
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 0) throw invalid(`there is no ${name}`)
  return value
}

function list(parent: LvmSection, name: string): readonly LvmValue[] {
  const value = parent.get(name)
  if (!Array.isArray(value)) throw invalid(`there is no ${name}`)
  return value as readonly LvmValue[]
}

function invalid(what: string): VarveError {
  return new VarveError('FORMAT_INVALID', `LVM: ${what}`)
}
