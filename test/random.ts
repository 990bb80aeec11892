/**
 * Random numbers from a seed, for tests and benchmarks: the same seed gives the same sequence everywhere (xoshiro128**).
 */

/** VARVE_TEST_SEED if set, otherwise a new one. Tests print it when they fail. */
export function testSeed(): number {
  const fromEnvironment = process.env.VARVE_TEST_SEED
  if (fromEnvironment !== undefined) return Number(fromEnvironment) >>> 0
  return Math.floor(Math.random() * 0x1_0000_0000)
}

export class Random {
  readonly #state = new Uint32Array(4)

  constructor(seed: number) {
    let at = seed >>> 0
    for (let index = 0; index < 4; index++) {
      at = (at + 0x9e3779b9) >>> 0
      let mixed = at
      mixed = Math.imul(mixed ^ (mixed >>> 16), 0x85ebca6b)
      mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35)
      this.#state[index] = mixed ^ (mixed >>> 16)
    }
  }

  /** 0 .. 2^32 - 1 */
  uint32(): number {
    const state = this.#state
    const scaled = Math.imul(state[1], 5)
    const result = Math.imul((scaled << 7) | (scaled >>> 25), 9) >>> 0
    const shifted = state[1] << 9
    state[2] ^= state[0]
    state[3] ^= state[1]
    state[1] ^= state[2]
    state[0] ^= state[3]
    state[2] ^= shifted
    state[3] = (state[3] << 11) | (state[3] >>> 21)
    return result
  }

  /** Whole number, 0 .. below - 1; below up to 2^53. */
  below(below: number): number {
    return below <= 0x1_0000_0000
      ? Math.floor((this.uint32() / 0x1_0000_0000) * below)
      : Math.floor(((this.uint32() * 0x20_0000 + (this.uint32() >>> 11)) / 2 ** 53) * below)
  }

  /** Whole number, from .. to, both included. */
  between(from: number, to: number): number {
    return from + this.below(to - from + 1)
  }

  /** True with the given probability, 0 .. 1. */
  chance(probability: number): boolean {
    return this.uint32() / 0x1_0000_0000 < probability
  }

  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)]
  }

  bytes(length: number): Buffer {
    const bytes = Buffer.allocUnsafe(length)
    let at = 0
    for (; at + 4 <= length; at += 4) bytes.writeUInt32LE(this.uint32(), at)
    for (; at < length; at++) bytes[at] = this.uint32() & 0xff
    return bytes
  }
}
