/**
 * $Secure: security descriptors, each once, by the ids that files give: the index $SII says where in the stream $SDS one stands.
 */
import { RecentlyUsed } from '../recently-used.ts'
import type { Content } from './content.ts'
import { ATTRIBUTE, RECORD, invalid, readUInt64 } from './format.ts'
import { IndexTree } from './index-tree.ts'
import type { Mft } from './mft.ts'

/** Hash, id, offset and length before each descriptor. */
const HEAD_BYTES = 20
export const DESCRIPTOR_BYTES_MAX = 64 << 10
const KEPT_MAX = 256

export class SecurityDescriptors {
  readonly #ids: IndexTree
  readonly #stream: Content
  readonly #kept = new RecentlyUsed<Buffer>(KEPT_MAX)

  private constructor(ids: IndexTree, stream: Content) {
    this.#ids = ids
    this.#stream = stream
  }

  /** @throws VarveError FORMAT_INVALID, LIMIT_EXCEEDED */
  static async open(mft: Mft): Promise<SecurityDescriptors> {
    const file = await mft.systemFile(RECORD.secure)
    const stream = await file.content(ATTRIBUTE.data, '$SDS')
    if (stream === undefined) throw invalid('$Secure has no descriptors')
    return new SecurityDescriptors(await IndexTree.open(file, '$SII'), stream)
  }

  /** Descriptor of an id, self-relative ([MS-DTYP] 2.4.6); undefined if there is none of that id. @throws VarveError FORMAT_INVALID */
  async get(id: number): Promise<Buffer | undefined> {
    const kept = this.#kept.get(id)
    if (kept !== undefined) return kept
    const descriptor = await this.#read(id)
    if (descriptor !== undefined) this.#kept.set(id, descriptor)
    return descriptor
  }

  async #read(id: number): Promise<Buffer | undefined> {
    const [entry] = await this.#ids.find((key) => (key.length < 4 ? -1 : id - key.readUInt32LE(0)))
    if (entry === undefined) return undefined
    const at = entry.bytes.readUInt16LE(0)
    if (at + HEAD_BYTES > entry.bytes.length) throw invalid(`the security descriptor ${id} is damaged`)
    const offset = readUInt64(entry.bytes, at + 8)
    const length = entry.bytes.readUInt32LE(at + 16) - HEAD_BYTES
    if (length < 0 || length > DESCRIPTOR_BYTES_MAX || offset + HEAD_BYTES + length > this.#stream.sizeBytes) throw invalid(`the security descriptor ${id} is damaged`)
    const bytes = Buffer.alloc(HEAD_BYTES + length)
    await this.#stream.read(bytes, offset)
    if (bytes.readUInt32LE(4) !== id) throw invalid(`the security descriptor ${id} is another`)
    return bytes.subarray(HEAD_BYTES)
  }
}
