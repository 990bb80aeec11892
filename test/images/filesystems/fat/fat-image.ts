/**
 * FAT volumes in files: made by mkfs.fat, aged with mtools, judged by fsck.fat and by what mtools copies out.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, truncateSync, utimesSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { Kind } from '@varve/images/tree/tree.ts'
import type { Random } from '../../../random.ts'
import { modelOf } from '../model.ts'
import type { Model } from '../model.ts'

export interface FatImageOptions {
  bits: 12 | 16 | 32
  sizeBytes: number
  sectorBytes?: number
  sectorsPerCluster?: number
  fats?: number
}

const ATTRIBUTES = { r: 0x01, h: 0x02, s: 0x04, a: 0x20 } as const
const LETTERS = [...'abcdefXYZ019 _-Ж漢']
/** Of names that are not short: mtools does not put these in lower case, in short ones, as Windows and Linux do. */
const LONG_LETTERS = [...LETTERS, ...'ßéÖ']

export class FatImage implements Disposable {
  readonly directory = mkdtempSync(join(tmpdir(), 'varve-fat-'))
  readonly path = join(this.directory, 'image')
  readonly #files = new Set<string>()
  readonly #directories = ['']
  readonly #folded = new Set<string>()
  #steps = 0

  constructor({ bits, sizeBytes, sectorBytes = 512, sectorsPerCluster, fats = 2 }: FatImageOptions) {
    writeFileSync(join(this.directory, 'mtoolsrc'), 'default_codepage=437\n')
    writeFileSync(this.path, '')
    truncateSync(this.path, sizeBytes)
    execFileSync('mkfs.fat', ['-F', `${bits}`, '-S', `${sectorBytes}`, '-f', `${fats}`, ...(sectorsPerCluster === undefined ? [] : ['-s', `${sectorsPerCluster}`]), '-i', '1234abcd', '-n', 'AGED', '--codepage=437', '--invariant', this.path], { stdio: ['ignore', 'ignore', 'ignore'] })
  }

