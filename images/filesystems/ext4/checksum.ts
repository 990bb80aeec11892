/**
 * CRC-32C as ext4 uses it: the bare register, without the inversions at start and end, chained through seeds.
 * Native code for blocks; tables here for what is so short that the call would cost more than the work.
 */
import { crc32c } from '@node-rs/crc32'

/** Reflected polynomial of Castagnoli. */
const POLYNOMIAL = 0x82f63b78

/** Register before the first byte of a chain. */
export const CHECKSUM_START = 0xffffffff

const tables: Int32Array[] = []
for (let table = 0; table < 8; table++) {
  tables.push(new Int32Array(256))
  for (let byte = 0; byte < 256; byte++) {
    if (table > 0) {
      const before = tables[table - 1][byte]
      tables[table][byte] = (before >>> 8) ^ tables[0][before & 0xff]
      continue
    }
    let crc = byte
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? POLYNOMIAL : 0)
    tables[0][byte] = crc
  }
}
const [T0, T1, T2, T3, T4, T5, T6, T7] = tables

/** Checksum of a block or more. @param seed register before; @returns register after, unsigned */
export function checksumBlock(seed: number, bytes: Uint8Array): number {
  return ~crc32c(bytes, ~seed >>> 0) >>> 0
}

/** The same for short ranges: `bytes[from, to)`. */
export function checksumShort(seed: number, bytes: Uint8Array, from: number, to: number): number {
  let crc = seed | 0
  let at = from
  for (; at + 8 <= to; at += 8) {
    const low = crc ^ (bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16) | (bytes[at + 3] << 24))
    crc =
      T7[low & 0xff] ^ T6[(low >>> 8) & 0xff] ^ T5[(low >>> 16) & 0xff] ^ T4[low >>> 24] ^
      T3[bytes[at + 4]] ^ T2[bytes[at + 5]] ^ T1[bytes[at + 6]] ^ T0[bytes[at + 7]]
  }
  for (; at < to; at++) crc = (crc >>> 8) ^ T0[(crc ^ bytes[at]) & 0xff]
  return crc >>> 0
}

/** The same for one little-endian 32-bit number. */
export function checksumUint32(seed: number, value: number): number {
  const low = seed ^ value
  return (T3[low & 0xff] ^ T2[(low >>> 8) & 0xff] ^ T1[(low >>> 16) & 0xff] ^ T0[low >>> 24]) >>> 0
}

/**
 * A function that gives the register after `count` zero bytes. The register is linear in its bits,
 * so the bytes of the register can be looked up one by one, whatever `count` is.
 */
export function zeroesChecksum(count: number): (seed: number) => number {
  const byByte = [0, 8, 16, 24].map((shift) => {
    const table = new Int32Array(256)
    for (let byte = 0; byte < 256; byte++) {
      let crc = byte << shift
      for (let at = 0; at < count; at++) crc = (crc >>> 8) ^ T0[crc & 0xff]
      table[byte] = crc
    }
    return table
  })
  const [Z0, Z1, Z2, Z3] = byByte
  return (seed) => (Z0[seed & 0xff] ^ Z1[(seed >>> 8) & 0xff] ^ Z2[(seed >>> 16) & 0xff] ^ Z3[seed >>> 24]) >>> 0
}
