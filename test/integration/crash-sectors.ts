/**
 * What each sector of a disk may show after its server was killed. Every sector carries the number of the write that wrote it.
 * A sector shows the last durable write, or one that was issued later or at the same time; never an older one, never anything else.
 */
import assert from 'node:assert/strict'

export const SECTOR_BYTES = 512
const SECTOR_WORDS = SECTOR_BYTES / 4

/** Numbers of what was not written by a numbered write. */
const ZEROES = 0
const BASE = -1

export interface SectorWrite {
  sector: number
  sectors: number
  /** From 1; 0 for zeroes. */
  number: number
  /** By the model's clock. Infinity for what has not been acknowledged. */
  issuedAt: number
  acknowledgedAt: number
}

/** Content of sectors that a write gave its number. */
export function numberedSectors(sector: number, sectors: number, number: number): Buffer {
  const words = new Uint32Array(sectors * SECTOR_WORDS)
  for (let index = 0; index < sectors; index++) {
    for (let word = 0; word < SECTOR_WORDS; word++) words[index * SECTOR_WORDS + word] = numberedWord(sector + index, number, word)
  }
  return Buffer.from(words.buffer)
}

/** Number and sector come first; the other words tell a sector that is torn from one that is whole. */
function numberedWord(sector: number, number: number, word: number): number {
  return word === 0 ? number : word === 1 ? sector : (Math.imul(number, 0x9e3779b1) + Math.imul(sector, 0x85ebca6b) + word) >>> 0
}

function isNumbered(words: Uint32Array, sector: number, number: number): boolean {
  const at = sector * SECTOR_WORDS
  for (let word = 0; word < SECTOR_WORDS; word++) if (words[at + word] !== numberedWord(sector, number, word)) return false
  return true
}

function isZero(words: Uint32Array, sector: number): boolean {
  for (let at = sector * SECTOR_WORDS; at < (sector + 1) * SECTOR_WORDS; at++) if (words[at] !== 0) return false
  return true
}

/** A disk as it was at one moment, as far as that is known; once it was looked at, all of it is. */
export class SectorView {
  readonly #base: Uint32Array
  /** Number by sector. */
  readonly settled: Int32Array
  /** Numbers of sectors that may show one of several. */
  readonly open: Map<number, number[]>

  constructor(base: Uint32Array, settled: Int32Array, open: Map<number, number[]>) {
    this.#base = base
    this.settled = settled
    this.open = open
  }

  /** @param disk all of it; from now on it must show just this */
  check(disk: Buffer, message: string): void {
    const words = new Uint32Array(disk.buffer, disk.byteOffset, disk.length / 4)
    for (let sector = 0; sector < this.settled.length; sector++) {
      const number = this.#numberOf(words, sector, message)
      const allowed = this.open.get(sector) ?? [this.settled[sector]]
      if (!allowed.includes(number)) assert.fail(`${message}: sector ${sector} shows ${number}, not ${allowed.join(' or ')}`)
      this.settled[sector] = number
    }
    this.open.clear()
  }

  #numberOf(words: Uint32Array, sector: number, message: string): number {
    const at = sector * SECTOR_WORDS
    const number = words[at]
    if (number === 0 && isZero(words, sector)) return ZEROES
    if (isNumbered(words, sector, number)) return number
    for (let word = at; word < at + SECTOR_WORDS; word++) {
      if (words[word] !== this.#base[word]) assert.fail(`${message}: sector ${sector} is torn or not its own: ${Buffer.from(words.slice(at, at + 8).buffer).toString('hex')}`)
    }
    return BASE
  }
}

export class SectorHistory {
  readonly sectors: number
  readonly #base: Uint32Array
  readonly #settled: Int32Array
  /** Writes since the one in `settled`, of sectors that have such; the settled one stays possible until `#supersede` drops it. */
  readonly #open = new Map<number, SectorWrite[]>()
  #clock = 0
  #number = 0
  /** What becomes certain while a snapshot is made waits: the snapshot may show the time before. */
  #snapshots = 0
  #waiting: (() => void)[] = []

