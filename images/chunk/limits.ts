/** Limits of chunks; docs/formats.md#chunk. */

/** Largest chunk that any reader accepts, bytes. */
export const CHUNK_BYTES_MAX = 1 << 20

/** Content-defined cutting: a chunk but the last of a file is not smaller, bytes. */
export const CUT_BYTES_MIN = 16 << 10
/** Content-defined cutting: the size aimed at, bytes. */
export const CUT_BYTES_AVERAGE = 64 << 10
/** Content-defined cutting: no chunk is larger, bytes. A file up to this size is one chunk. */
export const CUT_BYTES_MAX = 256 << 10
/** Fixed cutting (disk images, generated metadata): size and alignment of a chunk, bytes. */
export const FIXED_BYTES = 64 << 10
/**
 * Files are cut in segments of this size, each by itself, so that a large file is hashed and compressed by all workers;
 * costs one boundary that content does not choose per segment. Bytes.
 */
export const SEGMENT_BYTES = 16 << 20
