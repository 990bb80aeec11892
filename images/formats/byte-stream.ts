/**
 * Byte stream: a stream of buffers, read in pieces of the reader's choosing. Never holds more than the source's buffer and the piece asked for.
 */

export class ByteStream {
  readonly #source: AsyncIterator<Uint8Array>
  #chunk: Uint8Array = new Uint8Array(0)
  #at = 0
  #ended = false
  /** Bytes read, skipped ones included. */
  position = 0

  /** @param source its buffers may be reused by it once the next is asked for */
  constructor(source: AsyncIterable<Uint8Array>) {
    this.#source = source[Symbol.asyncIterator]()
  }

  /** `length` bytes if they are at hand, otherwise undefined: `read` waits for them. A view, valid until the next call. */
  take(length: number): Uint8Array | undefined {
    if (this.#chunk.length - this.#at < length) return undefined
    this.#at += length
    this.position += length
    return this.#chunk.subarray(this.#at - length, this.#at)
  }

  /** `length` bytes, fewer only where the stream ends. A view, valid until the next call. */
  async read(length: number): Promise<Uint8Array> {
    const bytes = this.take(length)
    if (bytes !== undefined) return bytes
    const gathered = Buffer.allocUnsafe(length)
    return gathered.subarray(0, await this.readInto(gathered))
  }

  /** Fills `target`. @returns bytes read, fewer only where the stream ends */
  async readInto(target: Uint8Array): Promise<number> {
    let filled = 0
    while (filled < target.length) {
      if (this.#at === this.#chunk.length && !(await this.#next())) break
      const length = Math.min(target.length - filled, this.#chunk.length - this.#at)
      target.set(this.#chunk.subarray(this.#at, this.#at + length), filled)
      this.#at += length
      filled += length
    }
    this.position += filled
    return filled
  }

  /** The next bytes, which stay to be read: `length` of them, fewer only where the stream ends. A view, valid until the next call. */
  async peek(length: number): Promise<Uint8Array> {
    if (this.#chunk.length - this.#at < length) {
      const gathered = Buffer.allocUnsafe(length)
      const filled = await this.readInto(gathered)
      this.position -= filled
      // What was not read of the last buffer follows what was gathered.
      this.#chunk = Buffer.concat([gathered.subarray(0, filled), this.#chunk.subarray(this.#at)])
      this.#at = 0
    }
    return this.#chunk.subarray(this.#at, Math.min(this.#at + length, this.#chunk.length))
  }

  /** @returns bytes skipped, fewer only where the stream ends */
  async skip(length: number): Promise<number> {
    let skipped = 0
    while (skipped < length) {
      if (this.#at === this.#chunk.length && !(await this.#next())) break
      const step = Math.min(length - skipped, this.#chunk.length - this.#at)
      this.#at += step
      skipped += step
    }
    this.position += skipped
    return skipped
  }

  /** All that is left, in the source's buffers. */
  async *rest(): AsyncGenerator<Uint8Array, void> {
    try {
      while (this.#at < this.#chunk.length || (await this.#next())) {
        const bytes = this.#chunk.subarray(this.#at)
        this.#at = this.#chunk.length
        this.position += bytes.length
        yield bytes
      }
    } finally {
      await this.close()
    }
  }

  /** Ends the source, whose end need not have been reached. */
  async close(): Promise<void> {
    if (this.#ended) return
    this.#ended = true
    await this.#source.return?.()
  }

  async #next(): Promise<boolean> {
    if (this.#ended) return false
    this.#at = 0
    this.#chunk = new Uint8Array(0)
    for (;;) {
      const { value, done } = await this.#source.next()
      if (done === true) {
        this.#ended = true
        return false
      }
      if (value.length === 0) continue
      this.#chunk = value
      return true
    }
  }
}