  /** @param disk as it is before the first write */
  constructor(disk: Buffer) {
    this.#base = new Uint32Array(disk.buffer.slice(disk.byteOffset, disk.byteOffset + disk.length))
    this.sectors = disk.length / SECTOR_BYTES
    this.#settled = new Int32Array(this.sectors)
    for (let sector = 0; sector < this.sectors; sector++) if (!isZero(this.#base, sector)) this.#settled[sector] = BASE
  }

  get now(): number {
    return this.#clock
  }

  /** A write is about to be sent. @param range.zeroes instead of a number */
  issue({ sector, sectors, zeroes }: { sector: number; sectors: number; zeroes: boolean }): SectorWrite {
    const write = { sector, sectors, number: zeroes ? ZEROES : ++this.#number, issuedAt: ++this.#clock, acknowledgedAt: Infinity }
    for (let at = sector; at < sector + sectors; at++) {
      const writes = this.#open.get(at)
      if (writes !== undefined) writes.push(write)
      else this.#open.set(at, [{ sector: at, sectors: 1, number: this.#settled[at], issuedAt: 0, acknowledgedAt: 0 }, write])
    }
    return write
  }

  acknowledge(write: SectorWrite, { durable }: { durable: boolean }): void {
    write.acknowledgedAt = ++this.#clock
    if (!durable) return
    this.#decide(() => {
      for (let at = write.sector; at < write.sector + write.sectors; at++) this.#supersede(at, (candidate) => candidate === write)
    })
  }

  /** A flush that was sent at `sentAt` has been answered. */
  flushed(sentAt: number): void {
    this.#decide(() => {
      for (const sector of this.#open.keys()) this.#supersede(sector, ({ acknowledgedAt }) => acknowledgedAt <= sentAt)
    })
  }

  /** A snapshot is about to be asked for. @returns what is to be called when it is answered, or never will be: gives what it shows */
  beginSnapshot(): () => SectorView {
    const sentAt = this.#clock
    this.#snapshots++
    return () => {
      const open = new Map<number, number[]>()
      for (const [sector, writes] of this.#open) open.set(sector, remaining(writes, ({ acknowledgedAt }) => acknowledgedAt <= sentAt).map(({ number }) => number))
      const view = new SectorView(this.#base, this.#settled.slice(), open)
      if (--this.#snapshots === 0) for (const decide of this.#waiting.splice(0)) decide()
      return view
    }
  }

  /** Compares with the disk of a new server. What it shows now it must go on to show. */
  check(disk: Buffer, message: string): void {
    const open = new Map([...this.#open].map(([sector, writes]) => [sector, writes.map(({ number }) => number)]))
    new SectorView(this.#base, this.#settled, open).check(disk, message)
    this.#open.clear()
  }

  #decide(decide: () => void): void {
    if (this.#snapshots === 0) decide()
    else this.#waiting.push(decide)
  }

  #supersede(sector: number, isDurable: (write: SectorWrite) => boolean): void {
    const writes = this.#open.get(sector)
    // Looked at since: then there is nothing to decide.
    if (writes === undefined) return
    const left = remaining(writes, isDurable)
    if (left.length > 1 || !isDurable(left[0])) {
      this.#open.set(sector, left)
    } else {
      this.#settled[sector] = left[0].number
      this.#open.delete(sector)
    }
  }
}

/** Writes that may show when some are known to be there: a write is covered by one that was issued after it had been acknowledged. */
function remaining(writes: readonly SectorWrite[], isThere: (write: SectorWrite) => boolean): SectorWrite[] {
  let last = 0
  for (const write of writes) if (isThere(write)) last = Math.max(last, write.issuedAt)
  return writes.filter(({ acknowledgedAt }) => acknowledgedAt >= last)
}
