/**
 * LayoutSink: where the writers of filesystems and partition tables put what they lay out.
 * What is not mentioned reads as zeroes. Nothing is mentioned twice.
 */
export interface LayoutSink {
  /** Bytes that the writer generated, at `offset` bytes from the start of its volume. The sink keeps `bytes`; they must not change afterwards. */
  bytes(offset: number, bytes: Uint8Array): void
  /**
   * `length` bytes of chunk number `chunk` of the tree that is laid out, from `chunkOffset` inside the chunk, at `offset` bytes
   * from the start of the volume. This is how file data gets onto the disk: never copied, never read.
   */
  chunk(offset: number, length: number, chunk: number, chunkOffset: number): void
}
