/**
 * Import of a disk: its files become a tree, and the disk itself a block map whose data points into the chunks of those files.
 * The disk is read once, in its own order. What of it is kept, and what a later import of the same disk reads: docs/formats/import.md#disk
 */
import { BLOCK_BYTES } from '@varve/images/blockmap/block-cutter.ts'
import { BELOW, BlockMap, BlockMapBuilder, HOLE } from '@varve/images/blockmap/block-map.ts'
import { NO_RANGES, RangesBuilder, aligned, bytesOf, difference, intersection, touches, union, wholeDisk } from '@varve/images/blockmap/ranges.ts'
import type { Ranges } from '@varve/images/blockmap/ranges.ts'
import { sortedOrder } from '@varve/images/blockmap/sorted-order.ts'
import type { Digest } from '@varve/images/chunk/digest.ts'
import { CUT_BYTES_MAX, FIXED_BYTES } from '@varve/images/chunk/limits.ts'
import type { ReadableDisk } from '@varve/images/device/block-device.ts'
import { putObject } from '@varve/images/store/object.ts'
import { putTree } from '@varve/images/store/stored-tree.ts'
import type { StoredTree } from '@varve/images/store/stored-tree.ts'
import { HOLE as TREE_HOLE } from '@varve/images/tree/tree.ts'
import { REMOVED } from '@varve/images/tree/tree-builder.ts'
import type { TreeBuilder } from '@varve/images/tree/tree-builder.ts'
import { printPath } from '../../merge/print-path.ts'
import { FileContent, runsOf } from '../file-content.ts'
import type { DataPart } from '../file-content.ts'
import { workspace } from '../import-context.ts'
import type { ImportContext } from '../import-context.ts'
import { IN_PLACE_MAGIC_BYTES, isUpdatedInPlace } from '../in-place-formats.ts'
import { DiskContent } from './disk-content.ts'
import { NOWHERE } from './disk-files.ts'
import type { DiskFiles, DiskPart } from './disk-files.ts'
import { KnownFiles } from './known-files.ts'
import { ifReadable, openVolumes, volumeText } from './open-volumes.ts'
import type { DiskProblem, MountedVolume } from './open-volumes.ts'
import { scanVolumes } from './scan-volumes.ts'
import { wholeChunks } from './whole-chunks.ts'

/** Extents of the disk that are asked for at a time. */
const EXTENTS_AT_ONCE = 8192
/** So much may have changed that starting workers takes longer than what they would do, bytes. */
const IN_THREAD_BYTES_MAX = 64 << 20
/** What follows a file and is no longer than this is read with it, bytes. */
const SLACK_BYTES_MAX = FIXED_BYTES

export interface DiskBase {
  /** Of an earlier import of the same disk. */
  map: BlockMap
  digest: Digest
  /** What may have changed since; undefined if nobody knows. */
  changed?: Ranges
}

export interface ImportDiskOptions {
  /** Borrowed; nobody writes to it meanwhile. */
  disk: ReadableDisk
  base?: DiskBase
  /** Keeps the content of free space. */
  keepFree?: boolean
  /** Reads all files, also those whose inodes are as they were. */
  reread?: boolean
}

export interface ImportedDisk {
  /** Undefined if there is no filesystem. */
  tree: StoredTree | undefined
  map: BlockMap
  mapDigest: Digest
  /** Files that were not read. */
  filesUnchanged: number
  /** Bytes of the disk that were read for their content; that of metadata comes on top. */
  bytesRead: number
  /** What is not in the tree; the first of it. */
  problems: DiskProblem[]
  leftOut: number
  /** Of KnownFiles: to be written when the map is durable. */
  known: Buffer
}

/** @throws VarveError LIMIT_EXCEEDED, and what the disk's `read` throws */
export async function importDisk(context: ImportContext, options: ImportDiskOptions): Promise<ImportedDisk> {
  using space = workspace(context)
  const { disk, base, reread = false, keepFree = false } = options
  const { volumes, problems } = await openVolumes(disk)
  const { cacheDirectory: directory } = context
  const before = directory === undefined || base === undefined || base.changed !== undefined || reread ? undefined : { directory, map: base.digest }
  const known = new KnownFiles(volumes, space, before)
  const { builder, files, leftOut } = await scanVolumes(context, { volumes, problems, space, known })
  const free = keepFree ? NO_RANGES : await unusedRanges(volumes, problems)
  const work = new DiskImport(context, { disk, base, volumes, known, builder, files, free })
  await work.run()
  work.removeUnreadable(problems)
  const map = work.map()
  files.clear()
  const tree = volumes.length === 0 ? undefined : putTree(context.writer, builder)
  const { filesUnchanged, bytesRead, unreadable } = work
  return { tree, map, mapDigest: putObject(context.writer, map.encode()), filesUnchanged, bytesRead, problems, leftOut: leftOut + unreadable, known: known.encode() }
}

