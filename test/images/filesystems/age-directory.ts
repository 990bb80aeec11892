/** Use of a mounted filesystem of Windows, as years of it leave it: files made, deleted, renamed, overwritten, appended to and cut, until it is full in between. */
import { appendFileSync, closeSync, mkdirSync, openSync, renameSync, rmSync, statSync, truncateSync, utimesSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import type { Random } from '../../random.ts'

const LETTERS = [...'abcdefXYZ019 ._-~ßéÖЖ漢+,;=[]😀']

export interface AgeOptions {
  rounds: number
  /** Of one file. */
  bytesMax: number
  /** Of all that fills the filesystem once; 0 if it is not to be filled. */
  fillBytes: number
}

/** @param root of a filesystem that takes names of Windows */
export function ageDirectory(root: string, random: Random, { rounds, bytesMax, fillBytes }: AgeOptions): void {
  const files: string[] = []
  const directories = ['']
  let names = 0
  const newPath = (): string => {
    const length = random.chance(0.1) ? random.between(20, 60) : random.between(1, 12)
    const name = `${Array.from({ length }, () => random.pick(LETTERS)).join('').replace(/^[. ]+/, '')}${names++}`
    return join(random.pick(directories), name)
  }
  const write = (path: string): void => {
    const file = join(root, path)
    try {
      writeFileSync(file, random.bytes(random.pick([0, 1, 512, 4096, random.below(bytesMax), random.below(bytesMax), random.below(1 + (bytesMax >> 5))])))
      const seconds = random.between(315_532_800, 4_000_000_000)
      utimesSync(file, seconds, seconds)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error
    }
  }
  const steps = [
    () => {
      const path = newPath()
      write(path)
      files.push(path)
    },
    () => {
      const path = newPath()
      mkdirSync(join(root, path))
      if (directories.length < 40) directories.push(path)
    },
    () => take(files, random, (path) => rmSync(join(root, path))),
    () => take(files, random, (path) => rmSync(join(root, path))),
    () => take(files, random, (path) => {
      const target = newPath()
      renameSync(join(root, path), join(root, target))
      files.push(target)
    }),
    () => keep(files, random, (path) => write(path)),
    () => keep(files, random, (path) => appendFileSync(join(root, path), random.bytes(random.below(bytesMax)))),
    () => keep(files, random, (path) => truncateSync(join(root, path), random.below(1 + statSync(join(root, path)).size))),
    () => keep(files, random, (path) => {
      const fd = openSync(join(root, path), 'r+')
      try {
        writeSync(fd, random.bytes(random.below(20_000)), 0, undefined, random.below(1 + statSync(join(root, path)).size))
      } finally {
        closeSync(fd)
      }
    }),
  ]
  for (let round = 0; round < rounds; round++) {
    for (let count = random.between(5, 30); count > 0; count--) {
      try {
        ;(random.chance(0.4) ? steps[0] : random.pick(steps))()
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error
      }
    }
    if (round === rounds >> 1 && fillBytes > 0) fillAndThin(root, fillBytes)
  }
}

/** Fills what is free with small files, and removes every other: what is written next is in pieces. */
function fillAndThin(root: string, bytes: number): void {
  const piece = Buffer.alloc(12_000, 'filler')
  const made: string[] = []
  try {
    for (let written = 0; written < bytes; written += piece.length) {
      const file = join(root, `filler ${made.length}`)
      made.push(file)
      writeFileSync(file, piece)
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error
  }
  for (const [index, file] of made.entries()) if (index % 2 === 0) rmSync(file)
}

function take(files: string[], random: Random, use: (path: string) => void): void {
  if (files.length > 0) use(files.splice(random.below(files.length), 1)[0])
}

function keep(files: string[], random: Random, use: (path: string) => void): void {
  if (files.length > 0) use(random.pick(files))
}
