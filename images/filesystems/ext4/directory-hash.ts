/**
 * Hash of a name in an indexed directory: half MD4 over unsigned bytes.
 * Bytes: ext4fs_dirhash in fs/ext4/hash.c of Linux.
 */

const K2 = 0x5a827999
const K3 = 0x6ed9eba1
/** Stands for the end of a directory in positions, so no name may hash to it. */
const END_HASH = 0xfffffffe

/** MD4's initial values, used where the seed is all zeroes. */
const DEFAULT_SEED = [0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476]

const words = new Int32Array(8)
const state = new Int32Array(4)

/** @param bytes 16 bytes, `s_hash_seed`; @returns four words for `directoryHash` */
export function hashSeedWords(bytes: Uint8Array): Int32Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, 16)
  const seed = Int32Array.from([0, 4, 8, 12], (at) => view.getInt32(at, true))
  return seed.some((word) => word !== 0) ? seed : Int32Array.from(DEFAULT_SEED, (word) => word | 0)
}

/** @param name bytes in latin1; @returns unsigned, lowest bit 0 */
export function directoryHash(name: string, seed: Int32Array): number {
  state.set(seed)
  for (let at = 0; at < name.length; at += 32) {
    fillWords(name, at)
    transform()
  }
  const hash = (state[1] & ~1) >>> 0
  return hash === END_HASH ? END_HASH - 2 : hash
}

/** Eight words of the name from `from` on; what is missing is padded with the number of bytes that are left. */
function fillWords(name: string, from: number): void {
  const left = name.length - from
  let pad = left | (left << 8)
  pad |= pad << 16
  const end = Math.min(name.length, from + 32)
  let value = pad
  let word = 0
  let inWord = 0
  for (let at = from; at < end; at++) {
    value = (name.charCodeAt(at) + (value << 8)) | 0
    if (++inWord === 4) {
      words[word++] = value
      value = pad
      inWord = 0
    }
  }
  if (word < 8) words[word++] = value
  while (word < 8) words[word++] = pad
}

function rotate(value: number, by: number): number {
  return (value << by) | (value >>> (32 - by))
}

function round1(a: number, b: number, c: number, d: number, word: number, by: number): number {
  return rotate((a + (d ^ (b & (c ^ d))) + word) | 0, by)
}

function round2(a: number, b: number, c: number, d: number, word: number, by: number): number {
  return rotate((a + (((b & c) + ((b ^ c) & d)) | 0) + word + K2) | 0, by)
}

function round3(a: number, b: number, c: number, d: number, word: number, by: number): number {
  return rotate((a + (b ^ c ^ d) + word + K3) | 0, by)
}

function transform(): void {
  let a = state[0]
  let b = state[1]
  let c = state[2]
  let d = state[3]
  for (let at = 0; at < 8; at += 4) {
    a = round1(a, b, c, d, words[at], 3)
    d = round1(d, a, b, c, words[at + 1], 7)
    c = round1(c, d, a, b, words[at + 2], 11)
    b = round1(b, c, d, a, words[at + 3], 19)
  }
  for (let at = 1; at >= 0; at--) {
    a = round2(a, b, c, d, words[at], 3)
    d = round2(d, a, b, c, words[at + 2], 5)
    c = round2(c, d, a, b, words[at + 4], 9)
    b = round2(b, c, d, a, words[at + 6], 13)
  }
  for (let at = 3; at >= 1; at -= 2) {
    a = round3(a, b, c, d, words[at], 3)
    d = round3(d, a, b, c, words[at + 4], 9)
    c = round3(c, d, a, b, words[at - 1], 11)
    b = round3(b, c, d, a, words[at + 3], 15)
  }
  state[0] = (state[0] + a) | 0
  state[1] = (state[1] + b) | 0
  state[2] = (state[2] + c) | 0
  state[3] = (state[3] + d) | 0
}
