/**
 * Boot lists: what an agent is to fetch of a disk, and in which order; and what boots and reads teach about it. The stream (blockserver/stream)
 * carries these lists and reports, the served exports (../exports.ts) report too.
 */
import { Worker } from 'node:worker_threads'
import { DiskView } from '@varve/composer/bootset/disk-view.ts'
import { placeChunks } from '@varve/composer/bootset/place-chunks.ts'
import { guessBootSet } from '@varve/composer/bootset/static-guess.ts'
import { BOOT_SET_KIND, bootSetOf, cvdKey, layerKey, learnBoot, stackKey } from '@varve/composer/bootset/stored-boot-sets.ts'
import type { BootStack } from '@varve/composer/bootset/stored-boot-sets.ts'
import { translateBootSet } from '@varve/composer/bootset/translate.ts'
import type { BlockMap } from '@varve/images/blockmap/block-map.ts'
import { encodeChunkList } from '@varve/images/chunk/chunk-list.ts'
import { DIGEST_BYTES } from '@varve/images/chunk/digest.ts'
import type { Digest } from '@varve/images/chunk/digest.ts'
import { Heat } from '@varve/images/chunk/heat.ts'
import { isVarveError } from '@varve/images/errors.ts'
import type { Home } from '@varve/images/store/home.ts'
import { parseCvdName } from '@varve/images/store/names.ts'
import { getObject, putObject } from '@varve/images/store/object.ts'
import { readMap } from '../settlement.ts'

export interface BootLists {
  /** Object: the chunk list of what a boot reads, in order; null for a disk of which nothing is known and nothing can be guessed. */
  bootSet: Digest | null
  /** Object: the chunk list of all others that are known to be used, hottest first; null if none is. The rest follows in disk order. */
  order: Digest | null
}

/** Kind of the catalog's objects; keys are `cvd ID` and `fleet`. */
export const HEAT_KIND = 'heat'
const FLEET = 'fleet'
/** What others use says so much less than what this CVD uses. */
const FLEET_WEIGHT = 0.1

/** A boot of fewer chunks, or of a larger share of the disk, is none: somebody looked at the disk, or copied it. */
export const BOOT_CHUNKS_MIN = 64
const BOOT_SHARE_MAX = 0.5
/** Of a small disk, a boot may read all. */
const SMALL_CHUNKS = 1024

/** True if what was read looks like a boot. @param chunks how many of the map's were used */
export function isBoot(map: BlockMap, chunks: number): boolean {
  return chunks >= BOOT_CHUNKS_MIN && (map.chunkCount <= SMALL_CHUNKS || chunks <= map.chunkCount * BOOT_SHARE_MAX)
}

/**
 * Learns from a boot, in a thread of its own: a disk of many files takes a while to be looked through.
 * @param mapDigest of the disk
 * @param chunkNumbers in its map, in the order of their first use; those that the map does not have do not count
 * @returns false if the disk is no CVD's, or it was no boot: nothing is learned then
 * @throws VarveError CHUNK_MISSING, CHUNK_CORRUPT, FORMAT_INVALID
 */
export async function recordBoot(home: Home, mapDigest: Digest, chunkNumbers: ArrayLike<number>): Promise<boolean> {
  const workerData: BootReport = { directory: home.directory, mapDigest: Uint8Array.from(mapDigest), chunks: Uint32Array.from(chunkNumbers) }
  const worker = new Worker(new URL(import.meta.resolve('./boot-report-thread.ts')), { workerData, name: 'boot-report' })
  return new Promise((resolve, reject) => {
    worker.once('message', (answer: boolean) => resolve(answer))
    worker.once('error', reject)
    worker.once('exit', (status) => reject(new Error(`the thread that learns from a boot ended with ${status}`)))
  })
}

/** What the thread is told. */
export interface BootReport {
  /** Of the home. */
  directory: string
  mapDigest: Uint8Array
  chunks: Uint32Array
}

/** In the calling thread, as `recordBoot`. */
export async function learnFromReport(home: Home, { mapDigest, chunks }: Omit<BootReport, 'directory'>): Promise<boolean> {
  using _lease = home.store.lease()
  const stack = await home.catalog.stackOfMap(mapDigest)
  if (stack === undefined) return false
  const map = await readMap(home, mapDigest)
  const known = Uint32Array.from(new Set([...chunks].filter((chunk) => chunk < map.chunkCount)))
  if (!isBoot(map, known.length)) return false
  const view = await DiskView.open(map, home.store)
  await learnBoot(stack, await placeChunks(view, known), home)
  return true
}

/**
 * Adds to what is known of how often chunks are used: by this CVD, if the disk is one's, and by all.
 * @param chunks numbers of the map's that were used since the last report: how often does not matter, since a machine keeps what it has read
 */
export async function recordHeat(home: Home, mapDigest: Digest, chunks: Uint32Array): Promise<void> {
  using _lease = home.store.lease()
  const stack = await home.catalog.stackOfMap(mapDigest)
  if (stack === undefined || chunks.length === 0) return
  const map = await readMap(home, mapDigest)
  const found = [...chunks].filter((chunk) => chunk < map.chunkCount).map((chunk) => map.chunkDigest(chunk))
  const now = Date.now()
  for (const key of [...(stack.cvd === undefined ? [] : [cvdKey(stack.cvd.id)]), FLEET]) await addHeat(home, key, found, now)
}

