/**
 * The chunks that one agent waits for: by priority, within one in the order asked, each digest once.
 * What is next is taken ahead, so that it can be read before it can be sent. Every step takes the same time however many wait.
 */
import type { StoredChunk } from '@varve/images/store/pack-store.ts'
import { Priority } from './frames.ts'

export interface WaitingChunk {
  /** Its digest, a character a byte. */
  readonly key: string
  readonly priority: Priority
  readonly askedAtMs: number
  /** undefined: not read yet. */
  read: StoredChunk | Error | undefined
}

const PRIORITIES = [Priority.MISS, Priority.BOOT, Priority.FILL] as const

class Lane {
  readonly waiting = new Map<string, WaitingChunk>()
  /** The first of them, which are read ahead. */
  readonly ahead: WaitingChunk[] = []
  /** What is behind `ahead`. An iterator of a Map goes on to what is added later, unless it has ended. */
  #rest: MapIterator<WaitingChunk> | undefined

  /** Takes the next one ahead. */
  takeAhead(): WaitingChunk | undefined {
    // Never asked when nothing is left, so that it does not end.
    if (this.ahead.length === this.waiting.size) return undefined
    const chunk = (this.#rest ??= this.waiting.values()).next().value!
    this.ahead.push(chunk)
    return chunk
  }

  remove(chunk: WaitingChunk): void {
    this.waiting.delete(chunk.key)
    const at = this.ahead.indexOf(chunk)
    if (at >= 0) this.ahead.splice(at, 1)
  }

  clear(): void {
    this.waiting.clear()
    this.ahead.length = 0
    this.#rest = undefined
  }
}

export class ChunkQueue {
  readonly #lanes = PRIORITIES.map(() => new Lane())

  get size(): number {
    return this.#lanes.reduce((sum, { waiting }) => sum + waiting.size, 0)
  }

  /**
   * Adds a chunk. One that waits with less urgency is promoted: it takes its place anew, and is read anew. One that waits with as much stays where it is.
   */
  add(key: string, priority: Priority, nowMs: number): void {
    for (const lane of PRIORITIES) {
      const found = this.#lanes[lane].waiting.get(key)
      if (found === undefined) continue
      if (lane <= priority) return
      this.#lanes[lane].remove(found)
    }
    this.#lanes[priority].waiting.set(key, { key, priority, askedAtMs: nowMs, read: undefined })
  }

  /** The first that waits with this priority and has been taken ahead. */
  first(priority: Priority): WaitingChunk | undefined {
    return this.#lanes[priority].ahead[0]
  }

  /** The most urgent priority with which something waits. */
  mostUrgent(): Priority | undefined {
    return PRIORITIES.find((priority) => this.#lanes[priority].waiting.size > 0)
  }

  /** The next one of a priority that is to be read, if fewer than `most` are ahead. */
  takeAhead(priority: Priority, most: number): WaitingChunk | undefined {
    const lane = this.#lanes[priority]
    return lane.ahead.length < most ? lane.takeAhead() : undefined
  }

  /** False once it was sent, cancelled or promoted. */
  has(chunk: WaitingChunk): boolean {
    return this.#lanes[chunk.priority].waiting.get(chunk.key) === chunk
  }

  remove(chunk: WaitingChunk): void {
    this.#lanes[chunk.priority].remove(chunk)
  }

  cancel(key: string): void {
    for (const lane of this.#lanes) {
      const found = lane.waiting.get(key)
      if (found !== undefined) lane.remove(found)
    }
  }

  cancelBackground(): void {
    for (const lane of this.#lanes.slice(1)) lane.clear()
  }

  clear(): void {
    for (const lane of this.#lanes) lane.clear()
  }
}
