/**
 * Claim table: digests of chunks that one of the workers of an import has put, so that no other puts them again. A worker sees in the store
 * only what others have committed; without the table, what comes twice within a commit would be stored twice.
 *
 * In memory that the threads share, without locks. A digest that is found was claimed by somebody, since all its 32 bytes are compared;
 * one that is not found may have been claimed all the same (two writers of one slot, a table that is full), which costs space and nothing else.
 * Who relies on a claim relies on the whole import: the catalog names nothing of it before all workers have committed.
 */
import { DIGEST_BYTES } from '@varve/images/chunk/digest.ts'

/** A power of two. */
const SLOTS = 1 << 19
const SLOT_WORDS = DIGEST_BYTES / 4
const PROBES = 8

export class ClaimTable {
  /** For the other threads. */
  readonly memory: SharedArrayBuffer
  readonly #words: Int32Array

  /** @param memory of the table of another thread */
  constructor(memory = new SharedArrayBuffer(SLOTS * DIGEST_BYTES)) {
    this.memory = memory
    this.#words = new Int32Array(memory)
  }

  /** True if the chunk was claimed before; otherwise it is now. */
  claim(digest: Uint8Array): boolean {
    const first = word(digest, 0)
    // Marks a free slot.
    if (first === 0) return false
    let slot = 0
    for (let probe = 0; probe < PROBES; probe++) {
      slot = ((first + probe) & (SLOTS - 1)) * SLOT_WORDS
      const found = this.#words[slot]
      if (found === 0) break
      if (found === first && this.#holds(slot, digest)) return true
    }
    // The first word last: who finds it mostly finds the others, too.
    for (let index = SLOT_WORDS - 1; index >= 0; index--) this.#words[slot + index] = word(digest, index)
    return false
  }

  #holds(slot: number, digest: Uint8Array): boolean {
    for (let index = 1; index < SLOT_WORDS; index++) if (this.#words[slot + index] !== word(digest, index)) return false
    return true
  }
}

function word(digest: Uint8Array, index: number): number {
  const at = index * 4
  return digest[at] | (digest[at + 1] << 8) | (digest[at + 2] << 16) | (digest[at + 3] << 24)
}