/** What no volume uses. A filesystem that was not unmounted cleanly is believed only if its journal was replayed. */
async function unusedRanges(volumes: readonly MountedVolume[], problems: DiskProblem[]): Promise<Ranges> {
  const free = new RangesBuilder()
  for (const { name, filesystem, view } of volumes) {
    if (filesystem.unclean && !filesystem.type.startsWith('ext')) continue
    const ofVolume = new RangesBuilder()
    const whole = await ifReadable(volumeText(name), problems, async () => {
      for await (const { offset, length } of filesystem.unused()) for (const place of view.places(offset, length)) ofVolume.add(place.diskOffset, place.length)
      return true
    })
    if (whole === true) free.addAll(ofVolume.build())
  }
  return free.build()
}

interface DiskImportParts {
  disk: ReadableDisk
  base: DiskBase | undefined
  volumes: readonly MountedVolume[]
  known: KnownFiles
  builder: TreeBuilder
  files: DiskFiles
  free: Ranges
}

class DiskImport {
  filesUnchanged = 0
  bytesRead = 0
  readonly #context: ImportContext
  readonly #parts: DiskImportParts
  readonly #content: DiskContent
  readonly #builder: BlockMapBuilder
  /** Of the size of the disk as it is now. */
  readonly #below: BlockMap | undefined
  /** With a list of changes. */
  readonly #changed: Ranges | undefined
  /** The windows in which some of it is: what is no file's is cut again window by window, as it is without a list. */
  readonly #windows: Ranges | undefined
  /** What is no file's, and is to be stored. */
  readonly #rest: Ranges
  /** What is no file's, and is zero since the disk holds nothing there. */
  readonly #blank: Ranges
  /** By range of #rest: it was read with a file, or stays as it is below. */
  readonly #restDone: Uint8Array
  /** What stays as it is below. */
  readonly #kept = new RangesBuilder()
  /** What the map says something about. */
  readonly #read = new RangesBuilder()

  constructor(context: ImportContext, parts: DiskImportParts) {
    const { disk, base, builder, files, free } = parts
    this.#context = context
    this.#parts = parts
    this.#below = base === undefined ? undefined : BlockMap.resized(base.map, disk.sizeBytes)
    this.#builder = new BlockMapBuilder(disk.sizeBytes, { unmentioned: base === undefined ? HOLE : BELOW })
    this.#content = new DiskContent(context, { disk, builder, map: this.#builder })
    const rest = difference(difference(wholeDisk(disk.sizeBytes), files.claim()), free)
    const data = aligned(dataRanges(disk), BLOCK_BYTES, disk.sizeBytes)
    this.#changed = base?.changed === undefined ? undefined : changedNow(base, base.changed, disk.sizeBytes)
    // Where the map below has nothing, the disk may have had what nothing used then.
    this.#windows = this.#changed && aligned(union(this.#changed, intersection(rest, holesOf(this.#below!))), FIXED_BYTES, disk.sizeBytes)
    const wanted = this.#windows === undefined ? rest : intersection(rest, this.#windows)
    this.#rest = intersection(wanted, data)
    this.#blank = difference(wanted, data)
    this.#restDone = new Uint8Array(this.#rest.length / 2)
  }