async function addHeat(home: Home, key: string, used: readonly Digest[], now: number): Promise<void> {
  for (;;) {
    const before = await home.catalog.object(HEAT_KIND, key)
    await using writer = home.store.writer()
    const digest = putObject(writer, (await readHeat(home, before)).with(used, now).encode())
    await writer.commit()
    if (await home.catalog.replaceObject(HEAT_KIND, key, { before, digest })) return
  }
}

/** None if it is lost: it comes again. */
async function readHeat(home: Home, digest: Digest | undefined): Promise<Heat> {
  if (digest === undefined) return Heat.none
  try {
    return Heat.decode(await getObject(home.store, digest))
  } catch (error) {
    if (isVarveError(error)) return Heat.none
    throw error
  }
}

/**
 * The lists for one disk: what was learned, else a guess. They are stored, and nothing but the caller's lease, which must be older, keeps them.
 * Takes some ten milliseconds, on the calling thread.
 * @param cvdName `CVD` or `CVD@SNAPSHOT`, whose disk the map is
 * @throws VarveError CHUNK_MISSING, CHUNK_CORRUPT, FORMAT_INVALID, NOT_FOUND
 */
export async function bootListsOf(home: Home, mapDigest: Digest, cvdName: string): Promise<BootLists> {
  const cvd = await home.catalog.cvd(parseCvdName(cvdName).cvd)
  const stack: BootStack = { layers: (await home.catalog.stackOfMap(mapDigest))?.layers ?? cvd.layers, cvd }
  const view = await DiskView.open(await readMap(home, mapDigest), home.store)
  const chunks = await bootChunks(home, stack, view)
  const order = await hotChunks(home, cvd.id, view.map, chunks)
  await using writer = home.store.writer()
  const put = (numbers: Uint32Array): Digest => putObject(writer, encodeChunkList(digestsOf(view.map, numbers)))
  const lists: BootLists = { bootSet: chunks.length === 0 ? null : put(chunks), order: order.length === 0 ? null : put(order) }
  await writer.commit()
  return lists
}

/** What was learned of a disk; then, where layers have not been in a boot yet, what can be guessed. */
async function bootChunks(home: Home, stack: BootStack, view: DiskView): Promise<Uint32Array> {
  const { set, complete } = await bootSetOf(stack, home)
  const learned = await translateBootSet(set, view)
  if (complete && learned.length > 0) return learned
  return Uint32Array.from(new Set([...learned, ...(await translateBootSet(await guessBootSet(view), view))]))
}

/** Chunks of the map that have been used, but for those of the boot set: hottest first. */
async function hotChunks(home: Home, cvdId: string, map: BlockMap, bootSet: Uint32Array): Promise<Uint32Array> {
  const own = await readHeat(home, await home.catalog.object(HEAT_KIND, cvdKey(cvdId)))
  const fleet = await readHeat(home, await home.catalog.object(HEAT_KIND, FLEET))
  if (own.values.size + fleet.values.size === 0) return new Uint32Array()
  const now = Math.max(own.timeMs, fleet.timeMs)
  const [ownNow, fleetNow] = [own.with([], now), fleet.with([], now)]
  const inBootSet = new Set(bootSet)
  const hot: { chunk: number; heat: number }[] = []
  for (let chunk = 0; chunk < map.chunkCount; chunk++) {
    if (inBootSet.has(chunk)) continue
    const digest = map.chunkDigest(chunk)
    const heat = ownNow.of(digest) + fleetNow.of(digest) * FLEET_WEIGHT
    if (heat > 0) hot.push({ chunk, heat })
  }
  return Uint32Array.from(hot.sort((a, b) => b.heat - a.heat || a.chunk - b.chunk), ({ chunk }) => chunk)
}

/** Keeps no longer what was learned of layers and CVDs that are gone, and what disks are laid out by that no CVD and no snapshot is stacked like. */
export async function forgetLeftBootSets({ catalog }: Home): Promise<void> {
  const kept = new Set([FLEET])
  for (const { name } of await catalog.layers()) kept.add(layerKey(name))
  for (const cvd of await catalog.cvds()) {
    kept.add(cvdKey(cvd.id)).add(stackKey(cvd.layers.map(({ digest }) => digest)))
    for (const { layers } of await catalog.snapshots(cvd.name)) kept.add(stackKey(layers.map(({ digest }) => digest)))
  }
  for (const kind of [BOOT_SET_KIND, HEAT_KIND]) {
    for (const { key } of await catalog.objects(kind)) if (!kept.has(key)) await catalog.removeObject(kind, key)
  }
}

function digestsOf(map: BlockMap, chunks: Uint32Array): Uint8Array {
  const digests = new Uint8Array(chunks.length * DIGEST_BYTES)
  chunks.forEach((chunk, index) => digests.set(map.chunkDigest(chunk), index * DIGEST_BYTES))
  return digests
}
