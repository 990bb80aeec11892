/**
 * The thread of a CacheFiller: reads the chunks that are wanted from the packs. What it cannot read it leaves to whoever asks for it.
 */
import { BroadcastChannel, workerData } from 'node:worker_threads'
import { digestToHex } from '../chunk/digest.ts'
import { isVarveError } from '../errors.ts'
import { PackStore } from '../store/pack-store.ts'
import { ChunkCache, ChunkTickets } from './chunk-cache.ts'
import type { CacheFillerData, WantedChunks } from './cache-filler.ts'

const { packsDirectory, memory, thread } = workerData as CacheFillerData
const store = PackStore.open(packsDirectory)
const cache = new ChunkCache(memory, thread)
/** What could not be read lately, so that it is not tried for each reader again. */
const failed = new Set<string>()
const FAILED_MAX = 10_000

function fill({ digests, lengths }: WantedChunks): void {
  const tickets = new ChunkTickets(lengths.length)
  const bytes = new Uint8Array(digests.buffer, digests.byteOffset, digests.byteLength)
  for (let chunk = 0; chunk < lengths.length; chunk++) {
    let entry = cache.pin(digests, chunk, tickets)
    if (entry < 0) entry = read(digests, chunk, bytes.subarray(chunk * 32, chunk * 32 + 32), lengths[chunk], tickets)
    if (entry >= 0) cache.unpin(entry)
  }
}

function read(digests: Uint32Array, chunk: number, digest: Uint8Array, length: number, tickets: ChunkTickets): number {
  const room = cache.room(length)
  if (room < 0 || failed.has(digestToHex(digest))) return -1
  const into = cache.bytes.subarray(room, room + length)
  try {
    if (store.get(digest, { into }) === into) return cache.publish(digests, chunk, length, tickets)
  } catch (error) {
    if (!isVarveError(error)) throw error
  }
  if (failed.size === FAILED_MAX) failed.clear()
  failed.add(digestToHex(digest))
  return -1
}

new BroadcastChannel(memory.fillChannel!).onmessage = (event) => fill((event as unknown as { data: WantedChunks }).data)
