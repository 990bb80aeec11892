/**
 * Content of an attribute: what is read of it, whether it stands in a record, in clusters, or compressed in clusters.
 */
import type { ReadableDisk } from '../../device/block-device.ts'
import type { FileExtent } from '../filesystem.ts'
import type { Geometry } from './boot-sector.ts'
import { CompressedContent } from './compressed-content.ts'
import { ATTRIBUTE_FLAG, invalid, unsupported } from './format.ts'
import { mappingPairs, nonResidentSizes, residentValue } from './mft-record.ts'
import type { Attribute } from './mft-record.ts'
import { RunList, readRuns } from './run-list.ts'

export interface Content {
  readonly sizeBytes: number
  /** Runs that it keeps in memory. */
  readonly runs: number
  /** As Filesystem; what is beyond the initialized size is a hole. */
  extents(): FileExtent[] | Promise<FileExtent[]>
  /** Fills `into`; the range is inside the content. */
  read(into: Uint8Array, offset: number): Promise<void>
}

/** Where content lies: `disk` for what is read once, `cached` for metadata. */
export interface ContentPlace {
  disk: ReadableDisk
  geometry: Geometry
}

/**
 * @param parts of one attribute, all of them, in the order of its clusters
 * @throws VarveError FORMAT_INVALID, LIMIT_EXCEEDED; FORMAT_UNSUPPORTED for what is encrypted, or compressed in a way that is not known
 */
export function openContent(place: ContentPlace, parts: readonly Attribute[]): Content {
  const [first] = parts
  if ((first.flags & ATTRIBUTE_FLAG.encrypted) !== 0) throw unsupported('the file is encrypted (EFS), and its key is not on the volume')
  if (first.isResident) {
    if (parts.length > 1) throw invalid('an attribute inside a record has more than one part')
    return new ResidentContent(residentValue(first))
  }
  const runs = new RunList()
  for (const part of parts) {
    if (part.isResident || part.firstCluster !== runs.clusters) throw invalid('parts of an attribute are missing')
    runs.append(mappingPairs(part), place.geometry.clusters)
  }
  const { sizeBytes, initializedBytes } = nonResidentSizes(first)
  if (runs.clusters * place.geometry.clusterBytes < sizeBytes) throw invalid(`an attribute of ${sizeBytes} bytes has ${runs.clusters} clusters of ${place.geometry.clusterBytes}`)
  const compression = first.flags & ATTRIBUTE_FLAG.compressionMask
  if (compression === 0) return new RunContent(place, runs, { sizeBytes, initializedBytes })
  if (compression !== ATTRIBUTE_FLAG.compressed) throw unsupported(`the compression ${compression} is not known`)
  return new CompressedContent(place, runs, { sizeBytes, initializedBytes, unitClusters: 2 ** first.bytes.readUInt16LE(0x22) })
}

class ResidentContent implements Content {
  readonly sizeBytes: number
  readonly runs = 0
  readonly #bytes: Buffer

  constructor(bytes: Buffer) {
    this.#bytes = bytes
    this.sizeBytes = bytes.length
  }

  extents(): FileExtent[] {
    return this.sizeBytes === 0 ? [] : [{ fileOffset: 0, length: this.sizeBytes }]
  }

  async read(into: Uint8Array, offset: number): Promise<void> {
    into.set(this.#bytes.subarray(offset, offset + into.length))
  }
}

class RunContent implements Content {
  readonly sizeBytes: number
  readonly #place: ContentPlace
  readonly #runs: RunList
  readonly #initializedBytes: number

  constructor(place: ContentPlace, runs: RunList, { sizeBytes, initializedBytes }: { sizeBytes: number; initializedBytes: number }) {
    this.#place = place
    this.#runs = runs
    this.sizeBytes = sizeBytes
    this.#initializedBytes = initializedBytes
  }

  get runs(): number {
    return this.#runs.count
  }

  extents(): FileExtent[] {
    const { clusterBytes } = this.#place.geometry
    const extents: FileExtent[] = []
    for (let index = 0; index < this.#runs.count; index++) {
      const { first, count, place } = this.#runs.run(index)
      const fileOffset = first * clusterBytes
      if (fileOffset >= this.#initializedBytes) break
      if (place !== undefined) extents.push({ fileOffset, length: Math.min(count * clusterBytes, this.#initializedBytes - fileOffset), diskOffset: place * clusterBytes })
    }
    return extents
  }

  async read(into: Uint8Array, offset: number): Promise<void> {
    const initialized = Math.max(0, Math.min(into.length, this.#initializedBytes - offset))
    await readRuns(this.#place.disk, this.#runs, this.#place.geometry.clusterBytes, into.subarray(0, initialized), offset)
    into.fill(0, initialized)
  }
}
