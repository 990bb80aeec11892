/**
 * DiskView: a disk as a boot set speaks of it: chunks of its block map on one side, files and named areas on the other.
 * Works from the map alone, whatever it was made by: composed, settled from a guest's writes, or imported.
 */
import { SPECIAL_MIN } from '@varve/images/blockmap/block-map.ts'
import type { BlockMap } from '@varve/images/blockmap/block-map.ts'
import { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { MapDevice } from '@varve/images/device/map-device.ts'
import { isVarveError } from '@varve/images/errors.ts'
import { openExt4 } from '@varve/images/filesystems/ext4/filesystem.ts'
import type { Ext4Filesystem } from '@varve/images/filesystems/ext4/filesystem.ts'
import type { FileNode } from '@varve/images/filesystems/filesystem.ts'
import { GPT_HEAD_BYTES, GPT_TAIL_BYTES } from '@varve/images/formats/gpt.ts'
import { SECTOR_BYTES } from '@varve/images/formats/mbr.ts'
import type { ChunkStore } from '@varve/images/store/chunk-store.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import { readVolumes } from '@varve/images/volumes/volume-table.ts'
import type { Volume, VolumeTable } from '@varve/images/volumes/volume-table.ts'

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

/** A part of a file or area that lies in one piece, `offset` bytes into it. */
export interface Piece extends Segment {
  offset: number
}

/** Where a file stands. */
export interface FilePlaces {
  /** Its inode, bytes from the start of the volume of the root filesystem. */
  inode: number
  /** Blocks that say where its content is or hold its attributes, bytes from the start of the disk. */
  metadata: number[]
  /** Its content, in order. */
  pieces: Piece[]
}

/** Names of the areas of each disk; those of partitions besides the root filesystem are `partition NAME`. */
export const AreaName = { table: 'partition table', backup: 'backup partition table', head: 'superblock', blockBitmaps: 'block bitmaps', inodeBitmaps: 'inode bitmaps', journal: 'journal' } as const

/** Metadata is read through a cache of its own, bytes. */
const CACHE_BYTES = 32 << 20
/** Links to links that are followed, at most. */
const LINK_HOPS_MAX = 40

/** A name with all that leads to it: the root first, itself last. */
export type Trail = readonly { path: string; node: FileNode }[]

export class DiskView {
  readonly map: BlockMap
  /** The root filesystem; undefined if the disk has none that can be read. What it says of places counts from the start of its volume. */
  readonly files: Ext4Filesystem | undefined
  readonly areas: readonly Area[]
  readonly #volume: Volume | undefined

  private constructor(map: BlockMap, areas: readonly Area[], root: Root | undefined) {
    this.map = map
    this.areas = areas
    this.files = root?.files
    this.#volume = root?.volume
  }

  /** @param store borrowed; read until the view is no longer used @throws VarveError CHUNK_MISSING, CHUNK_CORRUPT */
  static async open(map: BlockMap, store: ChunkStore): Promise<DiskView> {
    const table = await readVolumes(new MapDevice(map, store, ChunkCache.create({ bytesMax: CACHE_BYTES })))
    const root = await rootFilesystem(table.volumes)
    const areas = areasOfTable(table, map.sizeBytes)
    // What holds the root filesystem is named by that.
    for (const volume of table.volumes) {
      if (table.scheme !== 'none' && volume.type !== 'lvm' && (root === undefined || !holds(volume, root.volume))) areas.push({ name: `partition ${volume.label || volume.name}`, segments: segmentsOf(volume, 0, volume.view.sizeBytes) })
    }
    if (root !== undefined) areas.push(...(await areasOf(root)))
    return new DiskView(map, areas, root)
  }

  /** Where a range of the volume of the root filesystem lies on the disk. */
  onDisk(offset: number, length: number): Segment[] {
    return segmentsOf(this.#volume!, offset, length)
  }

  /** Where anything that has an inode stands. @throws VarveError FORMAT_INVALID, FORMAT_UNSUPPORTED, LIMIT_EXCEEDED */
  async placesOf(id: number): Promise<FilePlaces> {
    const { inode, xattrs, nodes, runs } = await this.files!.places(id)
    const metadata = (xattrs === undefined ? nodes : [...nodes, xattrs]).flatMap((start) => this.onDisk(start, 1).map((segment) => segment.start))
    const pieces: Piece[] = []
    for (const { fileOffset, diskOffset, length } of runs) {
      let offset = fileOffset
      for (const segment of this.onDisk(diskOffset, length)) {
        pieces.push({ ...segment, offset })
        offset += segment.length
      }
    }
    return { inode, metadata, pieces }
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
    const trail = [{ path: '', node: await this.files.node(this.files.root) }]
    for (const name of path.split('/')) {
      if (name === '') continue
      const parent = trail[trail.length - 1]
      if (parent.node.kind !== Kind.directory) return undefined
      const id = await this.files.child(parent.node.id, name)
      if (id === undefined) return undefined
      trail.push({ path: parent.path === '' ? name : `${parent.path}/${name}`, node: await this.files.node(id) })
    }
    return trail
  }

  /** What a path leads to, links followed, by its own path; undefined if it leads nowhere. @throws VarveError FORMAT_INVALID */
  async resolve(path: string): Promise<{ path: string; node: FileNode } | undefined> {
    if (this.files === undefined) return undefined
    const pending = path.split('/').reverse()
    const trail = [{ path: '', node: await this.files.node(this.files.root) }]
    for (let hops = 0; pending.length > 0; ) {
      const name = pending.pop()!
      if (name === '' || name === '.') continue
      if (name === '..') {
        if (trail.length > 1) trail.pop()
        continue
      }
      const parent = trail[trail.length - 1]
      if (parent.node.kind !== Kind.directory) return undefined
      const id = await this.files.child(parent.node.id, name)
      if (id === undefined) return undefined
      const node = await this.files.node(id)
      if (node.kind !== Kind.symlink) {
        trail.push({ path: parent.path === '' ? name : `${parent.path}/${name}`, node })
        continue
      }
      if (++hops > LINK_HOPS_MAX) return undefined
      const target = Buffer.from(await this.files.target(id)).toString('latin1')
      if (target.startsWith('/')) trail.length = 1
      pending.push(...target.split('/').reverse())
    }
    return trail[trail.length - 1]
  }
}

interface Root {
  volume: Volume
  files: Ext4Filesystem
}

function area(name: string, start: number, length: number): Area {
  return { name, segments: [{ start, length }] }
}

function segmentsOf({ view }: Volume, offset: number, length: number): Segment[] {
  return view.places(offset, length).map(({ diskOffset, length: count }) => ({ start: diskOffset, length: count }))
}

/** A partition is in one piece, and holds all of a logical volume, or it does not hold it alone. */
function holds({ segments: [outer] }: Volume, { segments }: Volume): boolean {
  return segments.some(({ diskOffset }) => diskOffset >= outer.diskOffset && diskOffset < outer.diskOffset + outer.length)
}

function areasOfTable({ scheme }: VolumeTable, diskBytes: number): Area[] {
  if (scheme === 'none') return []
  if (scheme === 'mbr') return [area(AreaName.table, 0, SECTOR_BYTES)]
  return [area(AreaName.table, 0, GPT_HEAD_BYTES), area(AreaName.backup, Math.max(0, diskBytes - GPT_TAIL_BYTES), Math.min(GPT_TAIL_BYTES, diskBytes))]
}

/** The largest volume that holds ext4. */
async function rootFilesystem(volumes: readonly Volume[]): Promise<Root | undefined> {
  for (const volume of volumes.toSorted((a, b) => b.view.sizeBytes - a.view.sizeBytes)) {
    const files = await unlessDamaged(() => openExt4(volume.view))
    // Undefined for another filesystem, or none.
    if (files !== undefined) return { volume, files }
  }
  return undefined
}

/** Those of bitmaps and journal are left out where they are damaged: the disk is one all the same. */
async function areasOf({ volume, files }: Root): Promise<Area[]> {
  const areas = [{ name: AreaName.head, segments: segmentsOf(volume, files.head.offset, files.head.length) }] as Area[]
  const bitmaps = await unlessDamaged(async () => files.bitmaps())
  if (bitmaps !== undefined) {
    areas.push({ name: AreaName.blockBitmaps, segments: bitmaps.blocks.flatMap((start) => segmentsOf(volume, start, files.blockBytes)) })
    areas.push({ name: AreaName.inodeBitmaps, segments: bitmaps.inodes.flatMap((start) => segmentsOf(volume, start, files.blockBytes)) })
  }
  const journal = await unlessDamaged(() => files.journal())
  if (journal !== undefined && journal.length > 0) areas.push({ name: AreaName.journal, segments: journal.flatMap(({ diskOffset, length }) => segmentsOf(volume, diskOffset, length)) })
  return areas
}

async function unlessDamaged<Result>(work: () => Promise<Result>): Promise<Result | undefined> {
  try {
    return await work()
  } catch (error) {
    if (!isVarveError(error, 'FORMAT_INVALID', 'FORMAT_UNSUPPORTED', 'LIMIT_EXCEEDED')) throw error
    return undefined
  }
}
