/**
 * Formats of files that are updated in place, known by their first bytes. Cut at fixed places, an update changes the chunks it touches and no others,
 * and chunks fit the blocks that the format itself works in.
 */

const MAGICS: readonly Buffer[] = [
  Buffer.from('SQLite format 3\0', 'latin1'),
  // qcow2
  Buffer.from('QFI\xfb', 'latin1'),
  // VMDK, sparse extent
  Buffer.from('KDMV', 'latin1'),
  // VHD (a dynamic one has a copy of its footer at the start), VHDX
  Buffer.from('conectix', 'latin1'),
  Buffer.from('vhdxfile', 'latin1'),
]

/** First bytes of a file that isUpdatedInPlace needs. */
export const IN_PLACE_MAGIC_BYTES = 16

/** @param start of a file, at least IN_PLACE_MAGIC_BYTES of it if it has so many */
export function isUpdatedInPlace(start: Uint8Array): boolean {
  return MAGICS.some((magic) => start.length >= magic.length && magic.equals(start.subarray(0, magic.length)))
}
