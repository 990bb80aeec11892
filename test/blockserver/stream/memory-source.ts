/**
 * A small source of streams in memory: chunks, one disk, agents by their keys. Reads can be held up.
 */
import { generateKeyPairSync, type KeyObject, randomUUID } from 'node:crypto'
import { type Digest, digestOf, digestToHex } from '@varve/images/chunk/digest.ts'
import { VarveError } from '@varve/images/errors.ts'
import type { StoredChunk } from '@varve/images/store/pack-store.ts'
import type { StreamAgent, StreamDisk, StreamSource } from '@varve/blockserver/stream/source.ts'

export interface AgentKey {
  id: string
  privateKey: KeyObject
}

export class MemorySource implements StreamSource {
  readonly agents = new Map<string, StreamAgent>()
  /** By digest. */
  readonly chunks = new Map<string, Buffer>()
  /** Digests in the order in which they were read. */
  readonly read: string[] = []
  readonly boots: number[][] = []
  readonly heat: number[][] = []
  disksOpen = 0
  /** What reads wait for, and the recording of reports. */
  hold: Promise<unknown> | undefined
  holdReports: Promise<unknown> | undefined
  /** That were recorded at one time. */
  reportsMost = 0
  #reports = 0

  addAgent(): AgentKey {
    const { publicKey, privateKey } = generateKeyPairSync('ed25519')
    const id = randomUUID()
    this.agents.set(id, { id, publicKey: publicKey.export({ type: 'spki', format: 'der' }).subarray(-32) })
    return { id, privateKey }
  }

  /** Distinct chunks of this length. */
  addChunks(count: number, bytes: number): Digest[] {
    return Array.from({ length: count }, () => {
      const content = Buffer.alloc(bytes, this.chunks.size % 251)
      content.writeUInt32LE(this.chunks.size)
      const digest = digestOf(content)
      this.chunks.set(digestToHex(digest), content)
      return digest
    })
  }

  async agent(id: string): Promise<StreamAgent | undefined> {
    return this.agents.get(id)
  }

  async connected(): Promise<void> {}

  async openDisk(name: string): Promise<StreamDisk> {
    if (name !== 'desk') throw new VarveError('NOT_FOUND', `there is no CVD ${name}`)
    this.disksOpen++
    return {
      sizeBytes: 1 << 20,
      map: digestOf(Buffer.from(name)),
      chunkCount: 1000,
      snapshot: null,
      bootSet: null,
      order: digestOf(Buffer.from('order')),
      recordBoot: (numbers) => this.#record(() => this.boots.push([...numbers])),
      recordHeat: (numbers) => this.#record(() => this.heat.push([...numbers])),
      close: async () => void this.disksOpen--,
    }
  }

  async #record(record: () => void): Promise<void> {
    this.reportsMost = Math.max(this.reportsMost, ++this.#reports)
    await this.holdReports
    record()
    this.#reports--
  }

  async stored(digest: Digest): Promise<StoredChunk> {
    const hex = digestToHex(digest)
    this.read.push(hex)
    await this.hold
    const content = this.chunks.get(hex)
    if (content === undefined) throw new VarveError('CHUNK_MISSING', `chunk ${hex} is not in /secret/place`)
    return { codec: 'none', raw: content.length, payload: content }
  }
}
