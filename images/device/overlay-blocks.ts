/**
 * Where each block of an overlay lies, two bits a block, in leaves that exist only where something differs:
 * an untouched disk costs nothing, one that was trimmed whole a pointer per 64 MiB, a full one of 1 TiB 64 MiB.
 */
import { sortedOrder } from '../blockmap/sorted-order.ts'

/** Bytes of a block of an overlay. */
export const OVERLAY_BLOCK_BYTES = 4096

export const BlockState = {
  /** What lies below shows. */
  below: 0,
  /** In the overlay's data. */
  data: 1,
  /** Zeroes; whatever the overlay's data holds there is stale. */
  zero: 2,
} as const
export type BlockState = (typeof BlockState)[keyof typeof BlockState]

/** Blocks of a leaf; four to a byte. */
const LEAF_BLOCKS = 1 << 14
const LEAF_BYTES = LEAF_BLOCKS / 4
/** Shared leaves of one state; never written to. */
const UNIFORM: Uint8Array[] = [0x00, 0x55, 0xaa].map(byte => new Uint8Array(LEAF_BYTES).fill(byte))

export class OverlayBlocks {
  readonly blockCount: number
  readonly #leaves = new Map<number, Uint8Array>()
  #lastIndex = -1
  #lastLeaf: Uint8Array = UNIFORM[BlockState.below]

  constructor(blockCount: number) {
    this.blockCount = blockCount
  }

  get(block: number): BlockState {
    const within = block % LEAF_BLOCKS
    return stateIn(this.#leaf((block - within) / LEAF_BLOCKS), within)
  }

  /** @returns true if any of the blocks had another state */
  set(first: number, count: number, state: BlockState): boolean {
    let changed = false
    for (let at = first; at < first + count;) {
      const from = at % LEAF_BLOCKS
      const index = (at - from) / LEAF_BLOCKS
      const to = Math.min(LEAF_BLOCKS, from + first + count - at)
      const leaf = this.#leaf(index)
      at += to - from
      if (leaf === UNIFORM[state]) continue
      if (to - from === LEAF_BLOCKS) {
        this.#keep(index, UNIFORM[state])
        changed = true
      } else if (endOfRun(leaf, state, from, to) < to) {
        const own = UNIFORM.includes(leaf) ? leaf.slice() : leaf
        fill(own, from, to, state)
        if (own !== leaf) this.#keep(index, own)
        changed = true
      }
    }
    return changed
  }

  /** End of the run of blocks that have the same state as `block`, at most `end`. */
  runEnd(block: number, end: number): number {
    const state = this.get(block)
    for (let at = block; at < end;) {
      const from = at % LEAF_BLOCKS
      const to = Math.min(LEAF_BLOCKS, from + end - at)
      const leaf = this.#leaf((at - from) / LEAF_BLOCKS)
      const stop = leaf === UNIFORM[state] ? to : endOfRun(leaf, state, from, to)
      at += stop - from
      if (stop < to) return at
    }
    return end
  }

  /** True if one of the blocks `first .. end` has the state. */
  includes(first: number, end: number, state: BlockState): boolean {
    for (let at = first; at < end; at = this.runEnd(at, end)) if (this.get(at) === state) return true
    return false
  }

  /** Calls `visit` for each run of one state but `below` in the blocks `first .. end`, in order. */
  forRuns(first: number, end: number, visit: (first: number, count: number, state: BlockState) => void): void {
    for (let at = first; at < end;) {
      const state = this.get(at)
      const stop = this.runEnd(at, end)
      if (state !== BlockState.below) visit(at, stop - at, state)
      at = stop
    }
  }

  #leaf(index: number): Uint8Array {
    if (index !== this.#lastIndex) {
      this.#lastLeaf = this.#leaves.get(index) ?? UNIFORM[BlockState.below]
      this.#lastIndex = index
    }
    return this.#lastLeaf
  }

  #keep(index: number, leaf: Uint8Array): void {
    this.#leaves.set(index, leaf)
    this.#lastIndex = -1
  }
}

function stateIn(leaf: Uint8Array, within: number): BlockState {
  return ((leaf[within >>> 2] >>> ((within & 3) * 2)) & 3) as BlockState
}

/** First of the places `from .. to` of a leaf that has another state, or `to`. */
function endOfRun(leaf: Uint8Array, state: BlockState, from: number, to: number): number {
  const whole = UNIFORM[state][0]
  for (let at = from; at < to;) {
    if ((at & 3) === 0 && leaf[at >>> 2] === whole) {
      at += 4
    } else {
      if (stateIn(leaf, at) !== state) return at
      at++
    }
  }
  return to
}

function fill(leaf: Uint8Array, from: number, to: number, state: BlockState): void {
  for (let at = from; at < to;) {
    if ((at & 3) === 0 && at + 4 <= to) {
      const bytes = (to - at) >>> 2
      leaf.fill(UNIFORM[state][0], at >>> 2, (at >>> 2) + bytes)
      at += bytes * 4
    } else {
      const shift = (at & 3) * 2
      leaf[at >>> 2] = (leaf[at >>> 2] & ~(3 << shift)) | (state << shift)
      at++
    }
  }
}

/** Runs of blocks whose state changed since they were last written to the journal. */
export class ChangedRuns {
  #count = 0
  #firsts = new Float64Array(64)
  #counts = new Float64Array(64)

  get count(): number {
    return this.#count
  }

  add(first: number, count: number): void {
    const last = this.#count - 1
    if (last >= 0 && first >= this.#firsts[last] && first <= this.#firsts[last] + this.#counts[last]) {
      this.#counts[last] = Math.max(this.#counts[last], first + count - this.#firsts[last])
      return
    }
    if (this.#count === this.#firsts.length) this.#grow()
    this.#firsts[this.#count] = first
    this.#counts[this.#count++] = count
  }

  /** Takes the runs out, ordered, and those that touch made one: first block and end of each, alternating. */
  take(): Float64Array {
    const order = sortedOrder(this.#firsts.subarray(0, this.#count))
    const runs = new Float64Array(order.length * 2)
    let length = 0
    for (const index of order) {
      const first = this.#firsts[index]
      const end = first + this.#counts[index]
      if (length > 0 && first <= runs[length - 1]) {
        runs[length - 1] = Math.max(runs[length - 1], end)
      } else {
        runs[length++] = first
        runs[length++] = end
      }
    }
    this.#count = 0
    if (this.#firsts.length > 65_536) {
      this.#firsts = new Float64Array(64)
      this.#counts = new Float64Array(64)
    }
    return runs.subarray(0, length)
  }

  /** Puts back what `take` gave. */
  putBack(runs: Float64Array): void {
    for (let index = 0; index < runs.length; index += 2) this.add(runs[index], runs[index + 1] - runs[index])
  }

  #grow(): void {
    const firsts = new Float64Array(this.#firsts.length * 2)
    firsts.set(this.#firsts)
    this.#firsts = firsts
    const counts = new Float64Array(this.#counts.length * 2)
    counts.set(this.#counts)
    this.#counts = counts
  }
}
