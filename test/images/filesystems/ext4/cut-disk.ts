/**
 * CutDisk: an ext4 filesystem of the kernel under load, whose disk can be had as a power cut would leave it. Its disk is a file on XFS, and a cut is a
 * clone of that file (FICLONE): XFS takes no write meanwhile, so that it holds every write that the kernel was told is done, whole, and no other.
 */
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { once } from 'node:events'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** Sparse; XFS takes no less than 300 MiB. */
const STORE_BYTES = 8 * 2 ** 30

export interface CutDiskOptions {
  /** Options of mke2fs. */
  make: readonly string[]
  mount: string
  sizeBytes: number
  seed: number
}

/** Where clones are kept: an XFS of its own, mounted through a loop device. */
export class CloneStore implements Disposable {
  readonly #directory = mkdtempSync(join(tmpdir(), 'varve-cut-'))
  readonly path = join(this.#directory, 'store')
  readonly mountPoint = join(this.#directory, 'mnt')
  #count = 0

  constructor() {
    mkdirSync(this.path)
    mkdirSync(this.mountPoint)
    const image = join(this.#directory, 'store.xfs')
    writeFileSync(image, '')
    truncateSync(image, STORE_BYTES)
    execFileSync('mkfs.xfs', ['-q', '-m', 'reflink=1', image])
    execFileSync('mount', ['-o', 'loop', image, this.path])
  }

  newPath(): string {
    return join(this.path, `disk${this.#count++}`)
  }

  clone(path: string): string {
    const copy = this.newPath()
    execFileSync('cp', ['--reflink=always', path, copy])
    return copy
  }

  /** Mounts a filesystem read-only, which replays its journal, on a disk that can be written; @returns undefined if the kernel refuses it */
  mounted<Result>(path: string, act: (directory: string) => Result): Result | undefined {
    const loop = execFileSync('losetup', ['-f', '--show', path], { encoding: 'utf8' }).trim()
    try {
      if (spawnSync('mount', ['-o', 'ro', loop, this.mountPoint]).status !== 0) return undefined
      try {
        return act(this.mountPoint)
      } finally {
        execFileSync('umount', [this.mountPoint])
      }
    } finally {
      execFileSync('losetup', ['-d', loop])
    }
  }

  [Symbol.dispose](): void {
    spawnSync('umount', ['-l', this.path])
    rmSync(this.#directory, { recursive: true, force: true })
  }
}

export class CutDisk implements AsyncDisposable {
  readonly #store: CloneStore
  readonly #path: string
  readonly #process: ChildProcess

  private constructor(store: CloneStore, path: string, process: ChildProcess) {
    this.#store = store
    this.#path = path
    this.#process = process
  }

  static async start(store: CloneStore, { make, mount, sizeBytes, seed }: CutDiskOptions): Promise<CutDisk> {
    const path = store.newPath()
    writeFileSync(path, '')
    truncateSync(path, sizeBytes)
    execFileSync('mke2fs', ['-q', '-F', ...make, path], { stdio: ['ignore', 'ignore', 'inherit'] })
    execFileSync('mount', ['-o', `loop,${mount}`, path, store.mountPoint])
    const aging = spawn(process.execPath, [new URL('aging-process.ts', import.meta.url).pathname, store.mountPoint, String(seed)], { stdio: ['pipe', 'pipe', 'inherit'] })
    const disk = new CutDisk(store, path, aging)
    await Promise.race([once(aging.stdout, 'data'), once(aging, 'exit').then(() => Promise.reject(new Error('the process that ages the disk has ended')))])
    return disk
  }

  /** @returns the path of the disk as it was at one moment */
  cut(): string {
    return this.#store.clone(this.#path)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.stdin!.end()
    if (this.#process.exitCode === null) await once(this.#process, 'exit')
    execFileSync('umount', [this.#store.mountPoint])
  }
}
