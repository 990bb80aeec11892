/**
 * A thread that reads chunks through a shared cache as fast as it can, and checks every byte that it finds there. Ends when it is killed,
 * or when the shared word `[0]` is set. Words: [0] stop, [1 + thread] rounds, [1 + threads + thread] hits.
 */
import { workerData } from 'node:worker_threads'
import { ChunkCache, ChunkTickets } from '@varve/images/device/chunk-cache.ts'
import type { ChunkCacheMemory } from '@varve/images/device/chunk-cache.ts'
import { Random } from '../../random.ts'

export interface CacheThreadData {
  memory: ChunkCacheMemory
  thread: number
  seed: number
  chunks: number
  state: Int32Array
  /** Bytes of each chunk. */
  lengths: Uint32Array
  /** Eight words a chunk. */
  digests: Uint32Array
}

const { memory, thread, seed, chunks, state, lengths, digests } = workerData as CacheThreadData
const cache = new ChunkCache(memory, thread)
const tickets = new ChunkTickets(chunks)
const random = new Random(seed)

/** Every word of a chunk's content says which chunk, and where. */
function contentOf(chunk: number, word: number): number {
  return (chunk * 2654435761 + word) >>> 0
}

function words(position: number, length: number): Uint32Array {
  return new Uint32Array(cache.bytes.buffer, position, length / 4)
}

while (Atomics.load(state, 0) === 0) {
  // Some chunks are wanted much more often than others.
  const chunk = Math.min(random.below(chunks), random.below(chunks), random.below(chunks))
  let entry = cache.pin(digests, chunk, tickets)
  if (entry < 0) {
    const position = cache.room(lengths[chunk])
    if (position < 0) continue
    const content = words(position, lengths[chunk])
    for (let word = 0; word < content.length; word++) content[word] = contentOf(chunk, word)
    entry = cache.publish(digests, chunk, lengths[chunk], tickets)
  }
  if (cache.lengthOf(entry) !== lengths[chunk]) throw new Error(`chunk ${chunk} has ${cache.lengthOf(entry)} bytes`)
  const content = words(cache.positionOf(entry), lengths[chunk])
  for (let word = 0; word < content.length; word++) {
    if (content[word] !== contentOf(chunk, word)) throw new Error(`chunk ${chunk} is wrong at word ${word}: ${content[word]}`)
  }
  cache.unpin(entry)
  state[1 + thread]++
  state[1 + memory.threads + thread] = cache.figures.hits
}
