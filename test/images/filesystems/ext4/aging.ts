/**
 * Ages a mounted filesystem by random calls: fills, deletes, fragments, renames, links, punches holes, allocates what is not written, keeps what was
 * deleted open. The same seed makes the same calls; what the kernel makes of them on the disk is its own.
 */
import fs from 'node:fs'
import { execFileSync } from 'node:child_process'
import { allocate, punchHole } from '@varve/images/native/libc.ts'
import type { Random } from '../../../random.ts'

const FILES_MAX = 1500
const DIRECTORIES_MAX = 80
/** Files that have no name any more. */
const OPEN_MAX = 8
const FILE_BYTES_MAX = 3 << 20
/** What the kernel may say of a full filesystem, or of names that are too many. */
const ALLOWED = new Set(['ENOSPC', 'EMLINK', 'EEXIST', 'ENOTEMPTY', 'EFBIG'])

export interface AgingOptions {
  /** Files are synchronized now and then: commits the journal. */
  syncs?: boolean
  xattrs?: boolean
}

export class Aging {
  readonly #root: string
  readonly #random: Random
  readonly #options: AgingOptions
  readonly #content: Buffer
  #directories: string[] = ['']
  #files: string[] = []
  readonly #open: number[] = []
  #counter = 0

  constructor(root: string, random: Random, options: AgingOptions = {}) {
    this.#root = root
    this.#random = random
    this.#options = options
    this.#content = random.bytes(1 << 20)
  }

