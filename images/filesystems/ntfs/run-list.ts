/**
 * Run list: which clusters of the volume hold the clusters of an attribute; runs without a place are holes.
 * Bytes ("mapping pairs"): a head of two nibbles, the bytes of a length and of a signed distance from the run before; a head of 0 ends them.
 */
import type { ReadableDisk } from '../../device/block-device.ts'
import { exceeded, invalid } from './format.ts'

/** Runs of one attribute: 64 MiB of them. The attribute list, of 256 KiB at most, names so many. */
const RUNS_MAX = 4_000_000
/** More bytes give numbers that no volume has. */
const LENGTH_BYTES_MAX = 6

export interface Run {
  /** Clusters from the start of the attribute. */
  first: number
  /** Clusters. */
  count: number
  /** Cluster of the volume; undefined for a hole. */
  place: number | undefined
}

const HOLE = -1

export class RunList {
  /** Clusters that the runs cover, from the start of the attribute. */
  clusters = 0
  /** First cluster of each run, and its place. */
  #firsts = new Float64Array(4)
  #places = new Float64Array(4)
  #count = 0

  get count(): number {
    return this.#count
  }

  /**
   * Adds the runs that one attribute record holds; it must begin where the last one ended.
   * @param pairs bytes from the first mapping pair to the end of the record
   * @param clusters of the volume
   * @throws VarveError FORMAT_INVALID, LIMIT_EXCEEDED
   */
  append(pairs: Buffer, clusters: number): void {
    for (let at = 0, place = 0; ;) {
      if (at >= pairs.length) throw invalid('the runs of an attribute do not end')
      const lengthBytes = pairs[at] & 15
      const distanceBytes = pairs[at] >> 4
      if (pairs[at] === 0) return
      if (lengthBytes === 0 || lengthBytes > LENGTH_BYTES_MAX || distanceBytes > LENGTH_BYTES_MAX || at + 1 + lengthBytes + distanceBytes > pairs.length) throw invalid('the runs of an attribute are damaged')
      const count = pairs.readIntLE(at + 1, lengthBytes)
      if (distanceBytes > 0) place += pairs.readIntLE(at + 1 + lengthBytes, distanceBytes)
      // Of a hole, the length has no bound but that of numbers: a sparse file may be larger than its volume.
      const isPossible = count > 0 && (distanceBytes === 0 ? this.clusters + count <= 2 ** 52 : place >= 0 && place + count <= clusters)
      if (!isPossible) throw invalid(`a run of ${count} clusters at ${place} is outside of the volume`)
      this.#add(count, distanceBytes === 0 ? HOLE : place)
      at += 1 + lengthBytes + distanceBytes
    }
  }

  #add(count: number, place: number): void {
    const last = this.#count - 1
    const lastCount = last < 0 ? 0 : this.clusters - this.#firsts[last]
    const continues = last >= 0 && (place === HOLE ? this.#places[last] === HOLE : this.#places[last] !== HOLE && this.#places[last] + lastCount === place)
    if (!continues) {
      if (this.#count === RUNS_MAX) throw exceeded(`a file of more than ${RUNS_MAX} runs`)
      if (this.#count === this.#firsts.length) {
        this.#firsts = grown(this.#firsts)
        this.#places = grown(this.#places)
      }
      this.#firsts[this.#count] = this.clusters
      this.#places[this.#count++] = place
    }
    this.clusters += count
  }

  run(index: number): Run {
    const first = this.#firsts[index]
    const end = index + 1 < this.#count ? this.#firsts[index + 1] : this.clusters
    const place = this.#places[index]
    return { first, count: end - first, place: place === HOLE ? undefined : place }
  }

  /** Index of the run of a cluster, which is below `clusters`. */
  indexOf(cluster: number): number {
    let low = 0
    for (let high = this.#count - 1; low < high;) {
      const middle = (low + high + 1) >>> 1
      if (this.#firsts[middle] <= cluster) low = middle
      else high = middle - 1
    }
    return low
  }
}

function grown(column: Float64Array): Float64Array<ArrayBuffer> {
  const larger = new Float64Array(column.length * 2)
  larger.set(column)
  return larger
}

/** Fills `into` with what the runs hold at `offset` (bytes), holes as zeroes; they must cover it. */
export async function readRuns(disk: ReadableDisk, runs: RunList, clusterBytes: number, into: Uint8Array, offset: number): Promise<void> {
  if (into.length === 0) return
  for (let at = 0, index = runs.indexOf(Math.floor(offset / clusterBytes)); at < into.length; index++) {
    const { first, count, place } = runs.run(index)
    const within = offset + at - first * clusterBytes
    const length = Math.min(into.length - at, count * clusterBytes - within)
    const part = into.subarray(at, at + length)
    if (place === undefined) part.fill(0)
    else {
      const done = disk.read(part, place * clusterBytes + within)
      if (done !== undefined) await done
    }
    at += length
  }
}
