/**
 * What each sector of a disk may hold after a crash: the version that the last flush covered, or any that was written since.
 * A version is a number that fills its sector; 0 is zeroes.
 */
export const SECTOR_BYTES = 512

interface Version {
  value: number
  /** Order of events: when the call that wrote it began, and when it had completed. */
  begun: number
  completed: number
  /** Order of the event after which it no longer appears anew: it had completed, or had failed, perhaps in part. */
  ended: number
  /** Moment of the log at which the call began: before, there is no trace of it. */
  moment: number
  /** Moment at which the call was answered, and that from which it is durable by itself (FUA). */
  answered: number
  durable: number
}

/** A sector filled with a version. */
export function fillSector(into: Uint8Array, sector: number, value: number): void {
  new Uint32Array(into.buffer, into.byteOffset + sector * SECTOR_BYTES, SECTOR_BYTES / 4).fill(value)
}

/** The version that fills a sector, or -1 if it is filled with no single one. */
export function versionIn(content: Uint8Array, sector: number): number {
  const words = new Uint32Array(content.buffer, content.byteOffset + sector * SECTOR_BYTES, SECTOR_BYTES / 4)
  return words.every(word => word === words[0]) ? words[0] : -1
}

export class SectorHistory {
  readonly #versions: Version[][]
  /** Flushes that were acknowledged: what had completed when each began is durable from the moment when it was answered. */
  readonly #flushes: { begun: number; answered: number }[] = []
  #event = 0

  /** @param content of the disk at the start */
  constructor(content: Uint8Array) {
    this.#versions = Array.from({ length: content.length / SECTOR_BYTES }, (_, sector) => (
      [{ value: versionIn(content, sector), begun: 0, completed: 0, ended: 0, moment: -1, answered: -1, durable: -1 }]
    ))
  }

  /** A call that writes `value` to sectors begins at a moment. @returns what to call when it has completed, or failed */
  begin(first: number, count: number, value: number, moment: number): { complete: (moment: number, fua: boolean) => void; fail: () => void } {
    const version = { value, begun: ++this.#event, completed: Infinity, ended: Infinity, moment, answered: Infinity, durable: Infinity }
    for (let sector = first; sector < first + count; sector++) this.#versions[sector].push(version)
    return {
      complete: (completed, fua) => {
        version.completed = version.ended = ++this.#event
        version.answered = completed
        if (fua) version.durable = completed
      },
      fail: () => { version.ended = ++this.#event },
    }
  }

  /** A flush begins. @returns what to call when it was acknowledged */
  flush(): (moment: number) => void {
    const begun = ++this.#event
    return answered => void this.#flushes.push({ begun, answered })
  }

  /**
   * Versions that a sector may hold if the power was cut at a moment: not those that were written over, by a call that began after
   * theirs had completed, and that is durable.
   */
  allowed(sector: number, moment: number): number[] {
    return this.#notOverwritten(sector, this.#isDurable(moment), moment)
  }

  /**
   * The same if the process was killed and the system lives: what was answered is there. A call that began at that moment may have been carried out in part.
   * @param faulty only what was durable is sure to be there
   */
  allowedAfterKill(sector: number, moment: number, { faulty = false } = {}): number[] {
    return this.#notOverwritten(sector, faulty ? this.#isDurable(moment) : version => version.answered <= moment, moment + 1)
  }

  #isDurable(moment: number): (version: Version) => boolean {
    const flush = Math.max(0, ...this.#flushes.filter(({ answered }) => answered <= moment).map(({ begun }) => begun))
    return version => version.completed <= flush || version.durable <= moment
  }

  #notOverwritten(sector: number, isKept: (version: Version) => boolean, untilMoment: number): number[] {
    const versions = this.#versions[sector]
    const overwritten = Math.max(...versions.filter(isKept).map(({ begun }) => begun))
    return versions.filter(version => version.ended >= overwritten && version.moment < untilMoment).map(({ value }) => value)
  }
}
