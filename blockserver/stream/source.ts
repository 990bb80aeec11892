/**
 * What the stream server needs of the rest: agents, disks, chunks. tools/streaming/ has it for a home.
 */
import type { Digest } from '@varve/images/chunk/digest.ts'
import type { StoredChunk } from '@varve/images/store/pack-store.ts'

export interface StreamAgent {
  id: string
  /** Ed25519, raw. */
  publicKey: Uint8Array
}

export interface StreamSource {
  /** undefined: nobody has this id, or who has it was revoked. */
  agent(id: string): Promise<StreamAgent | undefined>

  /** An agent has proven its key. */
  connected(agent: StreamAgent): Promise<void>

  /**
   * What `name` shows now, kept until it is closed.
   * @param map that the agent goes on with: it is opened if it is still known, whatever the CVD shows by now
   * @param signal the agent has gone, or the server ends
   * @throws VarveError NOT_FOUND also if the agent may not open it
   */
  openDisk(name: string, options: { agent: StreamAgent; map?: Digest; signal: AbortSignal }): Promise<StreamDisk>

  /** @throws VarveError CHUNK_MISSING, CHUNK_CORRUPT */
  stored(digest: Digest): Promise<StoredChunk>
}

export interface StreamDisk {
  sizeBytes: number
  /** Object of the block map. */
  map: Digest
  /** Chunks that the map names; reports say their numbers. */
  chunkCount: number
  /** The snapshot that this is, as `CVD@SNAPSHOT`, if it is one. */
  snapshot: string | null
  /** Objects of chunk lists, if there are any: what a boot reads, and all in the order in which it is best fetched. */
  bootSet: Digest | null
  order: Digest | null
  /** @param numbers of chunks, each once, in the order of their first use */
  recordBoot(numbers: Uint32Array): Promise<void>
  /** @param numbers of chunks that were used since the last report, ascending */
  recordHeat(numbers: Uint32Array): Promise<void>
  close(): Promise<void>
}
