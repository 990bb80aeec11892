/**
 * CompressedClusters: clusters of an image that are compressed one by one, as pieces of its disk. The last ones that were read are kept decompressed.
 */
import type { ReadableDisk } from '../device/block-device.ts'

/** Bytes of decompressed clusters that are kept; at least one is. */
const KEPT_BYTES_MAX = 1 << 20

/** Where a cluster stands in its file. */
export interface CompressedCluster {
  /** Bytes from the start of the file. */
  at: number
  /** At most: what follows the compressed bytes is passed over. */
  length: number
  /** Bytes of the cluster that are inside the disk. */
  contentBytes: number
}

export interface CompressedClustersOptions {
  /** Borrowed. */
  file: ReadableDisk
  clusterBytes: number
  /** @returns at least `contentBytes` of the cluster @throws VarveError FORMAT_INVALID */
  decompress: (compressed: Buffer, cluster: CompressedCluster) => Uint8Array
}

export class CompressedClusters {
  readonly #file: ReadableDisk
  readonly #decompress: CompressedClustersOptions['decompress']
  /** By place in the file, the last used at the end. */
  readonly #kept = new Map<number, Uint8Array>()
  readonly #keptMax: number

  constructor({ file, clusterBytes, decompress }: CompressedClustersOptions) {
    this.#file = file
    this.#decompress = decompress
    this.#keptMax = Math.max(1, Math.floor(KEPT_BYTES_MAX / clusterBytes))
  }

  /** One cluster, decompressed when it is read. @param cluster inside the file */
  source(cluster: CompressedCluster): ReadableDisk {
    return { sizeBytes: cluster.contentBytes, read: (into, offset) => this.#read(cluster, into, offset) }
  }

  #read(cluster: CompressedCluster, into: Uint8Array, offset: number): void | Promise<void> {
    const copy = (content: Uint8Array) => into.set(content.subarray(offset, offset + into.length))
    const kept = this.#kept.get(cluster.at)
    if (kept !== undefined) return copy(this.#keep(cluster, kept))
    const compressed = Buffer.allocUnsafe(cluster.length)
    const answer = this.#file.read(compressed, cluster.at)
    if (answer instanceof Promise) return answer.then(() => copy(this.#keep(cluster, this.#decompress(compressed, cluster))))
    copy(this.#keep(cluster, this.#decompress(compressed, cluster)))
  }

  #keep(cluster: CompressedCluster, content: Uint8Array): Uint8Array {
    this.#kept.delete(cluster.at)
    if (this.#kept.size >= this.#keptMax) this.#kept.delete(this.#kept.keys().next().value!)
    this.#kept.set(cluster.at, content)
    return content
  }
}
