/**
 * ChunkCache: chunks that were read lately, in memory that all threads of a process share, bounded in bytes.
 * Not a store: it can be thrown away at any time. What is in it was verified when it was put there.
 *
 * Content lies in segments, which threads fill from the front, each one of its own, and which are used again in turn: what was used since it
 * came stays then, up to half of a segment. Who looks at content pins its segment; pins are counted for each thread, so that they cost no
 * contention. An entry's version is odd while it is valid, and never the same again after it was given up: so a thread finds out by its
 * ticket alone, without a lock and without a look at the digest, whether what it found earlier is still there.
 */
import { randomUUID } from 'node:crypto'
import { BroadcastChannel } from 'node:worker_threads'
import { digestToHex } from '../chunk/digest.ts'
import type { Digest } from '../chunk/digest.ts'
import { CHUNK_BYTES_MAX } from '../chunk/limits.ts'
import { preferHugePages } from '../native/libc.ts'
import type { WantedChunks } from './cache-filler.ts'

/** Content starts at a multiple of this in its segment, bytes. */
const ALIGN_BYTES = 64
/** Bytes of segment for each entry: with smaller chunks, a segment is full before its memory is. */
const BYTES_PER_ENTRY = 2048
const SEGMENT_BYTES_MAX = 4 * CHUNK_BYTES_MAX
/** A cache has at least so many segments besides one for each thread. */
const SPARE_SEGMENTS_MIN = 2
/** Entries looked at for one digest. A longer chain is as if it ended here: what is behind is read again. */
const CHAIN_MAX = 64

// Words of the table: header, states of segments, pins, heads of chains, entries.
const LOCK = 0
const HAND = 1
const HEADER_WORDS = 16
/** State, bytes used, entries used, owner. */
const SEGMENT_WORDS = 4
const SEGMENT_STATE = 0
const SEGMENT_USED = 1
const SEGMENT_ENTRIES = 2
const SEGMENT_OWNER = 3
const ENTRY_WORDS = 16
const DIGEST_WORDS = 8
/** In units of ALIGN_BYTES, so that it fits a word. */
const ENTRY_POSITION = 8
const ENTRY_LENGTH = 9
const ENTRY_VERSION = 10
const ENTRY_RECENT = 11
/** Next entry of the chain, counted from 1. */
const ENTRY_NEXT = 12

const FREE = 0
/** Filled by its owner. */
const OPEN = 1
const FULL = 2
/** Being emptied: nobody may pin it. */
const CLOSED = 3

/** Times that a thread looks at a lock that another has before it sleeps. */
const SPINS = 200
const SLEEP_MS = 1

export interface ChunkCacheFigures {
  /** Of this thread. */
  hits: number
  misses: number
  /** Bytes for content, of all threads. */
  bytesMax: number
}

/** What threads share of a cache; a value that they can send to each other. */
export interface ChunkCacheMemory {
  content: SharedArrayBuffer
  table: SharedArrayBuffer
  bytesMax: number
  threads: number
  /** Name of the BroadcastChannel on which a thread is told what will be asked for (cache-filler.ts), if there is one. */
  fillChannel: string | undefined
}

interface Layout {
  segmentBytes: number
  segments: number
  entriesPerSegment: number
  /** Entry to segment: a shift. */
  entryShift: number
  buckets: number
  pinsAt: number
  pinsPerThread: number
  bucketsAt: number
  entriesAt: number
  tableWords: number
}

/** Where each of a list of chunks was found last. */
export class ChunkTickets {
  readonly entries: Int32Array
  readonly versions: Int32Array

  constructor(chunks: number) {
    this.entries = new Int32Array(chunks).fill(-1)
    this.versions = new Int32Array(chunks)
  }
}

export class ChunkCache {
  /** Content of everything that is cached; see `positionOf`. */
  readonly bytes: Buffer
  readonly memory: ChunkCacheMemory
  readonly #table: Int32Array
  readonly #layout: Layout
  readonly #thread: number
  readonly #pins: number
  /** The segment that this thread fills, or -1. */
  #open = -1
  #channel: BroadcastChannel | undefined
  #hits = 0
  #misses = 0
  /** Requests under way of stores that answer late, by digest. */
  readonly #pending = new Map<string, Promise<Uint8Array>>()