  mtools(command: string, ...args: string[]): string {
    const env = { ...process.env, TZ: 'UTC', LC_ALL: 'C.UTF-8', MTOOLS_SKIP_CHECK: '1', MTOOLSRC: join(this.directory, 'mtoolsrc') }
    return execFileSync(command, ['-i', this.path, ...args], { env, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'], maxBuffer: 1 << 28 })
  }

  /** As mtools, but it may fail, when the disk is full: what is there in the end counts. */
  #use(command: string, ...args: string[]): boolean {
    try {
      this.mtools(command, ...args)
      return true
    } catch {
      return false
    }
  }

  /** One round of use: copies files in, deletes, renames, overwrites, marks. @param bytesMax of one file */
  age(random: Random, bytesMax: number): void {
    this.#copyIn(random, random.between(1, 30), bytesMax)
    for (let count = random.below(8); count > 0 && this.#files.size > 0; count--) {
      const path = random.pick([...this.#files])
      switch (random.below(5)) {
        case 0:
        case 1:
          this.#remove(path)
          break
        case 2:
          this.#rename(random, path)
          break
        case 3:
          this.#write(path, random, bytesMax)
          break
        default:
          this.#use('mattrib', `${random.pick(['+', '-'])}${random.pick(['r', 'h', 's', 'a'])}`, `::/${path}`)
      }
    }
  }

  fill(): void {
    // Until it is full: the last file does not fit, and mtools leaves it out.
    const file = join(this.directory, 'filler')
    writeFileSync(file, Buffer.alloc(1 << 16, 'filler'))
    for (let index = 0; index < 400 && this.#use('mcopy', file, `::/filler ${index}`); index++) this.#files.add(`filler ${index}`)
  }

  /** Removes every `nth` file. */
  thin(nth: number): void {
    for (const [index, path] of [...this.#files].entries()) if (index % nth === 0) this.#remove(path)
  }

  /** What mtools copies out, and says of attributes. */
  model(): Model {
    const out = join(this.directory, 'out')
    mkdirSync(out)
    this.mtools('mcopy', '-smn', '::/*', out)
    const attributes = new Map<string, number>()
    for (const [, letters, path] of this.mtools('mattrib', '-/', '::').matchAll(/^([ASHR ]{13})::\/(.*)$/gm)) {
      let bits = 0
      for (const letter of letters.toLowerCase().replaceAll(' ', '')) bits |= ATTRIBUTES[letter as keyof typeof ATTRIBUTES]
      attributes.set(Buffer.from(path).toString('latin1'), bits)
    }
    const model = modelOf(out).map(({ path, kind, sizeBytes, contentDigest, modified }) => {
      const isDirectory = kind === Kind.directory
      const bits = attributes.get(path)!
      assert.ok(bits !== undefined, path)
      return {
        path,
        kind,
        sizeBytes,
        contentDigest,
        links: 1,
        modified: isDirectory ? undefined : modified,
        mode: (isDirectory ? 0o755 : 0o644) & ((bits & ATTRIBUTES.r) === 0 ? 0o777 : 0o555),
        xattrs: path === '' ? [] : [{ name: 'user.fat.attributes', value: Buffer.from(`0x${(bits | (isDirectory ? 0x10 : 0)).toString(16).padStart(8, '0')}`) }],
      }
    })
    rmSync(out, { recursive: true })
    return model
  }

  /** fsck.fat finds nothing wrong. @returns number of clusters that are free */
  check(): number {
    const report = execFileSync('fsck.fat', ['-nv', this.path], { encoding: 'utf8' })
    const [, used, clusters] = /sectors total\nChecking for unused clusters\.\n(?:Checking free cluster summary\.\n)?.* \d+ files, (\d+)\/(\d+) clusters\n$/.exec(report) ?? assert.fail(report)
    return Number(clusters) - Number(used)
  }

  [Symbol.dispose](): void {
    rmSync(this.directory, { recursive: true })
  }

  #copyIn(random: Random, count: number, bytesMax: number): void {
    const source = join(this.directory, 'in')
    const parent = random.pick(this.#directories)
    const roots: string[] = []
    let below = ''
    mkdirSync(source)
    for (; count > 0; count--) {
      const name = this.#newName(random, `${parent}${below}`)
      if (name === undefined) continue
      const file = join(source, below, name)
      if (below === '') roots.push(file)
      if (random.chance(0.15)) {
        mkdirSync(file)
        this.#directories.push(`${parent}${below}${name}/`)
        below = random.chance(0.5) ? `${below}${name}/` : below
        continue
      }
      writeFileSync(file, random.bytes(sizeOf(random, bytesMax)))
      const time = random.between(315_532_800, 4_000_000_000)
      utimesSync(file, time, time)
      this.#files.add(`${parent}${below}${name}`)
    }
    if (roots.length > 0) this.#use('mcopy', '-smn', ...roots, `::/${parent}`)
    rmSync(source, { recursive: true })
  }

  #write(path: string, random: Random, bytesMax: number): void {
    const file = join(this.directory, 'one')
    writeFileSync(file, random.bytes(sizeOf(random, bytesMax)))
    this.#use('mcopy', '-o', file, `::/${path}`)
  }

  #rename(random: Random, path: string): void {
    const parent = dirname(path) === '.' ? '' : `${dirname(path)}/`
    const name = this.#newName(random, parent)
    if (name === undefined) return
    if (!this.#use('mren', `::/${path}`, `::/${parent}${name}`)) return
    this.#files.delete(path)
    this.#files.add(`${parent}${name}`)
  }

  #remove(path: string): void {
    this.#use('mattrib', '-r', `::/${path}`)
    this.#use('mdel', `::/${path}`)
    this.#files.delete(path)
  }

  #newName(random: Random, parent: string): string | undefined {
    const isLong = random.chance(0.2)
    const length = isLong ? random.between(15, 90) : random.between(1, 12)
    const name = Array.from({ length }, () => random.pick(isLong ? LONG_LETTERS : LETTERS)).join('').trim() + random.pick([`${this.#steps++}`, `.q${this.#steps++ % 10}`, 'Q', 'x'])
    const fold = `${parent}${name}`.toUpperCase()
    if (this.#folded.has(fold) || name.startsWith('.')) return undefined
    this.#folded.add(fold)
    return name
  }
}

function sizeOf(random: Random, bytesMax: number): number {
  return random.pick([0, 1, 511, 512, 4096, random.below(bytesMax), random.below(bytesMax), random.below(1 + (bytesMax >> 4))])
}
