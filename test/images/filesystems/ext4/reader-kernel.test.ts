/**
 * Filesystems that the kernel has filled and aged are read as it shows them, with all sets of features that mke2fs makes; those that it does not mount
 * (blocks larger than its pages) as mke2fs has filled them. VARVE_EXT4_STEPS: calls that age each; 10000 is a thorough run.
 */
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { FileDevice } from '@varve/images/device/file-device.ts'
import { openExt4 } from '@varve/images/filesystems/ext4/filesystem.ts'
import type { Ext4Filesystem } from '@varve/images/filesystems/ext4/filesystem.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import { Random, testSeed } from '../../../random.ts'
import { checkFilesystem } from '../conformance.ts'
import { modelOf } from '../model.ts'
import { Aging } from './aging.ts'

const STEPS = Number(process.env.VARVE_EXT4_STEPS ?? 500)
const MIB = 2 ** 20
const SETS: readonly string[][] = [
  ['-t', 'ext4'],
  ['-t', 'ext4', '-b', '4096', '-O', 'inline_data,large_dir,ea_inode', '-I', '512'],
  ['-t', 'ext4', '-b', '1024', '-O', 'inline_data,metadata_csum_seed,orphan_file'],
  ['-t', 'ext4', '-b', '2048', '-O', '^extent,^64bit'],
  ['-t', 'ext4', '-b', '1024', '-O', 'meta_bg,^resize_inode,sparse_super2', '-g', '4096'],
  ['-t', 'ext4', '-b', '1024', '-O', '^metadata_csum,uninit_bg,^flex_bg', '-N', '20000'],
  ['-t', 'ext4', '-b', '4096', '-O', '^has_journal,^64bit', '-E', 'packed_meta_blocks=1'],
  ['-t', 'ext4', '-b', '1024', '-I', '128', '-O', '^resize_inode,ea_inode,^dir_nlink'],
  ['-t', 'ext3', '-b', '4096'],
  ['-t', 'ext2', '-b', '1024', '-O', '^sparse_super,^resize_inode'],
  ['-t', 'ext2', '-r', '0', '-b', '1024'],
]

const directory = fs.mkdtempSync(join(tmpdir(), 'varve-ext4-kernel-'))
const image = join(directory, 'image')
const mountPoint = join(directory, 'mnt')
fs.mkdirSync(mountPoint)
after(() => {
  spawnSync('umount', ['-l', mountPoint])
  fs.rmSync(directory, { recursive: true, force: true })
})
const seed = testSeed()

/** @param options of mke2fs; `-d DIRECTORY` is among them */
function makeImage(sizeBytes: number, options: readonly string[]): void {
  fs.rmSync(image, { force: true })
  fs.writeFileSync(image, '')
  fs.truncateSync(image, sizeBytes)
  execFileSync('mke2fs', ['-q', '-F', ...options, image], { stdio: ['ignore', 'ignore', 'pipe'] })
}

function mounted(mode: 'ro' | 'rw', act: () => void): void {
  execFileSync('mount', ['-o', `loop,${mode}`, image, mountPoint])
  try {
    act()
  } finally {
    execFileSync('umount', [mountPoint])
  }
}

/** Blocks that dumpe2fs counts as free are those that are said to be unused. */
async function checkFreeBlocks(filesystem: Ext4Filesystem): Promise<void> {
  const counted = execFileSync('dumpe2fs', [image], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'], maxBuffer: 1 << 28 })
  const free = [...counted.matchAll(/^ {2}(\d+) free blocks/gm)].reduce((sum, [, count]) => sum + Number(count), 0)
  let unused = 0
  for await (const { length } of filesystem.unused()) unused += length / filesystem.blockBytes
  assert.equal(unused, free)
}

for (const [index, options] of SETS.entries()) {
  test(`mke2fs ${options.join(' ')}: aged by the kernel, it is read as the kernel shows it (seed ${seed})`, async () => {
    makeImage(64 * MIB, options)
    mounted('rw', () => {
      const aging = new Aging(mountPoint, new Random(seed + index), { xattrs: true })
      for (let step = 0; step < STEPS; step++) aging.step()
      aging.close()
    })
    let model: ReturnType<typeof modelOf> = []
    mounted('ro', () => (model = modelOf(mountPoint, { allTimes: true, data: true })))
    await using volume = FileDevice.open({ path: image, readOnly: true })
    const filesystem = await openExt4(volume)
    assert.deepEqual([filesystem.unclean, filesystem.notices], [false, []])
    await checkFilesystem({ filesystem, model, volume }, seed)
    await checkFreeBlocks(filesystem)
  })
}

test(`blocks of 8 to 64 KiB, which the kernel here does not mount, are read as mke2fs filled them (seed ${seed})`, async () => {
  const source = join(directory, 'source')
  fs.mkdirSync(source)
  const aging = new Aging(source, new Random(seed + 100))
  for (let step = 0; step < STEPS; step++) aging.step()
  aging.close()
  fs.mkdirSync(join(source, 'many'))
  for (let number = 0; number < 3000; number++) fs.writeFileSync(join(source, 'many', `a name that is long enough for an index ${number}`), '')
  // mke2fs copies times without their fractions, and up to 2038; a symlink of several names becomes several.
  const model = modelOf(source)
  for (const entry of model) Object.assign(entry, { inode: undefined, modified: undefined, ...(entry.path === '' ? { mode: undefined } : {}), ...(entry.kind === Kind.symlink ? { links: 1 } : {}) })
  for (const blockBytes of [8192, 65536]) {
    for (const features of ['metadata_csum', '^metadata_csum', '^extent,^64bit']) {
      makeImage(512 * MIB, ['-t', 'ext4', '-b', String(blockBytes), '-O', features, '-d', source])
      await using volume = FileDevice.open({ path: image, readOnly: true })
      const filesystem = await openExt4(volume)
      assert.equal(filesystem.blockBytes, blockBytes)
      const found = [...model, { path: 'lost+found', kind: model[0].kind }]
      await checkFilesystem({ filesystem, model: found, volume }, seed)
      await checkFreeBlocks(filesystem)
    }
  }
})
