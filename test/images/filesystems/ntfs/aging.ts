/** What users do to a filesystem, at random: fill, append, overwrite, punch, cut, rename, link, delete; with all that NTFS has beside files. */
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import { join } from 'node:path'
import type { Random } from '../../../random.ts'

const COMPRESSED = 0x800
const FILE_ATTRIBUTES = [0x20, 0x21, 0x22, 0x2020, 0x80]
const NAME_PARTS = ['ein langer Name', 'Übung', 'файл', '文件', 'x', '😀 smile', 'readme.TXT', '.hidden', 'a b', 'Ünïcödé', 'trailing.', 'ﬀ', 'ΑΒΓ']

/** Ages what is mounted at `root`. @param steps about so many files are made */
export class Aging {
  readonly #random: Random
  readonly #root: string
  readonly #directories: string[] = ['']
  readonly #files: string[] = []
  readonly #changesCompressed: boolean
  #names = 0

  /** @param options.changesCompressed compressed files are written to again too, over which the driver damages its volume now and then */
  constructor(root: string, random: Random, { changesCompressed }: { changesCompressed: boolean }) {
    this.#root = root
    this.#changesCompressed = changesCompressed
    this.#random = random
    fs.mkdirSync(join(root, 'compressed'))
    setAttributes(join(root, 'compressed'), 0x810)
    this.#directories.push('compressed')
  }

  run(steps: number): void {
    for (let step = 0; step < steps; step++) {
      try {
        this.#step()
      } catch (error) {
        // A full volume, or a rename into itself, is refused by the driver; that is aging too.
        if (!['ENOSPC', 'EINVAL', 'ENOTEMPTY', 'EOPNOTSUPP'].includes((error as NodeJS.ErrnoException).code!)) throw error
      }
    }
  }

  #step(): void {
    const random = this.#random
    const kind = random.below(100)
    if (kind < 45 || this.#files.length === 0) this.#create()
    else if (kind < 50) this.#makeDirectory()
    else if (kind < 72) this.#change(random.pick(this.#files), kind)
    else if (kind < 78) this.#rename()
    else if (kind < 82) this.#link()
    else if (kind < 85) this.#setTimes()
    else if (kind < 88) this.#setStream()
    else if (kind < 90) setAttributes(this.#path(random.pick(this.#files)), random.pick(FILE_ATTRIBUTES))
    else this.#delete()
  }

  #path(path: string): string {
    return join(this.#root, path)
  }

  #newName(): string {
    const name = `${this.#random.pick(NAME_PARTS)} ${this.#names++}`
    return this.#random.chance(0.03) ? name.padEnd(255 - 10, 'n') : name
  }

  #create(): void {
    const path = join(this.#random.pick(this.#directories), this.#newName())
    const kind = this.#random.below(40)
    const sizeBytes = this.#random.chance(0.5) ? this.#random.below(900) : this.#random.below(this.#random.chance(0.1) ? 1_500_000 : 100_000)
    if (kind === 0) fs.symlinkSync(`../${this.#random.pick(NAME_PARTS)}`, this.#path(path))
    else if (kind === 1) execFileSync('mknod', [this.#path(path), 'b', '8', '17'])
    else if (kind === 2) execFileSync('mkfifo', [this.#path(path)])
    else {
      fs.writeFileSync(this.#path(path), this.#content(sizeBytes))
      this.#files.push(path)
    }
  }

  /** Random bytes, text, or zeroes, in turns: so that some of it can be compressed, and some not. */
  #content(sizeBytes: number): Buffer {
    const content = Buffer.alloc(sizeBytes)
    for (let at = 0; at < sizeBytes;) {
      const end = Math.min(sizeBytes, at + this.#random.between(1, 90_000))
      const kind = this.#random.below(3)
      if (kind === 0) this.#random.bytes(end - at).copy(content, at)
      else if (kind === 1) content.fill(`${this.#random.below(1000)} lines of text, `, at, end)
      at = end
    }
    return content
  }

  #change(path: string, kind: number): void {
    if (!this.#changesCompressed && (attributesOf(this.#path(path)) & COMPRESSED) !== 0) return
    if (kind < 60) this.#overwrite(path)
    else if (kind < 68) fs.appendFileSync(this.#path(path), this.#content(this.#random.below(40_000)))
    else fs.truncateSync(this.#path(path), this.#random.below(300_000))
  }

  #overwrite(path: string): void {
    const fd = fs.openSync(this.#path(path), 'r+')
    try {
      const { size } = fs.fstatSync(fd)
      for (let count = this.#random.between(1, 4); count > 0; count--) {
        // Now and then far behind the end, which leaves a hole, or what is not initialized.
        const offset = this.#random.below(this.#random.chance(0.2) ? 3_000_000 : size + 1)
        fs.writeSync(fd, this.#content(this.#random.between(1, 20_000)), 0, undefined, offset)
      }
    } finally {
      fs.closeSync(fd)
    }
  }

  #makeDirectory(): void {
    const path = join(this.#random.pick(this.#directories), this.#newName())
    fs.mkdirSync(this.#path(path))
    this.#directories.push(path)
  }

  #rename(): void {
    const index = this.#random.below(this.#files.length)
    const path = join(this.#random.pick(this.#directories), this.#newName())
    fs.renameSync(this.#path(this.#files[index]), this.#path(path))
    this.#files[index] = path
  }

  #link(): void {
    const path = join(this.#random.pick(this.#directories), this.#newName())
    fs.linkSync(this.#path(this.#random.pick(this.#files)), this.#path(path))
    this.#files.push(path)
  }

  #setTimes(): void {
    const time = (this.#random.below(4_000_000_000) - 1_000_000_000) + this.#random.below(1_000_000) / 1e6
    fs.utimesSync(this.#path(this.#random.pick([...this.#files, ...this.#directories.slice(1)])), time, time)
  }

  #setStream(): void {
    const path = this.#path(this.#random.pick([...this.#files, ...this.#directories]))
    // A value on the command line is at most 128 KiB of hexadecimal digits.
    const value = this.#content(this.#random.below(this.#random.chance(0.8) ? 600 : 60_000))
    execFileSync('setfattr', ['-n', `user.${this.#random.pick(['Zone.Identifier', 'ключ', 'comment'])}`, '-v', `0x${value.toString('hex') || '00'}`, path])
  }

  #delete(): void {
    const index = this.#random.below(this.#files.length)
    fs.unlinkSync(this.#path(this.#files[index]))
    this.#files.splice(index, 1)
  }
}

/** Hidden, system, compressed, ...: bits of FILE_ATTRIBUTE. */
export function setAttributes(path: string, attributes: number): void {
  execFileSync('setfattr', ['-n', 'system.ntfs_attrib_be', '-v', `0x${attributes.toString(16).padStart(8, '0')}`, path])
}

function attributesOf(path: string): number {
  return execFileSync('getfattr', ['--only-values', '--absolute-names', '-n', 'system.ntfs_attrib_be', path]).readUInt32BE(0)
}

/** Deletes every second of many small files, so that what comes next lies in many pieces. */
export function fragment(root: string, random: Random, { files, sizeBytes }: { files: number; sizeBytes: number }): void {
  const directory = join(root, 'fragments')
  fs.mkdirSync(directory)
  for (let index = 0; index < files; index++) fs.writeFileSync(join(directory, `${index}`), random.bytes(sizeBytes))
  for (let index = 0; index < files; index += 2) fs.unlinkSync(join(directory, `${index}`))
}
