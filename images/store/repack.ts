/**
 * Repack: copies the chunks of packs to new packs, durably, moves the index over, and takes the old files away.
 * Every content is checked on the way. Stopped at any point it leaves a store in which every chunk is found.
 */
import { closeSync, openSync } from 'node:fs'
import { join } from 'node:path'
import type { Digest } from '../chunk/digest.ts'
import { Lease } from './lease.ts'
import { PackAppender } from './pack-appender.ts'
import { RECORD_BYTES_MAX, RECORD_HEADER_BYTES, packFileName } from './pack-format.ts'
import type { ChunkRow, PackIndex, PackRow } from './pack-index.ts'
import { syncPath } from './sync-path.ts'
import { contentProblem, readFully } from './pack-scan.ts'

/** Bytes that are copied before the old packs go: bounds the space that is needed. */
const BATCH_BYTES = 256 << 20

export interface RepackOptions {
  /** `keep`: a pack with a damaged chunk stays as it is. `drop`: its damaged chunks lose their rows, and it goes. */
  damaged: 'keep' | 'drop'
  /** Takes the file of a pack away. */
  retire: (pack: PackRow) => void
  signal?: AbortSignal
}

export interface RepackResult {
  retired: PackRow[]
  /** Packs that were kept because of damage. */
  kept: PackRow[]
  /** Chunks that lost their rows. */
  dropped: Digest[]
  bytesWritten: number
}

interface Move {
  from: ChunkRow
  to: ChunkRow
}

/** Nobody appends to `packs` any more, and the caller holds the lock of collection. */
export async function repack(directory: string, index: PackIndex, packs: PackRow[], options: RepackOptions): Promise<RepackResult> {
  const result: RepackResult = { retired: [], kept: [], dropped: [], bytesWritten: 0 }
  if (packs.length === 0) return result
  const rowsOf = rowsByPack(index, packs)
  const lease = Lease.take(directory, index)
  const appender = new PackAppender(directory, index, lease.id)
  try {
    let moves: Move[] = []
    let done: PackRow[] = []
    let batchBytes = 0
    const finishBatch = async () => {
      await switchRows(index, appender, moves)
      retirePacks(directory, index, done, options.retire)
      result.retired.push(...done)
      moves = []
      done = []
      batchBytes = 0
    }
    for (const pack of packs) {
      options.signal?.throwIfAborted()
      const { copied, damaged } = copyPack(directory, pack, rowsOf(pack), appender)
      batchBytes += copied.reduce((sum, { to }) => sum + RECORD_HEADER_BYTES + to.stored, 0)
      if (damaged.length > 0 && options.damaged === 'keep') {
        result.kept.push(pack)
        continue
      }
      dropRows(index, damaged)
      result.dropped.push(...damaged.map(({ digest }) => digest))
      moves.push(...copied)
      done.push(pack)
      if (batchBytes >= BATCH_BYTES) await finishBatch()
    }
    await finishBatch()
    result.bytesWritten = appender.bytesAppended
  } finally {
    try {
      await appender.close()
    } finally {
      lease.release()
    }
  }
  return result
}

/** Takes the files of packs away that hold no chunk, then their rows: so there is never a file that the index does not know. */
export function retirePacks(directory: string, index: PackIndex, packs: PackRow[], retire: (pack: PackRow) => void): void {
  if (packs.length === 0) return
  for (const pack of packs) retire(pack)
  syncPath(directory)
  index.transaction(() => {
    const remove = index.database.prepare('DELETE FROM packs WHERE pack = ?')
    for (const { pack } of packs) remove.run(pack)
  })
}

/** One pass over the index for all packs. */
function rowsByPack(index: PackIndex, packs: PackRow[]): (pack: PackRow) => ChunkRow[] {
  const { database } = index
  index.run(() => {
    database.exec('CREATE TEMP TABLE IF NOT EXISTS moved_packs (pack INTEGER PRIMARY KEY); DELETE FROM temp.moved_packs; DROP TABLE IF EXISTS temp.moved_chunks')
    const add = database.prepare('INSERT INTO temp.moved_packs VALUES (?)')
    for (const { pack } of packs) add.run(pack)
    database.exec(`CREATE TEMP TABLE moved_chunks AS SELECT digest, pack, offset, stored, raw, codec FROM main.chunks WHERE pack IN (SELECT pack FROM temp.moved_packs);
      CREATE INDEX temp.moved_order ON moved_chunks (pack, offset)`)
  })
  const select = database.prepare('SELECT digest, pack, offset, stored, raw, codec FROM temp.moved_chunks WHERE pack = ? ORDER BY offset')
  return ({ pack }) => {
    const rows = index.run(() => select.all(pack)) as (Omit<ChunkRow, 'codec'> & { codec: number })[]
    return rows.map((row) => ({ digest: row.digest, ...index.checkedPlace(row.pack, row.offset, row.stored, row.raw, row.codec) }))
  }
}

function copyPack(directory: string, pack: PackRow, rows: ChunkRow[], appender: PackAppender): { copied: Move[]; damaged: ChunkRow[] } {
  const copied: Move[] = []
  const damaged: ChunkRow[] = []
  const payload = Buffer.allocUnsafeSlow(RECORD_BYTES_MAX)
  let fd
  try {
    fd = openSync(join(directory, packFileName(pack.id)), 'r')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return { copied, damaged: rows }
    throw error
  }
  try {
    for (const from of rows) {
      const bytes = payload.subarray(0, from.stored)
      if (!readPayload(fd, bytes, from.offset + RECORD_HEADER_BYTES) || contentProblem(bytes, from) !== undefined) damaged.push(from)
      else copied.push({ from, to: appender.appendStored(from, bytes) })
    }
  } finally {
    closeSync(fd)
  }
  return { copied, damaged }
}

/** False where the file ends too early, or the disk cannot read it. */
function readPayload(fd: number, target: Uint8Array, position: number): boolean {
  try {
    readFully(fd, target, position)
    return true
  } catch {
    return false
  }
}

/** The copies are durable before any row names them. A row that a writer has replaced meanwhile stays as that writer left it. */
async function switchRows(index: PackIndex, appender: PackAppender, moves: Move[]): Promise<void> {
  const packs = await appender.sync()
  index.transaction(() => {
    const move = index.database.prepare('UPDATE chunks SET pack = ?, offset = ? WHERE digest = ? AND pack = ? AND offset = ?')
    for (const { from, to } of moves) move.run(to.pack, to.offset, from.digest, from.pack, from.offset)
    const grow = index.database.prepare('UPDATE packs SET bytes = max(bytes, ?) WHERE pack = ?')
    for (const { pack, bytes } of packs) grow.run(bytes, pack)
  })
  appender.committed(packs)
}

/** Removes the rows of chunks whose content is lost, so that the next writer stores them anew. */
export function dropRows(index: PackIndex, rows: ChunkRow[]): void {
  if (rows.length === 0) return
  index.transaction(() => {
    const drop = index.database.prepare('DELETE FROM chunks WHERE digest = ? AND pack = ? AND offset = ?')
    for (const { digest, pack, offset } of rows) drop.run(digest, pack, offset)
  })
}