  /** Has everything stored, in the order of the disk: files by where they begin. */
  async run(): Promise<void> {
    const { files } = this.#parts
    const rest = this.#rest
    const starts = new Float64Array(files.count + rest.length / 2)
    for (let file = 0; file < files.count; file++) starts[file] = Math.max(0, files.startOf(file))
    for (let at = 0; at < rest.length; at += 2) starts[files.count + at / 2] = rest[at]
    const { now } = this.#context.progress
    now.filesTotal = files.count
    now.bytesTotal = bytesOf(rest) + files.dataBytes
    if (this.#changed !== undefined && bytesOf(this.#changed) <= IN_THREAD_BYTES_MAX) this.#context.pipeline.stayInThread()
    for (const item of sortedOrder(starts)) {
      if (item < files.count) {
        if (!this.#keepWhole(item)) await this.#addFile(item)
      } else if (this.#restDone[item - files.count] === 0) {
        await this.#addRest(item - files.count)
      }
    }
    await this.#content.drain()
    this.bytesRead = bytesOf(this.#read.build())
  }

  /** The disk as it is now. After `run`. */
  map(): BlockMap {
    const { disk, free } = this.#parts
    for (let at = 0; at < this.#blank.length; at += 2) this.#builder.zero(this.#blank[at], this.#blank[at + 1] - this.#blank[at])
    if (this.#below === undefined) return this.#builder.build()
    const said = union(union(this.#kept.build(), this.#read.build()), this.#blank)
    const toSay = this.#windows === undefined ? wholeDisk(disk.sizeBytes) : union(this.#windows, free)
    const holes = difference(toSay, said)
    for (let at = 0; at < holes.length; at += 2) this.#builder.hole(holes[at], holes[at + 1] - holes[at])
    return BlockMap.overlay(this.#below, this.#builder.build())
  }

  get unreadable(): number {
    return this.#content.unreadable.size
  }

  /** Files that could not be read go from the tree. */
  removeUnreadable(problems: DiskProblem[]): void {
    const { builder, files } = this.#parts
    if (this.unreadable === 0) return
    const inodes = new Map([...this.#content.unreadable].map(([file, problem]) => [files.inodes.values[file], problem]))
    for (let entry = 0; entry < builder.entryCount; entry++) {
      const problem = inodes.get(builder.inodeOf(entry))
      if (problem === undefined) continue
      problems.push({ where: printPath(builder.path(entry)), problem })
      builder.setInodeOf(entry, REMOVED)
    }
  }

  async #addRest(index: number): Promise<void> {
    const offset = this.#rest[2 * index]
    const length = this.#rest[2 * index + 1] - offset
    this.#read.add(offset, length)
    await this.#content.addRange(offset, length)
  }

  /** Most files are small, in one piece, and have not changed: they are dealt with at once. */
  #keepWhole(file: number): boolean {
    if (this.#below === undefined) return false
    const { files, builder } = this.#parts
    const part = files.onlyPart(file)
    if (part === undefined || part.length > CUT_BYTES_MAX) return false
    const parts = [part]
    const chunks = this.#chunksBelow(file, parts)
    if (chunks === undefined) return false
    this.#keep(parts)
    const pieces = this.#pieces(chunks)
    builder.setContent(files.inodes.values[file], pieces.chunks, pieces.bytes)
    this.#context.progress.add(0, part.length)
    this.filesUnchanged++
    return true
  }

  async #addFile(file: number): Promise<void> {
    const { files, builder, volumes } = this.#parts
    const inode = files.inodes.values[file]
    const sizeBytes = files.sizes.values[file]
    const data = files.dataParts(file)
    if (data.length === 0) {
      if (sizeBytes > 0) builder.setContent(inode, [TREE_HOLE], [sizeBytes])
      return
    }
    const { filesystem } = volumes[files.volumes.values[file]]
    const id = files.ids.values[file]
    const fixed = await this.#isFixed(file, data[0])
    const runs = [...runsOf(data, fixed)]
    const content = runs.length === 1 && data[0].length === sizeBytes ? undefined : new FileContent(builder, inode, sizeBytes)
    let isUnchanged = true
    for (const run of runs) {
      const parts = files.partsOf(file, run)
      const index = content?.addRun(run) ?? 0
      const chunks = this.#chunksBelow(file, parts)
      if (chunks !== undefined) {
        this.#keep(parts)
        const pieces = this.#pieces(chunks)
        if (content === undefined) builder.setContent(inode, pieces.chunks, pieces.bytes)
        else content.setRun(index, pieces)
        this.#context.progress.add(0, run.length)
        continue
      }
      isUnchanged = false
      for (const { diskOffset, length } of parts) if (diskOffset !== NOWHERE) this.#read.add(diskOffset, length)
      await this.#content.addRun({ file, inode, parts, length: run.length, fixed, content, index, filesystem, id, slackBytes: this.#takeSlack(parts) })
    }
    content?.planned()
    if (isUnchanged) this.filesUnchanged++
  }

  /** True if the file is to be cut at fixed places. */
  async #isFixed(file: number, { offset, length }: DataPart): Promise<boolean> {
    const { files, disk, volumes } = this.#parts
    if (offset !== 0 || length < IN_PLACE_MAGIC_BYTES || files.sizes.values[file] <= CUT_BYTES_MAX) return false
    const start = Buffer.alloc(IN_PLACE_MAGIC_BYTES)
    const [{ diskOffset, length: atOnce }] = files.partsOf(file, { offset, length: IN_PLACE_MAGIC_BYTES })
    if (diskOffset !== NOWHERE && atOnce === IN_PLACE_MAGIC_BYTES) {
      await disk.read(start, diskOffset)
      return isUpdatedInPlace(start)
    }
    const { filesystem } = volumes[files.volumes.values[file]]
    // If it cannot be read, reading it as a whole says so.
    await ifReadable('', [], () => filesystem.read(files.ids.values[file], start, 0))
    return isUpdatedInPlace(start)
  }

  /** Chunks of the map below that a run consists of, if it has not changed. */
  #chunksBelow(file: number, parts: readonly DiskPart[]): number[] | undefined {
    if (this.#below === undefined || parts.some(({ diskOffset, claimed }) => diskOffset === NOWHERE || claimed > 0)) return undefined
    const changed = this.#changed
    if (changed === undefined ? !this.#parts.known.has(file) : parts.some(({ diskOffset, length }) => touches(changed, diskOffset, length))) return undefined
    return wholeChunks(this.#below, parts)
  }

  #pieces(chunks: readonly number[]): { chunks: number[]; bytes: number[] } {
    const below = this.#below!
    const bytes = chunks.map((chunk) => below.chunkBytes[chunk])
    return { chunks: chunks.map((chunk, index) => this.#parts.builder.addChunk(below.chunkDigest(chunk), bytes[index])), bytes }
  }

  #keep(parts: readonly DiskPart[]): void {
    for (const { diskOffset, length } of parts) this.#kept.add(diskOffset, length)
    // Without a list, what follows the file is taken to be as it was, as the file is.
    if (this.#changed !== undefined) return
    const { diskOffset, length } = parts[parts.length - 1]
    this.#kept.add(diskOffset + length, this.#slack(parts)?.done() ?? 0)
  }

  /** What is to be stored of the bytes that follow a run, and is read with it. */
  #takeSlack(parts: readonly DiskPart[]): number {
    const slack = this.#slack(parts)
    if (slack === undefined) return 0
    const { diskOffset, length } = parts[parts.length - 1]
    this.#read.add(diskOffset + length, slack.length)
    return slack.done()
  }

  /** A short range of #rest that begins where a run ends. */
  #slack(parts: readonly DiskPart[]): { length: number; done: () => number } | undefined {
    const { diskOffset, length } = parts[parts.length - 1]
    if (diskOffset === NOWHERE) return undefined
    const end = diskOffset + length
    const rest = this.#rest
    let low = 0
    let high = rest.length / 2
    while (low < high) {
      const middle = (low + high) >>> 1
      if (rest[2 * middle] < end) low = middle + 1
      else high = middle
    }
    const slackBytes = rest[2 * low + 1] - rest[2 * low]
    if (2 * low >= rest.length || rest[2 * low] !== end || slackBytes > SLACK_BYTES_MAX || this.#restDone[low] === 1) return undefined
    const done = (): number => {
      this.#restDone[low] = 1
      return slackBytes
    }
    return { length: slackBytes, done }
  }
}

/** What the disk says that it holds. */
function dataRanges(disk: ReadableDisk): Ranges {
  if (disk.extents === undefined) return wholeDisk(disk.sizeBytes)
  const data = new RangesBuilder()
  for (let at = 0; at < disk.sizeBytes; ) {
    for (const { offset, length, type } of disk.extents(at, disk.sizeBytes - at, EXTENTS_AT_ONCE)) {
      if (type === 'data') data.add(offset, length)
      at = offset + length
    }
  }
  return data.build()
}

function holesOf(map: BlockMap): Ranges {
  const holes = new RangesBuilder()
  for (let index = 0; index < map.extentCount; index++) if (map.refs[index] === HOLE) holes.add(map.starts[index], map.endOf(index) - map.starts[index])
  return holes.build()
}

/** What changed, inside of the disk as it is now; what it has gained has changed. */
function changedNow({ map }: DiskBase, changed: Ranges, sizeBytes: number): Ranges {
  const all = new RangesBuilder()
  all.addAll(changed)
  all.add(map.sizeBytes, sizeBytes - map.sizeBytes)
  return intersection(all.build(), wholeDisk(sizeBytes))
}
