/**
 * Images of ext4 for tests: made by our writer, judged by e2fsck, mounted by the kernel.
 */
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ext4SizeBytes, writeExt4 } from '@varve/images/filesystems/ext4/writer.ts'
import type { Ext4Figures, Ext4Options } from '@varve/images/filesystems/ext4/writer.ts'
import type { BuiltTree } from '../memory-tree.ts'
import { RawImageSink } from '../raw-image-sink.ts'

/** Linux and ext4 keep times in this range. */
const TIME_MIN = -(2 ** 31)
const TIME_MAX = 2 ** 34 - 2 ** 31 - 1

export const OPTIONS: Omit<Ext4Options, 'sizeBytes'> = {
  uuid: Buffer.from('0f1e2d3c4b5a69788796a5b4c3d2e1f0', 'hex'),
  hashSeed: Buffer.from('00112233445566778899aabbccddeeff', 'hex'),
  label: 'varve',
  timeSeconds: 1_700_000_000,
}

export class Ext4Image implements Disposable {
  readonly #directory = mkdtempSync(join(tmpdir(), 'varve-ext4-'))
  readonly path = join(this.#directory, 'image')
  readonly mountPoint = this.#directory + '/mnt'
  readonly figures: Ext4Figures
  readonly sink: RawImageSink
  #mounted = false

  constructor(built: BuiltTree, options: Partial<Ext4Options> = {}) {
    const sizeBytes = options.sizeBytes ?? ext4SizeBytes(built.tree, { freeBytes: 64 << 20 })
    this.sink = new RawImageSink(this.path, sizeBytes, built.content)
    try {
      this.figures = writeExt4(built.tree, this.sink, { ...OPTIONS, ...options, sizeBytes })
    } catch (error) {
      this[Symbol.dispose]()
      throw error
    } finally {
      this.sink.close()
    }
    execFileSync('mkdir', [this.mountPoint])
  }

  /** e2fsck finds nothing to fix, nor to optimize, nor to remark. @param allowed remarks that are no fault of ours */
  check(allowed?: RegExp): void {
    const { status, stdout, stderr } = spawnSync('e2fsck', ['-fn', this.path], { encoding: 'utf8', maxBuffer: 1 << 28 })
    const remarks = stdout.split('\n').filter((line) => line !== '' && !/^Pass \d: |^varve: \d+\/\d+ files /.test(line) && allowed?.test(line) !== true)
    assert.deepEqual({ status, remarks: remarks.slice(0, 20), stderr: stderr.replace(/^e2fsck [^\n]*\n/, '') }, { status: 0, remarks: [], stderr: '' })
  }

  mount(mode: 'ro' | 'rw'): string {
    execFileSync('mount', ['-t', 'ext4', '-o', `loop,${mode}`, this.path, this.mountPoint])
    this.#mounted = true
    return this.mountPoint
  }

  unmount(): void {
    execFileSync('umount', [this.mountPoint])
    this.#mounted = false
  }

  /** Answer of debugfs to one request. */
  debugfs(request: string): string {
    return execFileSync('debugfs', ['-R', request, this.path], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'], maxBuffer: 1 << 28 })
  }

  [Symbol.dispose](): void {
    if (this.#mounted) spawnSync('umount', ['-l', this.mountPoint])
    rmSync(this.#directory, { recursive: true, force: true })
  }
}

/** Time as ext4 keeps it, nanoseconds. */
export function ext4Time(seconds: number, nanoseconds: number): bigint {
  if (seconds < TIME_MIN) return BigInt(TIME_MIN) * 1_000_000_000n
  if (seconds > TIME_MAX) return BigInt(TIME_MAX) * 1_000_000_000n
  return BigInt(seconds) * 1_000_000_000n + BigInt(nanoseconds)
}
