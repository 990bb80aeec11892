/**
 * Where each sector of an overlay lies, two bits each, in leaves that exist only where something differs. As long as a leaf's sectors change in
 * whole blocks, it has two bits a block: an untouched disk costs nothing, one that was trimmed whole a pointer per 64 MiB, a full one of 1 TiB
 * 64 MiB; where single sectors are written, eight times that.
 */

/** Bytes of a sector: the unit of what an overlay holds. A part of one is made whole with what it shows. */
export const OVERLAY_SECTOR_BYTES = 512
/** What guests write, mostly. */
const BLOCK_SECTORS_SHIFT = 3

export const SectorState = {
  /** What lies below shows. */
  below: 0,
  /** In the overlay's data. */
  data: 1,
  /** Zeroes; whatever the overlay's data holds there is stale. */
  zero: 2,
} as const
export type SectorState = (typeof SectorState)[keyof typeof SectorState]

/** Sectors of a leaf: 64 MiB. */
const LEAF_SECTORS = 1 << 17
/** Bytes of a leaf with two bits a block, and of one with two bits a sector. */
const COARSE_BYTES = LEAF_SECTORS >>> (BLOCK_SECTORS_SHIFT + 2)
const FINE_BYTES = LEAF_SECTORS >>> 2
/** Shared leaves of one state; never written to. */
const UNIFORM: Uint8Array[] = [0x00, 0x55, 0xaa].map(byte => new Uint8Array(COARSE_BYTES).fill(byte))

export class OverlaySectors {
  readonly sectorCount: number
  readonly #leaves = new Map<number, Uint8Array>()
  #lastIndex = -1
  #lastLeaf: Uint8Array = UNIFORM[SectorState.below]

  constructor(sectorCount: number) {
    this.sectorCount = sectorCount
  }

  get(sector: number): SectorState {
    const within = sector % LEAF_SECTORS
    const leaf = this.#leaf((sector - within) / LEAF_SECTORS)
    return stateIn(leaf, within >>> shiftOf(leaf))
  }

  /** @returns true if any of the sectors had another state */
  set(first: number, count: number, state: SectorState): boolean {
    const end = first + count
    let changed = false
    for (let at = first; at < end;) {
      const from = at % LEAF_SECTORS
      const index = (at - from) / LEAF_SECTORS
      // What follows the end of the disk in its last block is nobody's.
      const stop = Math.min(LEAF_SECTORS, from + end - at)
      const to = end === this.sectorCount ? blocksUp(stop) : stop
      if (this.#setIn(index, from, to, state)) changed = true
      at += Math.min(to - from, end - at)
    }
    return changed
  }

  /** End of the run of sectors that have the same state as `sector`, at most `end`. */
  runEnd(sector: number, end: number): number {
    const state = this.get(sector)
    for (let at = sector; at < end;) {
      const from = at % LEAF_SECTORS
      const to = Math.min(LEAF_SECTORS, from + end - at)
      const leaf = this.#leaf((at - from) / LEAF_SECTORS)
      const stop = leaf === UNIFORM[state] ? to : endOfRun(leaf, state, from, to)
      at += stop - from
      if (stop < to) return at
    }
    return end
  }

  /** Calls `visit` for each run of one state but `below` in the sectors `first .. end`, in order. */
  forRuns(first: number, end: number, visit: (first: number, count: number, state: SectorState) => void): void {
    for (let at = first; at < end;) {
      const state = this.get(at)
      const stop = this.runEnd(at, end)
      if (state !== SectorState.below) visit(at, stop - at, state)
      at = stop
    }
  }

  /** Sets the places `from .. to` of one leaf. */
  #setIn(index: number, from: number, to: number, state: SectorState): boolean {
    const leaf = this.#leaf(index)
    if (leaf === UNIFORM[state] || endOfRun(leaf, state, from, to) === to) return false
    if (to - from === LEAF_SECTORS) {
      this.#keep(index, UNIFORM[state])
      return true
    }
    const own = leaf.length === COARSE_BYTES && blocksUp(from | to) !== (from | to) ? refined(leaf) : UNIFORM.includes(leaf) ? leaf.slice() : leaf
    const shift = shiftOf(own)
    fill(own, from >>> shift, to >>> shift, state)
    if (own !== leaf) this.#keep(index, own)
    return true
  }

  #leaf(index: number): Uint8Array {
    if (index !== this.#lastIndex) {
      this.#lastLeaf = this.#leaves.get(index) ?? UNIFORM[SectorState.below]
      this.#lastIndex = index
    }
    return this.#lastLeaf
  }

  #keep(index: number, leaf: Uint8Array): void {
    this.#leaves.set(index, leaf)
    this.#lastIndex = -1
  }
}

/** Sectors of so many, up to the end of a block. */
function blocksUp(sectors: number): number {
  return ((sectors + (1 << BLOCK_SECTORS_SHIFT) - 1) >>> BLOCK_SECTORS_SHIFT) << BLOCK_SECTORS_SHIFT
}

function shiftOf(leaf: Uint8Array): number {
  return leaf.length === COARSE_BYTES ? BLOCK_SECTORS_SHIFT : 0
}

/** The same leaf with two bits a sector. */
function refined(coarse: Uint8Array): Uint8Array {
  // Two bits for each of eight sectors: the same in either byte.
  const blocks = new Uint16Array(FINE_BYTES / 2)
  for (let block = 0; block < blocks.length; block++) blocks[block] = UNIFORM[stateIn(coarse, block)][0] * 0x0101
  return new Uint8Array(blocks.buffer)
}

function stateIn(leaf: Uint8Array, unit: number): SectorState {
  return ((leaf[unit >>> 2] >>> ((unit & 3) * 2)) & 3) as SectorState
}

/** First of the sectors `from .. to` of a leaf that has another state, or `to`; where a leaf has two bits a block, the block's first. */
function endOfRun(leaf: Uint8Array, state: SectorState, from: number, to: number): number {
  const shift = shiftOf(leaf)
  const whole = UNIFORM[state][0]
  const end = (to + (1 << shift) - 1) >>> shift
  for (let at = from >>> shift; at < end;) {
    if ((at & 3) === 0 && leaf[at >>> 2] === whole) {
      at += 4
    } else {
      if (stateIn(leaf, at) !== state) return at << shift
      at++
    }
  }
  return to
}

/** @param from in units of the leaf, as `to` */
function fill(leaf: Uint8Array, from: number, to: number, state: SectorState): void {
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