  /** A cache in new memory, for the last one of `threads`: the others attach to its memory. */
  static create({ bytesMax, threads = 1, hasFiller = false }: { bytesMax: number; threads?: number; hasFiller?: boolean }): ChunkCache {
    const { segments, segmentBytes, tableWords } = layoutOf(bytesMax, threads)
    const content = new SharedArrayBuffer(segments * segmentBytes)
    preferHugePages(new Uint8Array(content))
    return new ChunkCache({ content, table: new SharedArrayBuffer(tableWords * 4), bytesMax, threads, fillChannel: hasFiller ? `varve ${randomUUID()}` : undefined }, threads - 1)
  }

  /** @param thread number of this thread, below `memory.threads`; no other uses it at the same time */
  constructor(memory: ChunkCacheMemory, thread: number) {
    this.memory = memory
    this.bytes = Buffer.from(memory.content)
    this.#table = new Int32Array(memory.table)
    this.#layout = layoutOf(memory.bytesMax, memory.threads)
    this.#thread = thread
    this.#pins = this.#layout.pinsAt + thread * this.#layout.pinsPerThread
  }

  get figures(): ChunkCacheFigures {
    return { hits: this.#hits, misses: this.#misses, bytesMax: this.bytes.length }
  }

  /**
   * Finds a chunk, and keeps it where it is until `unpin`.
   * @param words digests, eight words each @param chunk which of them @param tickets of these chunks
   * @returns its entry, or -1 if it is not there
   */
  pin(words: Uint32Array, chunk: number, tickets: ChunkTickets): number {
    const table = this.#table
    const known = tickets.entries[chunk]
    if (known >= 0 && this.#pin(known, tickets.versions[chunk])) return known
    const { bucketsAt, buckets, entriesAt } = this.#layout
    const at = chunk * DIGEST_WORDS
    let next = table[bucketsAt + (words[at] & (buckets - 1))]
    for (let steps = 0; next > 0 && steps < CHAIN_MAX; steps++) {
      const entry = next - 1
      const base = entriesAt + entry * ENTRY_WORDS
      const version = Atomics.load(table, base + ENTRY_VERSION)
      if (isValid(version) && this.#isOf(base, words, at) && this.#pin(entry, version)) {
        tickets.entries[chunk] = entry
        tickets.versions[chunk] = version
        return entry
      }
      next = table[base + ENTRY_NEXT]
    }
    return -1
  }

  /** True if a chunk is there at this moment. See `pin` */
  has(words: Uint32Array, chunk: number, tickets: ChunkTickets): boolean {
    const entry = this.pin(words, chunk, tickets)
    if (entry >= 0) this.unpin(entry)
    return entry >= 0
  }

  unpin(entry: number): void {
    Atomics.sub(this.#table, this.#pins + (entry >> this.#layout.entryShift), 1)
  }

  /** Where in `bytes` the content of a pinned entry starts. */
  positionOf(entry: number): number {
    return this.#table[this.#layout.entriesAt + entry * ENTRY_WORDS + ENTRY_POSITION] * ALIGN_BYTES
  }

  /** Length of the content of a pinned entry, bytes. */
  lengthOf(entry: number): number {
    return this.#table[this.#layout.entriesAt + entry * ENTRY_WORDS + ENTRY_LENGTH]
  }

  /**
   * Memory for the content of a chunk, in `bytes`. It is this thread's until the next call of `room`; with `publish` it becomes an entry.
   * @returns its position, or -1 if all segments are in use at this moment
   */
  room(length: number): number {
    const { segmentBytes, entriesPerSegment } = this.#layout
    const at = this.#open < 0 ? 0 : this.#segment(this.#open)
    const full = this.#open < 0 || this.#table[at + SEGMENT_USED] + length > segmentBytes || this.#table[at + SEGMENT_ENTRIES] === entriesPerSegment
    if (full && !this.#openNext(length)) return -1
    return this.#open * segmentBytes + this.#table[this.#segment(this.#open) + SEGMENT_USED]
  }

  /** Makes an entry of what was put where `room` said, pinned. @returns the entry */
  publish(words: Uint32Array, chunk: number, length: number, tickets: ChunkTickets): number {
    const table = this.#table
    const { segmentBytes, entriesPerSegment, entriesAt } = this.#layout
    const segment = this.#segment(this.#open)
    const used = table[segment + SEGMENT_USED]
    const entry = this.#open * entriesPerSegment + table[segment + SEGMENT_ENTRIES]
    const base = entriesAt + entry * ENTRY_WORDS
    const at = chunk * DIGEST_WORDS
    for (let word = 0; word < DIGEST_WORDS; word++) table[base + word] = words[at + word]
    table[base + ENTRY_POSITION] = (this.#open * segmentBytes + used) / ALIGN_BYTES
    table[base + ENTRY_LENGTH] = length
    table[base + ENTRY_RECENT] = 0
    table[segment + SEGMENT_USED] = used + Math.ceil(length / ALIGN_BYTES) * ALIGN_BYTES
    table[segment + SEGMENT_ENTRIES]++
    Atomics.add(table, this.#pins + this.#open, 1)
    const version = this.#validate(base)
    this.#lock()
    this.#chain(entry)
    this.#unlock()
    this.#misses++
    tickets.entries[chunk] = entry
    tickets.versions[chunk] = version
    return entry
  }

  /** True if `fillSoon` has an effect. */
  get canFill(): boolean {
    return this.memory.fillChannel !== undefined
  }

  /** Says which chunks will be asked for soon, so that they are here by then. */
  fillSoon(wanted: WantedChunks): void {
    const { fillChannel } = this.memory
    if (fillChannel === undefined) return
    if (this.#channel === undefined) {
      this.#channel = new BroadcastChannel(fillChannel)
      this.#channel.unref()
    }
    this.#channel.postMessage(wanted)
  }

  /** The request for a chunk that is under way in this thread, if there is one. */
  asked(digest: Digest): Promise<Uint8Array> | undefined {
    if (this.#pending.size === 0) return undefined
    const pending = this.#pending.get(digestToHex(digest))
    if (pending !== undefined) this.#hits++
    return pending
  }

  /** Notes a request for a chunk until it is answered, so that the chunk is asked for once, however many wait for it. */
  ask(digest: Digest, answer: Promise<Uint8Array>): Promise<Uint8Array> {
    const key = digestToHex(digest)
    const pending = answer.finally(() => this.#pending.delete(key))
    this.#pending.set(key, pending)
    return pending
  }

  /** Takes back what a thread that died had: its segment, its pins, and the lock, with all entries if it was in the middle of changing them. */
  threadEnded(thread: number): void {
    const table = this.#table
    const { segments, pinsAt, pinsPerThread, bucketsAt, buckets, entriesAt, entriesPerSegment } = this.#layout
    const held = Atomics.load(table, LOCK) === thread + 1
    if (!held) this.#lock()
    table.fill(0, pinsAt + thread * pinsPerThread, pinsAt + (thread + 1) * pinsPerThread)
    for (let segment = 0; segment < segments; segment++) {
      const at = this.#segment(segment)
      const own = table[at + SEGMENT_OWNER] === thread + 1
      if (held) for (let entry = 0; entry < entriesPerSegment; entry++) this.#invalidate(entriesAt + (segment * entriesPerSegment + entry) * ENTRY_WORDS)
      if (own || (held && table[at + SEGMENT_STATE] === CLOSED)) Atomics.store(table, at + SEGMENT_STATE, FULL)
      if (own) table[at + SEGMENT_OWNER] = 0
    }
    if (held) table.fill(0, bucketsAt, bucketsAt + buckets)
    this.#unlock()
  }

  /** Forgets the segment that this thread fills, so that another may use it. For a thread that ends. */
  [Symbol.dispose](): void {
    if (this.#open >= 0) this.#close()
    this.#channel?.close()
  }

  #pin(entry: number, version: number): boolean {
    const table = this.#table
    const segment = entry >> this.#layout.entryShift
    const base = this.#layout.entriesAt + entry * ENTRY_WORDS
    Atomics.add(table, this.#pins + segment, 1)
    // Whoever empties a segment closes it before it looks at the pins: so it has seen this one, or this sees that it is closed, or what came of it.
    if (Atomics.load(table, this.#segment(segment) + SEGMENT_STATE) !== CLOSED && Atomics.load(table, base + ENTRY_VERSION) === version) {
      if (table[base + ENTRY_RECENT] === 0) table[base + ENTRY_RECENT] = 1
      this.#hits++
      return true
    }
    Atomics.sub(table, this.#pins + segment, 1)
    return false
  }

  #isOf(base: number, words: Uint32Array, at: number): boolean {
    const table = this.#table
    for (let word = 0; word < DIGEST_WORDS; word++) if (table[base + word] !== (words[at + word] | 0)) return false
    return true
  }

  #segment(segment: number): number {
    return HEADER_WORDS + segment * SEGMENT_WORDS
  }

  #close(): void {
    const at = this.#segment(this.#open)
    this.#table[at + SEGMENT_OWNER] = 0
    Atomics.store(this.#table, at + SEGMENT_STATE, FULL)
    this.#open = -1
  }

  /** Opens the next segment that nobody pins or fills. @param length that it must have room for @returns false if there is none */
  #openNext(length: number): boolean {
    const table = this.#table
    const { segments } = this.#layout
    if (this.#open >= 0) this.#close()
    this.#lock()
    try {
      for (let tries = 0; tries < segments; tries++) {
        const segment = table[HAND]
        table[HAND] = (segment + 1) % segments
        const at = this.#segment(segment)
        const state = table[at + SEGMENT_STATE]
        if (state !== FREE && state !== FULL) continue
        if (!this.#claim(segment)) continue
        this.#empty(segment, length)
        table[at + SEGMENT_OWNER] = this.#thread + 1
        Atomics.store(table, at + SEGMENT_STATE, OPEN)
        this.#open = segment
        return true
      }
      return false
    } finally {
      this.#unlock()
    }
  }

  /** Closes a segment, unless somebody has pinned it. */
  #claim(segment: number): boolean {
    const table = this.#table
    const { pinsAt, pinsPerThread } = this.#layout
    const at = this.#segment(segment)
    const state = table[at + SEGMENT_STATE]
    Atomics.store(table, at + SEGMENT_STATE, CLOSED)
    for (let thread = 0; thread < this.memory.threads; thread++) {
      if (Atomics.load(table, pinsAt + thread * pinsPerThread + segment) === 0) continue
      Atomics.store(table, at + SEGMENT_STATE, state)
      return false
    }
    return true
  }

  /** Gives up the entries of a closed segment but those used lately, which move to its front, up to half of it. */
  #empty(segment: number, length: number): void {
    const table = this.#table
    const { segmentBytes, entriesPerSegment, entriesAt } = this.#layout
    const at = this.#segment(segment)
    const count = table[at + SEGMENT_ENTRIES]
    const bytesMax = Math.min(segmentBytes / 2, segmentBytes - Math.ceil(length / ALIGN_BYTES) * ALIGN_BYTES)
    let used = 0
    let kept = 0
    for (let index = 0; index < count; index++) {
      const entry = segment * entriesPerSegment + index
      const base = entriesAt + entry * ENTRY_WORDS
      if (!isValid(table[base + ENTRY_VERSION])) continue
      this.#unchain(entry)
      this.#invalidate(base)
      const bytes = Math.ceil(table[base + ENTRY_LENGTH] / ALIGN_BYTES) * ALIGN_BYTES
      if (table[base + ENTRY_RECENT] === 0 || kept === entriesPerSegment / 2 || used + bytes > bytesMax) continue
      this.#keep(entry, segment * entriesPerSegment + kept, segment * segmentBytes + used)
      used += bytes
      kept++
    }
    table[at + SEGMENT_USED] = used
    table[at + SEGMENT_ENTRIES] = kept
  }

  /** Moves an entry, which is not valid at the moment, and its content; towards the front, or to where they are. */
  #keep(from: number, to: number, position: number): void {
    const table = this.#table
    const { entriesAt } = this.#layout
    const source = entriesAt + from * ENTRY_WORDS
    const target = entriesAt + to * ENTRY_WORDS
    const length = table[source + ENTRY_LENGTH]
    const start = table[source + ENTRY_POSITION] * ALIGN_BYTES
    this.bytes.copyWithin(position, start, start + length)
    table.copyWithin(target, source, source + DIGEST_WORDS)
    table[target + ENTRY_POSITION] = position / ALIGN_BYTES
    table[target + ENTRY_LENGTH] = length
    table[target + ENTRY_RECENT] = 0
    this.#validate(target)
    this.#chain(to)
  }

  /** @returns the version under which the entry is valid from now on */
  #validate(base: number): number {
    const version = (this.#table[base + ENTRY_VERSION] + 1) | 0
    Atomics.store(this.#table, base + ENTRY_VERSION, version)
    return version
  }

  #invalidate(base: number): void {
    const version = this.#table[base + ENTRY_VERSION]
    if (isValid(version)) Atomics.store(this.#table, base + ENTRY_VERSION, (version + 1) | 0)
  }

  // Chains: changed under the lock, read without.

  #bucket(entry: number): number {
    const { bucketsAt, buckets, entriesAt } = this.#layout
    return bucketsAt + (this.#table[entriesAt + entry * ENTRY_WORDS] & (buckets - 1))
  }

  #chain(entry: number): void {
    const table = this.#table
    const bucket = this.#bucket(entry)
    table[this.#layout.entriesAt + entry * ENTRY_WORDS + ENTRY_NEXT] = table[bucket]
    Atomics.store(table, bucket, entry + 1)
  }

  #unchain(entry: number): void {
    const table = this.#table
    const { entriesAt } = this.#layout
    const after = table[entriesAt + entry * ENTRY_WORDS + ENTRY_NEXT]
    for (let link = this.#bucket(entry); table[link] !== 0; link = entriesAt + (table[link] - 1) * ENTRY_WORDS + ENTRY_NEXT) {
      if (table[link] !== entry + 1) continue
      Atomics.store(table, link, after)
      return
    }
  }

  #lock(): void {
    const table = this.#table
    for (let spins = 0; ; spins++) {
      const holder = Atomics.compareExchange(table, LOCK, 0, this.#thread + 1)
      if (holder === 0) return
      if (spins >= SPINS) Atomics.wait(table, LOCK, holder, SLEEP_MS)
    }
  }

  #unlock(): void {
    Atomics.store(this.#table, LOCK, 0)
    Atomics.notify(this.#table, LOCK, 1)
  }
}

/** @param bytesMax for content; at least some segments that hold a chunk of any length are made of it */
function layoutOf(bytesMax: number, threads: number): Layout {
  const segmentsMin = threads + SPARE_SEGMENTS_MIN
  const segmentBytes = Math.min(SEGMENT_BYTES_MAX, Math.max(CHUNK_BYTES_MAX, 2 ** Math.floor(Math.log2(bytesMax / (4 * segmentsMin)))))
  const segments = Math.max(segmentsMin, Math.floor(bytesMax / segmentBytes))
  const entriesPerSegment = segmentBytes / BYTES_PER_ENTRY
  const entryShift = Math.log2(entriesPerSegment)
  const buckets = 2 ** Math.ceil(Math.log2(segments * entriesPerSegment))
  // Pins of different threads share no line of the processor's caches.
  const pinsPerThread = Math.ceil(segments / 16) * 16
  const pinsAt = Math.ceil((HEADER_WORDS + segments * SEGMENT_WORDS) / 16) * 16
  const bucketsAt = pinsAt + threads * pinsPerThread
  const entriesAt = bucketsAt + buckets
  return { segmentBytes, segments, entriesPerSegment, entryShift, buckets, pinsAt, pinsPerThread, bucketsAt, entriesAt, tableWords: entriesAt + segments * entriesPerSegment * ENTRY_WORDS }
}

function isValid(version: number): boolean {
  return (version & 1) === 1
}
