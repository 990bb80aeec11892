/**
 * DiskView: a disk as a boot set speaks of it: chunks of its block map on one side, files and named areas on the other.
 * Works from the map alone, whatever it was made by: composed, settled from a guest's writes, or imported.
 */
import { SPECIAL_MIN } from '@varve/images/blockmap/block-map.ts'
import type { BlockMap } from '@varve/images/blockmap/block-map.ts'
import { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { MapDevice } from '@varve/images/device/map-device.ts'
import { isVarveError } from '@varve/images/errors.ts'
import { Ext4Reader } from '@varve/images/filesystems/ext4/reader.ts'
import type { Ext4Inode } from '@varve/images/filesystems/ext4/reader.ts'
import { ROOT_INODE } from '@varve/images/filesystems/ext4/format.ts'
import { GPT_HEAD_BYTES, GPT_TAIL_BYTES, readGpt } from '@varve/images/formats/gpt.ts'
import type { FoundPartition } from '@varve/images/formats/gpt.ts'
import type { ChunkStore } from '@varve/images/store/chunk-store.ts'
import { Kind } from '@varve/images/tree/tree.ts'

/** A part of the disk that has no path, such as `partition efi`; offsets go through its segments in order. */
export interface Area {
  name: string
  segments: readonly Segment[]
}

/** Bytes from the start of the disk. */
export interface Segment {
  start: number
  length: number
}

/** Names of the areas of each disk; those of partitions besides the root filesystem are `partition NAME`. */
export const AreaName = { table: 'partition table', backup: 'backup partition table', head: 'superblock', blockBitmaps: 'block bitmaps', inodeBitmaps: 'inode bitmaps', journal: 'journal' } as const

/** Metadata is read through a cache of its own, bytes. */
const CACHE_BYTES = 32 << 20
/** Links to links that are followed, at most. */
const LINK_HOPS_MAX = 40

/** A name with all that leads to it: the root first, itself last. */
export type Trail = readonly { path: string; inode: Ext4Inode }[]

export class DiskView {
  readonly map: BlockMap
  /** The root filesystem; undefined if the disk has none that can be read. */
  readonly files: Ext4Reader | undefined
  readonly areas: readonly Area[]

  private constructor(map: BlockMap, files: Ext4Reader | undefined, areas: readonly Area[]) {
    this.map = map
    this.files = files
    this.areas = areas
  }

  /** @param store borrowed; read until the view is no longer used @throws VarveError CHUNK_MISSING, CHUNK_CORRUPT */
  static async open(map: BlockMap, store: ChunkStore): Promise<DiskView> {
    const device = new MapDevice(map, store, ChunkCache.create({ bytesMax: CACHE_BYTES }))
    const head = Buffer.alloc(Math.min(GPT_HEAD_BYTES, map.sizeBytes))
    await device.read(head, 0)
    const partitions = readGpt(head, map.sizeBytes)
    const found = await rootFilesystem(device, partitions ?? [{ typeGuid: '', name: '', firstByte: 0, byteLength: map.sizeBytes }])
    const areas: Area[] = []
    if (partitions !== undefined) {
      areas.push(area(AreaName.table, 0, GPT_HEAD_BYTES), area(AreaName.backup, Math.max(0, map.sizeBytes - GPT_TAIL_BYTES), Math.min(GPT_TAIL_BYTES, map.sizeBytes)))
      for (const partition of partitions) if (partition !== found?.partition) areas.push(area(`partition ${partition.name}`, partition.firstByte, partition.byteLength))
    }
    if (found !== undefined) areas.push(...(await areasOf(found.files)))
    return new DiskView(map, found?.files, areas)
  }

  /** Calls `visit` for each extent of data in a range: its chunk, where it begins in the range, and how long it is there. */
  forEachChunk(start: number, length: number, visit: (chunk: number, offset: number, length: number) => void): void {
    const { starts, refs } = this.map
    if (length <= 0) return
    for (let index = this.map.indexAt(start); index < starts.length && starts[index] < start + length; index++) {
      if (refs[index] >= SPECIAL_MIN) continue
      const offset = Math.max(0, starts[index] - start)
      visit(refs[index], offset, Math.min(this.map.endOf(index) - start, length) - offset)
    }
  }

  /** Where an area of the disk lies; nothing if it has none of this name. */
  segmentsOf(areaName: string): readonly Segment[] {
    return this.areas.find(({ name }) => name === areaName)?.segments ?? []
  }

  /** All that leads to a path, links not followed; undefined if there is no such name. @throws VarveError FORMAT_INVALID if the filesystem is damaged there */
  async trail(path: string): Promise<Trail | undefined> {
    if (this.files === undefined) return undefined
    const trail = [{ path: '', inode: await this.files.inode(ROOT_INODE) }]
    for (const name of path.split('/')) {
      if (name === '') continue
      const parent = trail[trail.length - 1]
      if (parent.inode.kind !== Kind.directory) return undefined
      const number = await this.files.child(parent.inode, name)
      if (number === undefined) return undefined
      trail.push({ path: parent.path === '' ? name : `${parent.path}/${name}`, inode: await this.files.inode(number) })
    }
    return trail
  }

  /** What a path leads to, links followed, by its own path; undefined if it leads nowhere. @throws VarveError FORMAT_INVALID */
  async resolve(path: string): Promise<{ path: string; inode: Ext4Inode } | undefined> {
    if (this.files === undefined) return undefined
    const pending = path.split('/').reverse()
    const trail = [{ path: '', inode: await this.files.inode(ROOT_INODE) }]
    for (let hops = 0; pending.length > 0; ) {
      const name = pending.pop()!
      if (name === '' || name === '.') continue
      if (name === '..') {
        if (trail.length > 1) trail.pop()
        continue
      }
      const parent = trail[trail.length - 1]
      if (parent.inode.kind !== Kind.directory) return undefined
      const number = await this.files.child(parent.inode, name)
      if (number === undefined) return undefined
      const inode = await this.files.inode(number)
      if (inode.kind !== Kind.symlink) {
        trail.push({ path: parent.path === '' ? name : `${parent.path}/${name}`, inode })
        continue
      }
      if (++hops > LINK_HOPS_MAX) return undefined
      const target = await this.files.target(inode)
      if (target.startsWith('/')) trail.length = 1
      pending.push(...target.split('/').reverse())
    }
    return trail[trail.length - 1]
  }
}

function area(name: string, start: number, length: number): Area {
  return { name, segments: [{ start, length }] }
}

/** The largest partition that holds ext4. */
async function rootFilesystem(device: MapDevice, partitions: readonly FoundPartition[]): Promise<{ partition: FoundPartition; files: Ext4Reader } | undefined> {
  for (const partition of partitions.toSorted((a, b) => b.byteLength - a.byteLength)) {
    try {
      return { partition, files: await Ext4Reader.open(device, partition.firstByte) }
    } catch (error) {
      // Another filesystem, or none.
      if (!isVarveError(error, 'FORMAT_INVALID', 'FORMAT_UNSUPPORTED', 'LIMIT_EXCEEDED')) throw error
    }
  }
  return undefined
}

async function areasOf(files: Ext4Reader): Promise<Area[]> {
  const areas = [
    area(AreaName.head, files.start, files.headBytes),
    { name: AreaName.blockBitmaps, segments: files.groups.map(({ blockBitmap }) => ({ start: blockBitmap, length: files.blockBytes })) },
    { name: AreaName.inodeBitmaps, segments: files.groups.map(({ inodeBitmap }) => ({ start: inodeBitmap, length: files.blockBytes })) },
  ]
  return [...areas, ...await journalOf(files)]
}

/** None if it is damaged, or has no extents, as where ext3 became ext4: the disk is one all the same. */
async function journalOf(files: Ext4Reader): Promise<Area[]> {
  if (files.journalInode === 0) return []
  try {
    const { runs } = await files.blocks(await files.inode(files.journalInode))
    return [{ name: AreaName.journal, segments: runs.map(({ diskOffset, length }) => ({ start: diskOffset, length })) }]
  } catch (error) {
    if (!isVarveError(error, 'FORMAT_INVALID', 'FORMAT_UNSUPPORTED', 'LIMIT_EXCEEDED')) throw error
    return []
  }
}
