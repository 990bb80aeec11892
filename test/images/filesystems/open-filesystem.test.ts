/** Filesystems are known by their content, and what is none is not taken for one. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, truncateSync, writeFileSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { FileDevice } from '@varve/images/device/file-device.ts'
import { MemoryDevice } from '@varve/images/device/memory-device.ts'
import { isVarveError } from '@varve/images/errors.ts'
import { openFilesystem } from '@varve/images/filesystems/open-filesystem.ts'
import { Random, testSeed } from '../../random.ts'

const MIB = 1 << 20
const directory = mkdtempSync(join(tmpdir(), 'varve-open-'))
after(() => rmSync(directory, { recursive: true }))
let images = 0

/** An image that `make` has written to; the path is its last argument. */
function imageOf(sizeBytes: number, make?: readonly string[]): string {
  const path = join(directory, `${images++}`)
  writeFileSync(path, '')
  truncateSync(path, sizeBytes)
  if (make !== undefined) execFileSync(make[0], [...make.slice(1), path], { stdio: ['ignore', 'ignore', 'ignore'] })
  return path
}

async function typeOf(path: string): Promise<string | undefined> {
  await using device = FileDevice.open({ path, readOnly: true })
  return (await openFilesystem(device))?.type
}

function put(path: string, offset: number, bytes: Uint8Array): void {
  const fd = openSync(path, 'r+')
  writeSync(fd, bytes, 0, bytes.length, offset)
  closeSync(fd)
}

const MAKERS: [type: string, sizeBytes: number, make: string[]][] = [
  ['fat12', 720 << 10, ['mkfs.fat', '-F', '12']],
  ['fat16', 16 * MIB, ['mkfs.fat', '-F', '16']],
  ['fat32', 40 * MIB, ['mkfs.fat', '-F', '32']],
  ['fat12', 1440 << 10, ['mformat', '-f', '1440', '-i']],
  ['exfat', 8 * MIB, ['mkfs.exfat']],
  ['ntfs', 8 * MIB, ['mkntfs', '-F', '-f']],
  ['ext4', 8 * MIB, ['mkfs.ext4', '-F']],
  ['ext4', 8 * MIB, ['mkfs.ext2', '-F', '-b', '1024']],
]

test('what the tools make is known', async () => {
  for (const [type, sizeBytes, make] of MAKERS) {
    // mformat has its path in the middle.
    const path = make[0] === 'mformat' ? imageOf(sizeBytes) : imageOf(sizeBytes, make)
    if (make[0] === 'mformat') execFileSync('mformat', ['-f', '1440', '-i', path, '::'])
    assert.equal(await typeOf(path), type, make.join(' '))
  }
})

test('what is formatted again is what it was made last', async () => {
  for (const [, , before] of MAKERS) {
    for (const [type, sizeBytes, make] of MAKERS) {
      if (before[0] === 'mformat' || make[0] === 'mformat' || sizeBytes < 8 * MIB) continue
      const path = imageOf(40 * MIB, before)
      execFileSync(make[0], [...make.slice(1), path], { stdio: ['ignore', 'ignore', 'ignore'] })
      assert.equal(await typeOf(path), type, `${before.join(' ')}, then ${make.join(' ')}`)
      rmSync(path)
    }
  }
})

test('exFAT whose first sector was overwritten is known by its backup, and one that swap was made on is none', async () => {
  const path = imageOf(8 * MIB, ['mkfs.exfat'])
  put(path, 0, Buffer.alloc(512))
  assert.equal(await typeOf(path), 'exfat')
  const swap = imageOf(8 * MIB, ['mkfs.exfat'])
  execFileSync('mkswap', ['-f', swap], { stdio: 'ignore' })
  assert.equal(await typeOf(swap), undefined)
})

test('what is no filesystem, or one that is not read, is undefined', async () => {
  const seed = testSeed()
  const random = new Random(seed)
  assert.equal(await openFilesystem(new MemoryDevice(0)), undefined)
  for (const sizeBytes of [1, 511, 512, 1081, 4096, MIB]) {
    assert.equal(await openFilesystem(new MemoryDevice(sizeBytes)), undefined)
    assert.equal(await openFilesystem(MemoryDevice.of(random.bytes(sizeBytes))), undefined, `seed ${seed}`)
  }
  for (const [sizeBytes, make] of [[8 * MIB, ['mkswap']], [320 * MIB, ['mkfs.xfs']], [8 * MIB, ['sgdisk', '-n', '1:2048:+4M']]] as const) assert.equal(await typeOf(imageOf(sizeBytes, make)), undefined, make.join(' '))
  // The boot sector of GRUB, and what BitLocker makes of a volume: both look like FAT in part.
  const grub = imageOf(MIB)
  put(grub, 0, readFileSync('/usr/lib/grub/i386-pc/boot.img'))
  assert.equal(await typeOf(grub), undefined)
  const locked = imageOf(16 * MIB, ['mkfs.fat', '-F', '16'])
  put(locked, 3, Buffer.from('-FVE-FS-'))
  assert.equal(await typeOf(locked), undefined)
})

test('a table of FAT that has the magic number of ext4 by chance is FAT', async () => {
  const path = imageOf(16 * MIB, ['mkfs.fat', '-F', '16', '-a', '-R', '1'])
  put(path, 1024 + 0x38, Uint8Array.of(0x53, 0xef))
  assert.equal(await typeOf(path), 'fat16')
})

test('what says that it is a filesystem and is damaged is refused, not taken for none', async () => {
  for (const [type, sizeBytes, make] of MAKERS.filter(([type]) => type !== 'fat12')) {
    const path = imageOf(sizeBytes, make)
    truncateSync(path, sizeBytes / 2)
    await assert.rejects(typeOf(path), (error) => isVarveError(error, 'FORMAT_INVALID'), type)
  }
})
