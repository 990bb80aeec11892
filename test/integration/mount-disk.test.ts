/**
 * Disks of Windows as `varve mount` shows them, from the disk itself and from the layer that it was imported as, against the drivers' own view of the volume.
 * Debian packages: fuse3, mount, dosfstools, mtools, ntfs-3g, attr.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { Kind } from '@varve/images/tree/tree.ts'
import { Aging, fragment } from '../images/filesystems/ntfs/aging.ts'
import { NtfsImage } from '../images/filesystems/ntfs/ntfs-image.ts'
import { FatImage } from '../images/filesystems/fat/fat-image.ts'
import { modelOf } from '../images/filesystems/model.ts'
import type { Model, ModelEntry } from '../images/filesystems/model.ts'
import { Random, testSeed } from '../random.ts'
import { ScratchDirectory, varve } from '../varve-command.ts'
import { VarveMount } from './varve-mount.ts'

/** Small enough that no file has more than a few pieces. */
const FAT_ROUNDS = 4
const NTFS_STEPS = 150
const TREE_HAS_NOT: readonly (keyof ModelEntry)[] = ['accessed', 'changed']

/** What a mount shows of all that the driver knows; the inodes of names are compared as to which are one file. */
function assertShows(directory: string, expected: Model, { without = [], seed }: { without?: readonly (keyof ModelEntry)[]; seed: number }): void {
  const found = new Map(modelOf(directory, { allTimes: true }).map((entry) => [entry.path, entry]))
  assert.deepEqual([...found.keys()].sort(), expected.map(({ path }) => path).sort(), `seed ${seed}`)
  const inodes = new Map<bigint, bigint>()
  for (const { inode, ...wanted } of expected) {
    if (wanted.kind === Kind.directory) wanted.links = undefined
    const known = Object.entries(wanted).filter(([key, value]) => value !== undefined && !without.includes(key as keyof ModelEntry))
    const entry = found.get(wanted.path)!
    assert.deepEqual(Object.fromEntries(known.map(([key]) => [key, entry[key as keyof ModelEntry]])), Object.fromEntries(known), `seed ${seed}: ${JSON.stringify(wanted.path)}`)
    if (inode === undefined) continue
    assert.equal(inodes.get(inode) ?? entry.inode, entry.inode, `seed ${seed}: ${JSON.stringify(wanted.path)} is the file of its other names`)
    inodes.set(inode, entry.inode!)
  }
  assert.equal(new Set(inodes.values()).size, inodes.size)
}

/** The disk, the files of the layer that it becomes, and the disk of that layer. */
async function assertMounts(image: string, model: Model, seed: number): Promise<void> {
  assert.ok(model.length > 20, `seed ${seed}`)
  using scratch = new ScratchDirectory('mount-disk')
  const home = scratch.join('home')
  assert.deepEqual(varve(home, ['layer', 'import', 'volume', `disk:${image}`, '--kind', 'base', '--keep-free']).json.problems, [])
  for (const [what, without] of [[`disk:${image}`, []], ['layer:volume', TREE_HAS_NOT]] as const) {
    await using mounted = await VarveMount.open(home, what, scratch.join('files'))
    assertShows(mounted.directory, model, { without, seed })
    assert.equal(await mounted.unmount(), 0)
    assert.equal(mounted.log, '')
  }
  await using disks = await VarveMount.open(home, 'layer:volume', scratch.join('disks'), { args: ['--disk'] })
  assert.ok(readFileSync(`${disks.directory}/disk.raw`).equals(readFileSync(image)), `seed ${seed}`)
}

test('a disk of FAT is mounted as mtools reads it, and so is the layer that it is imported as', async () => {
  const seed = testSeed()
  using image = new FatImage({ bits: 16, sizeBytes: 16 << 20, sectorsPerCluster: 1 })
  const random = new Random(seed)
  for (let round = 0; round < FAT_ROUNDS; round++) image.age(random, 300_000)
  await assertMounts(image.path, image.model(), seed)
})

test('a disk of NTFS is mounted as ntfs-3g shows it, and so is the layer that it is imported as', async () => {
  const seed = testSeed()
  await using image = new NtfsImage()
  const random = new Random(seed)
  await image.mounted((root) => {
    new Aging(root, random, { changesCompressed: false }).run(NTFS_STEPS)
    fragment(root, random, { files: 40, sizeBytes: 9000 })
  })
  await assertMounts(image.path, await image.model(), seed)
})
