/**
 * A directory of files of mixed sizes for crash tests, an archive of it, and a disk that holds it; part of it changes from round to round.
 */
import { execFileSync } from 'node:child_process'
import { appendFileSync, closeSync, linkSync, mkdirSync, openSync, rmSync, writeFileSync, writeSync } from 'node:fs'
import path from 'node:path'
import type { Random } from '../random.ts'

const FILES = 300
const DIRECTORIES = 12
const CHANGES = 15
const SIZES_MAX = [0, 100, 2_000, 2_000, 5_000, 10_000, 20_000, 40_000]
/** Above 256 KiB files are cut by content. */
const LARGE_BYTES_MAX = 400_000
const LARGE_PART = 0.03

export class CrashSource {
  /** As `varve layer import` takes them. */
  readonly directory: string
  readonly archive: string
  readonly disk: string
  readonly #root: string
  readonly #archiveFile: string
  readonly #random: Random
  #renamed = 0

  /** @param scratch where both are made */
  constructor(scratch: string, random: Random) {
    this.#root = path.join(scratch, 'source')
    this.#archiveFile = path.join(scratch, 'source.tar')
    this.directory = `dir:${this.#root}`
    this.archive = `tar:${this.#archiveFile}`
    this.disk = `disk:${scratch}/source.img`
    this.#random = random
    for (let index = 0; index < DIRECTORIES; index++) mkdirSync(path.join(this.#root, `d${index}`), { recursive: true })
    for (let index = 0; index < FILES; index++) this.#write(index)
    for (let index = 0; index < FILES; index += 50) linkSync(this.#file(index), path.join(this.#root, `link${index}`))
    this.#pack()
  }

  /** Changes some files in every way that a file changes, and packs the archive anew. */
  change(): void {
    const random = this.#random
    for (let change = 0; change < CHANGES; change++) {
      const index = random.below(FILES)
      switch (random.below(4)) {
        case 0: this.#write(index); break
        case 1: appendFileSync(this.#file(index), content(random, random.below(20_000))); break
        case 2: this.#patch(index); break
        default: this.#renew(index)
      }
    }
    this.#pack()
  }

  #file(index: number): string {
    return path.join(this.#root, `d${index % DIRECTORIES}`, `file${index}`)
  }

  #write(index: number): void {
    const bytesMax = this.#random.chance(LARGE_PART) ? LARGE_BYTES_MAX : this.#random.pick(SIZES_MAX)
    writeFileSync(this.#file(index), content(this.#random, this.#random.below(bytesMax + 1)))
  }

  /** Within the file, whose size stays if it is long enough. */
  #patch(index: number): void {
    const fd = openSync(this.#file(index), 'r+')
    writeSync(fd, this.#random.bytes(this.#random.between(1, 3000)), 0, undefined, this.#random.below(2000))
    closeSync(fd)
  }

  /** Another inode under the name, and a file more that the next ones replace. */
  #renew(index: number): void {
    rmSync(this.#file(index))
    this.#write(index)
    writeFileSync(path.join(this.#root, `extra${this.#renamed++ % 20}`), content(this.#random, 5000))
  }

  #pack(): void {
    execFileSync('tar', ['--format=posix', '--numeric-owner', '-C', this.#root, '-cf', this.#archiveFile, '.'])
    const file = this.disk.slice('disk:'.length)
    rmSync(file, { force: true })
    execFileSync('mke2fs', ['-q', '-t', 'ext4', '-b', '1024', '-d', this.#root, file, '16M'])
  }
}

/** Bytes of which about half can be compressed away. */
function content(random: Random, length: number): Buffer {
  const bytes = random.bytes(length)
  for (let at = 0; at < length; at += 64) bytes.fill(random.below(4), at, Math.min(at + 32, length))
  return bytes
}