  /** One call, or a few that belong together. */
  step(): void {
    const calls: [number, () => void][] = [
      [30, () => this.#create()],
      [14, () => this.#write()],
      [6, () => this.#truncate()],
      [5, () => this.#punch()],
      [5, () => this.#allocate()],
      [12, () => this.#unlink()],
      [8, () => this.#rename()],
      [4, () => this.#link()],
      [4, () => this.#symlink()],
      [5, () => this.#makeDirectory()],
      [2, () => this.#removeDirectory()],
      [1, () => this.#many()],
      [1, () => this.#special()],
      [4, () => this.#attributes()],
      [3, () => this.#keepOpen()],
      [2, () => this.#times()],
    ]
    let pick = this.#random.below(calls.reduce((sum, [weight]) => sum + weight, 0))
    const call = calls.find(([weight]) => (pick -= weight) < 0)![1]
    try {
      call()
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      if (!ALLOWED.has(code ?? '')) throw error
      if (code === 'ENOSPC') for (let count = 10; count > 0 && this.#files.length > 0; count--) this.#unlink()
    }
  }

  /** Closes what is open without a name. */
  close(): void {
    for (const fd of this.#open.splice(0)) fs.closeSync(fd)
  }

  #path(path: string): string {
    return `${this.#root}/${path}`
  }

  #newPath(): string {
    const directory = this.#random.pick(this.#directories)
    const name = `${this.#random.chance(0.05) ? 'ä'.repeat(this.#random.between(1, 100)) : this.#random.pick(['a', 'file', 'a longer name of a file', 'x.y'])}${this.#counter++}`
    return directory === '' ? name : `${directory}/${name}`
  }

  #create(): void {
    if (this.#files.length >= FILES_MAX) return this.#unlink()
    const path = this.#newPath()
    const length = this.#random.pick([0, 10, 100, 155, 1000, 4096, 5000, 20_000, 60_000, 300_000])
    const fd = fs.openSync(this.#path(path), 'wx')
    this.#files.push(path)
    this.#within(fd, () => {
      this.#put(fd, 0, this.#random.below(length + 1))
      if (this.#random.chance(0.1)) fs.fchownSync(fd, this.#random.below(2 ** 32 - 2), this.#random.below(70_000))
      if (this.#random.chance(0.3)) fs.fchmodSync(fd, this.#random.below(0o10000))
    })
  }

  /** Random places make holes, and fragments. */
  #write(): void {
    this.#inFile((fd) => {
      const spread = this.#random.pick([20_000, 500_000, FILE_BYTES_MAX])
      for (let count = this.#random.between(1, 6); count > 0; count--) this.#put(fd, this.#random.below(spread), this.#random.between(1, 30_000))
      if (this.#random.chance(0.02)) this.#put(fd, this.#random.pick([2 ** 31, 2 ** 32 + 12_345, 2 ** 33]) + this.#random.below(1e6), 5000)
    })
  }

  #truncate(): void {
    this.#inFile((fd) => fs.ftruncateSync(fd, this.#random.below(this.#random.pick([200, 5000, 100_000, FILE_BYTES_MAX]))))
  }

  #punch(): void {
    this.#inFile((fd) => void punchHole(fd, this.#random.below(500_000), this.#random.between(1, 200_000)))
  }

  /** Blocks that are not written. */
  #allocate(): void {
    this.#inFile((fd) => void allocate(fd, this.#random.below(FILE_BYTES_MAX), this.#random.between(1, 400_000)))
  }

  #unlink(): void {
    if (this.#files.length > 0) fs.unlinkSync(this.#path(this.#files.splice(this.#random.below(this.#files.length), 1)[0]))
  }

  /** Perhaps over another file, or a directory with all below it. */
  #rename(): void {
    if (this.#files.length === 0) return
    if (this.#random.chance(0.15) && this.#directories.length > 1) {
      const from = this.#random.pick(this.#directories.slice(1))
      const to = `moved${this.#counter++}`
      fs.renameSync(this.#path(from), this.#path(to))
      const moved = (path: string): string => (path === from || path.startsWith(`${from}/`) ? to + path.slice(from.length) : path)
      this.#directories = this.#directories.map(moved)
      this.#files = this.#files.map(moved)
      return
    }
    const index = this.#random.below(this.#files.length)
    const over = this.#random.chance(0.3) ? this.#random.below(this.#files.length) : -1
    const to = over >= 0 ? this.#files[over] : this.#newPath()
    if (to === this.#files[index]) return
    const isSame = over >= 0 && fs.lstatSync(this.#path(to)).ino === fs.lstatSync(this.#path(this.#files[index])).ino
    fs.renameSync(this.#path(this.#files[index]), this.#path(to))
    // Two names of one file stay both.
    if (isSame) return
    this.#files[index] = to
    if (over >= 0) this.#files.splice(over, 1)
  }

  #link(): void {
    if (this.#files.length === 0) return
    const path = this.#newPath()
    fs.linkSync(this.#path(this.#random.pick(this.#files)), this.#path(path))
    this.#files.push(path)
  }

  #symlink(): void {
    const path = this.#newPath()
    fs.symlinkSync('t'.repeat(this.#random.pick([1, 20, 59, 60, 61, 150, 900, 1020])), this.#path(path))
    this.#files.push(path)
  }

  #makeDirectory(): void {
    if (this.#directories.length >= DIRECTORIES_MAX) return
    const path = this.#newPath()
    fs.mkdirSync(this.#path(path), this.#random.pick([0o755, 0o1777, 0o700]))
    this.#directories.push(path)
  }

  /** With all below it. */
  #removeDirectory(): void {
    if (this.#directories.length < 10) return
    const path = this.#random.pick(this.#directories.slice(1))
    fs.rmSync(this.#path(path), { recursive: true, force: true })
    const isLeft = (other: string): boolean => other !== path && !other.startsWith(`${path}/`)
    this.#directories = this.#directories.filter(isLeft)
    this.#files = this.#files.filter(isLeft)
  }

  /** So many names that the directory gets an index, and holes in its blocks. */
  #many(): void {
    const directory = this.#random.pick(this.#directories)
    const count = this.#random.between(50, 500)
    const first = this.#counter
    this.#counter += count
    const at = (number: number): string => `${directory === '' ? '' : `${directory}/`}one of many ${number}`
    for (let number = first; number < first + count; number++) fs.closeSync(fs.openSync(this.#path(at(number)), 'wx'))
    for (let number = first; number < first + count; number++) {
      if (this.#files.length >= FILES_MAX || this.#random.chance(0.6)) fs.unlinkSync(this.#path(at(number)))
      else this.#files.push(at(number))
    }
  }

  #special(): void {
    const path = this.#newPath()
    const device = this.#random.chance(0.5) ? [this.#random.below(256), this.#random.below(256)] : [this.#random.below(4096), this.#random.below(1 << 20)]
    const kind = this.#random.pick(['c', 'b', 'p'])
    execFileSync('mknod', [this.#path(path), kind, ...(kind === 'p' ? [] : device.map(String))])
    this.#files.push(path)
  }

  /** Of some files, lengths that stand in the inode, in a block, and in inodes of their own where there are such. */
  #attributes(): void {
    if (this.#options.xattrs !== true || this.#files.length === 0) return
    const text = Array.from({ length: this.#random.between(1, 8) }, () => {
      const path = this.#path(this.#random.pick([...this.#files, ...this.#directories]))
      const lines = Array.from({ length: this.#random.between(1, 4) }, () => {
        const name = `${this.#random.pick(['trusted', 'security'])}.${'n'.repeat(this.#random.pick([1, 9, 90]))}${this.#random.below(5)}`
        return `${name}=0x${this.#random.bytes(this.#random.pick([0, 1, 20, 90, 400, 1200, 5000])).toString('hex')}`
      })
      return `# file: ${path}\n${lines.join('\n')}\n\n`
    })
    try {
      execFileSync('setfattr', ['-h', '--restore=-'], { input: text.join(''), stdio: ['pipe', 'ignore', 'ignore'] })
    } catch {
      // What does not fit was refused.
    }
  }

  #keepOpen(): void {
    this.#inFile((_, path) => {
      if (this.#open.length === OPEN_MAX) fs.closeSync(this.#open.shift()!)
      const kept = fs.openSync(this.#path(path), 'r+')
      this.#open.push(kept)
      fs.unlinkSync(this.#path(path))
      this.#files.splice(this.#files.indexOf(path), 1)
      this.#put(kept, 0, this.#random.below(100_000))
    })
  }

  #times(): void {
    if (this.#files.length === 0) return
    const time = this.#random.pick([-1_000_000_000, 0, 1, 2 ** 31 - 1, 2 ** 31, 2 ** 32 + 5, 2 ** 33 + 7, 2 ** 34 - 2 ** 31 - 1]) + this.#random.below(1000) / 1000
    fs.lutimesSync(this.#path(this.#random.pick(this.#files)), time, time / 2)
  }

  #inFile(act: (fd: number, path: string) => void): void {
    if (this.#files.length === 0) return
    const path = this.#random.pick(this.#files)
    if (!fs.lstatSync(this.#path(path)).isFile()) return
    const fd = fs.openSync(this.#path(path), 'r+')
    this.#within(fd, () => act(fd, path))
  }

  #within(fd: number, act: () => void): void {
    try {
      act()
      if (this.#options.syncs === true && this.#random.chance(0.15)) fs.fsyncSync(fd)
    } finally {
      fs.closeSync(fd)
    }
  }

  #put(fd: number, offset: number, length: number): void {
    const from = this.#random.below(this.#content.length - length + 1)
    fs.writeSync(fd, this.#content, from, length, offset)
  }
}
