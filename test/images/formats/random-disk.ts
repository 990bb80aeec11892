/**
 * Random raw disks from a seed: sparse files with patches of random and repeated content, and zeroes written out; and random changes to images, by qemu-io.
 */
import { execFileSync } from 'node:child_process'
import { closeSync, ftruncateSync, openSync, writeSync } from 'node:fs'
import type { Random } from '../../random.ts'

export interface RandomDiskOptions {
  sizeBytesMax?: number
  patchesMax?: number
}

/** A disk of sectors, from one to `sizeBytesMax` bytes: mostly a few MiB, sometimes all of it with little in it. @returns bytes */
export function randomDiskBytes(random: Random, { sizeBytesMax = 96 << 20 }: RandomDiskOptions = {}): number {
  const bytes = random.pick([random.between(1, 4096), random.between(1, 8 << 20), random.between(1, 8 << 20), (1 << 20) * random.between(1, 32), random.between(1, sizeBytesMax)])
  return Math.max(512, Math.min(sizeBytesMax, Math.ceil(bytes / 512) * 512))
}

/** Writes a sparse file with random content. @returns its size, bytes */
export function writeRandomDisk(random: Random, path: string, options: RandomDiskOptions = {}): number {
  const sizeBytes = randomDiskBytes(random, options)
  const fd = openSync(path, 'wx')
  try {
    ftruncateSync(fd, sizeBytes)
    for (let left = random.below(options.patchesMax ?? 40); left > 0; left--) {
      const { offset, length } = randomPatch(random, sizeBytes)
      const content = randomContent(random, length)
      for (let at = 0; at < length;) at += writeSync(fd, content, at, length - at, offset + at)
    }
  } finally {
    closeSync(fd)
  }
  return sizeBytes
}

/** Where many patches lie, one over another. */
const BUSY_BYTES = 300_000

/** Patches lie anywhere, or on the borders that formats care for, or at the disk's end, or in its busy part, a third of the way in. */
export function randomPatch(random: Random, sizeBytes: number): { offset: number; length: number } {
  const unit = random.pick([1, 512, 4096, 65_536, 2 << 20])
  const anywhere = random.chance(0.6) ? random.below(sizeBytes) : Math.floor(sizeBytes / 3) + random.below(Math.min(sizeBytes, BUSY_BYTES) / 3)
  const offset = random.chance(0.1) ? Math.max(0, sizeBytes - random.between(1, 70_000)) : Math.floor(anywhere / unit) * unit
  const length = random.pick([random.between(1, 512), 512, 4096, random.between(1, 70_000), 65_536, random.between(1, 500_000)])
  return { offset, length: Math.min(length, sizeBytes - offset) }
}

function randomContent(random: Random, length: number): Buffer {
  const kind = random.below(5)
  if (kind === 0) return Buffer.alloc(length)
  if (kind === 1) return Buffer.alloc(length, random.bytes(random.between(1, 600)))
  if (kind === 2) return Buffer.alloc(length, random.between(1, 255))
  const content = random.bytes(length)
  // Zeroes in the middle of what is not.
  if (kind === 3) content.fill(0, random.below(length), random.below(length))
  return content
}

export interface RandomChangesOptions {
  count: number
  /** Further options of qemu-io. */
  options?: string[]
  /** What the format can do. */
  zeroes?: boolean
  discards?: boolean
}

/** Changes an image at random: writes, zeroes with and without a cluster, discards. */
export function changeWithQemuIo(random: Random, image: string, format: string, sizeBytes: number, { count, options = [], zeroes = true, discards = true }: RandomChangesOptions): void {
  const commands: string[] = []
  for (let left = count; left > 0; left--) {
    const { offset, length } = randomPatch(random, sizeBytes)
    const kinds = [`write -P ${random.between(1, 255)}`, `write -P ${random.between(1, 255)}`]
    if (zeroes) kinds.push('write -z', 'write -z -u')
    if (discards) kinds.push('discard')
    commands.push('-c', `${random.pick(kinds)} ${offset} ${length}`)
  }
  execFileSync('qemu-io', ['-f', format, ...options, ...commands, image], { stdio: ['ignore', 'pipe', 'pipe'] })
}
