/**
 * Objects of a server: block maps and chunk lists, fetched whole, all of their pieces at once.
 */
import { digestToHex } from '@varve/images/chunk/digest.ts'
import type { Digest } from '@varve/images/chunk/digest.ts'
import { VarveError } from '@varve/images/errors.ts'
import { Priority } from '@varve/blockserver/stream/frames.ts'
import type { ChunkStore } from '@varve/images/store/chunk-store.ts'
import { getObject, objectChunks } from '@varve/images/store/object.ts'
import type { ChunkFetcher } from './chunk-fetcher.ts'

/** @throws VarveError FORMAT_INVALID, and what fetching throws */
export async function fetchObject(fetcher: ChunkFetcher, digest: Digest, signal?: AbortSignal): Promise<Uint8Array> {
  const held = new Map<string, Uint8Array>()
  const hold = async (digests: readonly Digest[]): Promise<void> => {
    await fetcher.want(digests, (index, content) => held.set(digestToHex(digests[index]), Uint8Array.from(content)), { priority: Priority.MISS, signal })
  }
  const store = { get: (wanted: Digest) => held.get(digestToHex(wanted)) ?? missing(wanted) } as Pick<ChunkStore, 'get'> as ChunkStore
  await hold([digest])
  const [, ...pieces] = await objectChunks(store, digest)
  await hold(pieces)
  return getObject(store, digest)
}

function missing(digest: Digest): never {
  throw new VarveError('CHUNK_MISSING', `chunk ${digestToHex(digest)} did not come`)
}
