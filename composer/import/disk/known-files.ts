/**
 * Known files: files of a disk that an earlier import has read, by what their inodes said of them then. One that is the same is not read again.
 * A cache beside the layer's block map, which can be thrown away. Bytes, and what it trusts: docs/formats/import.md#files-of-a-disk
 */
import { readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { DIGEST_BYTES, digestOf, digestToHex } from '@varve/images/chunk/digest.ts'
import type { Digest } from '@varve/images/chunk/digest.ts'
import type { FileExtent, FileNode } from '@varve/images/filesystems/filesystem.ts'
import { Column, ScratchColumn } from '@varve/images/tree/column.ts'
import { KeyTable } from '@varve/images/tree/key-table.ts'
import type { Workspace } from '@varve/images/tree/workspace.ts'
import type { MountedVolume } from './open-volumes.ts'

const MAGIC = 0x31634456
const HEADER_BYTES = 8
const KEY_WORDS = 4
const KEY_BYTES = KEY_WORDS * 4
/** Larger caches are not read, bytes. */
const CACHE_BYTES_MAX = 1 << 28
/** Whose inodes have a time that is set by the clock whenever they change. */
const TRUSTED_TYPES = new Set(['ext2', 'ext3', 'ext4', 'ntfs'])
/** A file that was changed so short before the newest change of its filesystem may have changed again at what is the same time for the filesystem. */
const SETTLED_SECONDS = 2

export class KnownFiles {
  readonly #volumes: readonly MountedVolume[]
  readonly #before: KeyTable
  /** By file. */
  readonly #keys: ScratchColumn<Uint32Array>
  readonly #changed: ScratchColumn<Float64Array>
  readonly #volumeOf: ScratchColumn<Uint16Array>
  readonly #known: Column<Uint8Array>
  /** By volume: seconds of the newest change. */
  readonly #newest: Float64Array
  readonly #identities: Float64Array[]
  #numbers = new Float64Array(64)
  readonly #key = new Uint32Array(KEY_WORDS)

  /** @param before of the map that the disk had; undefined: nothing is known */
  constructor(volumes: readonly MountedVolume[], space: Workspace, before: { directory: string; map: Digest } | undefined) {
    this.#volumes = volumes
    this.#before = new KeyTable(space, KEY_WORDS)
    this.#keys = new ScratchColumn(space, new Uint32Array())
    this.#changed = new ScratchColumn(space, new Float64Array())
    this.#volumeOf = new ScratchColumn(space, new Uint16Array())
    this.#known = new Column(space, new Uint8Array())
    this.#newest = new Float64Array(volumes.length).fill(-Infinity)
    this.#identities = volumes.map(({ filesystem: { type, uuid } }, number) => Float64Array.from([number, ...Buffer.from(`${type} ${uuid}`)]))
    const keys = before === undefined ? undefined : readKeys(cachePath(before.directory, before.map))
    for (let at = 0; keys !== undefined && at < keys.length; at += KEY_WORDS) this.#before.add(keys.subarray(at, at + KEY_WORDS))
  }

  /** Told of files in the order of their numbers. */
  note(file: number, volume: number, node: FileNode, extents: readonly FileExtent[]): void {
    if (file !== this.#known.length) throw new RangeError('files are noted in order')
    const { id, sizeBytes, modified, changed } = node
    const identity = this.#identities[volume]
    const count = identity.length + 6 + extents.length * 3
    if (count > this.#numbers.length) this.#numbers = new Float64Array(count * 2)
    const numbers = this.#numbers
    numbers.set(identity)
    let at = identity.length
    for (const value of [id, sizeBytes, modified.seconds, modified.nanoseconds, changed.seconds, changed.nanoseconds]) numbers[at++] = value
    for (const { fileOffset, length, diskOffset = -1 } of extents) {
      numbers[at++] = fileOffset
      numbers[at++] = length
      numbers[at++] = diskOffset
    }
    const digest = digestOf(new Uint8Array(numbers.buffer, 0, count * 8))
    this.#key.set(new Uint32Array(digest.buffer.slice(digest.byteOffset, digest.byteOffset + KEY_BYTES)))
    this.#keys.append(this.#key)
    this.#changed.push(changed.seconds)
    this.#volumeOf.push(volume)
    this.#newest[volume] = Math.max(this.#newest[volume], changed.seconds)
    this.#known.push(this.#before.find(this.#key) >= 0 ? 1 : 0)
  }

  /** True if the file's inode is as it was, its extents included. */
  has(file: number): boolean {
    return this.#known.values[file] === 1
  }

  /** What has been noted, as a cache for the next import of the disk. */
  encode(): Buffer {
    const bytes = Buffer.alloc(HEADER_BYTES + this.#known.length * KEY_BYTES + DIGEST_BYTES)
    let count = 0
    for (let file = 0; file < this.#known.length; file++) {
      const volume = this.#volumeOf.get(file)
      if (!TRUSTED_TYPES.has(this.#volumes[volume].filesystem.type) || this.#changed.get(file) > this.#newest[volume] - SETTLED_SECONDS) continue
      this.#keys.read(file * KEY_WORDS, this.#key)
      bytes.set(new Uint8Array(this.#key.buffer), HEADER_BYTES + count++ * KEY_BYTES)
    }
    bytes.writeUInt32LE(MAGIC, 0)
    bytes.writeUInt32LE(count, 4)
    const end = HEADER_BYTES + count * KEY_BYTES
    bytes.set(digestOf(bytes.subarray(0, end)), end)
    return bytes.subarray(0, end + DIGEST_BYTES)
  }

  /** @param cache as `encode` gave it @param map of the disk, which is durable */
  static write(directory: string, map: Digest, cache: Buffer): void {
    const file = cachePath(directory, map)
    writeFileSync(`${file}.new`, cache, { mode: 0o600 })
    renameSync(`${file}.new`, file)
  }

  /** Forgets what is known of a disk that had this map. */
  static forget(directory: string, map: Digest): void {
    rmSync(cachePath(directory, map), { force: true })
  }
}

function cachePath(directory: string, map: Digest): string {
  return path.join(directory, `disk-${digestToHex(map).slice(0, 32)}`)
}

/** @returns undefined if there is none, or none that is whole */
function readKeys(file: string): Uint32Array | undefined {
  let bytes
  try {
    if (statSync(file).size > CACHE_BYTES_MAX) return undefined
    bytes = readFileSync(file)
  } catch {
    return undefined
  }
  const end = bytes.length - DIGEST_BYTES
  if (end < HEADER_BYTES || bytes.readUInt32LE(0) !== MAGIC || end !== HEADER_BYTES + bytes.readUInt32LE(4) * KEY_BYTES) return undefined
  if (Buffer.compare(digestOf(bytes.subarray(0, end)), bytes.subarray(end)) !== 0) return undefined
  return new Uint32Array(new Uint8Array(bytes.subarray(HEADER_BYTES, end)).buffer)
}
