/**
 * Reads all that a damaged filesystem lets itself be read of, by every call of its contract: each may fail with a VarveError, and none in any other way.
 */
import type { ReadableDisk } from '@varve/images/device/block-device.ts'
import { VarveError } from '@varve/images/errors.ts'
import type { Filesystem, VolumeFilesystem } from '@varve/images/filesystems/filesystem.ts'
import { Kind } from '@varve/images/tree/tree.ts'

/** Names that are looked at, and bytes that are read of a file. */
const NAMES_MAX = 5000
const READ_BYTES_MAX = 1 << 20

/** A disk in memory that counts what is asked of it. */
export class CountedDisk implements ReadableDisk {
  readonly sizeBytes: number
  reads = 0
  readonly #bytes: Uint8Array

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes
    this.sizeBytes = bytes.length
  }

  read(into: Uint8Array, offset: number): void {
    if (!(offset >= 0 && offset + into.length <= this.sizeBytes)) throw new RangeError(`${offset}+${into.length} is outside of the disk`)
    this.reads++
    into.set(this.#bytes.subarray(offset, offset + into.length))
  }
}

/** @returns how many calls were answered, and how many refused @throws whatever is no VarveError */
export async function walkHostile(open: () => Promise<Filesystem>): Promise<{ answered: number; refused: number }> {
  const counts = { answered: 0, refused: 0 }
  const asked = async <T>(call: () => Promise<T> | T): Promise<T | undefined> => {
    try {
      const answer = await call()
      counts.answered++
      return answer
    } catch (error) {
      if (!(error instanceof VarveError)) throw error
      counts.refused++
      return undefined
    }
  }
  const filesystem = await asked(open)
  if (filesystem === undefined) return counts
  const seen = new Set<number>()
  const pending = [filesystem.root]
  for (let id = pending.pop(); id !== undefined && seen.size < NAMES_MAX; id = pending.pop()) {
    const own = id
    if (seen.has(own)) continue
    seen.add(own)
    await asked(() => filesystem.xattrs(own))
    const node = await asked(() => filesystem.node(own))
    if (node?.kind === Kind.symlink) await asked(() => filesystem.target(own))
    if (node?.kind === Kind.directory) {
      const entries = await asked(() => filesystem.list(own)) ?? []
      for (const { id: child } of entries) pending.push(child)
      for (const { name } of entries.slice(0, 20)) await asked(() => filesystem.child(own, name))
    }
    if (node?.kind === Kind.file) {
      const extents = await asked(() => filesystem.extents(own)) ?? []
      const bytes = Buffer.alloc(Math.min(READ_BYTES_MAX, node.sizeBytes))
      await asked(() => filesystem.read(own, bytes, 0))
      await asked(() => filesystem.read(own, bytes.subarray(0, 4096), Math.max(0, node.sizeBytes - 4096)))
      for (const { fileOffset } of extents.slice(0, 4)) await asked(() => filesystem.read(own, bytes.subarray(0, Math.min(bytes.length, 4096, node.sizeBytes - fileOffset)), fileOffset))
    }
  }
  if ('unused' in filesystem) {
    await asked(async () => {
      for await (const { length } of (filesystem as VolumeFilesystem).unused()) if (length < 1) throw new Error('an empty range is unused')
    })
  }
  return counts
}
