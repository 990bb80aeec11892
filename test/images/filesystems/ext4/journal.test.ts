/**
 * A filesystem that was not unmounted is read as the kernel reads it after it has replayed its journal: power cuts under load, with all kinds of journals.
 * VARVE_EXT4_CUTS: power cuts of each kind; 100 is a thorough run.
 */
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { closeSync, openSync, writeSync } from 'node:fs'
import { after, describe, test } from 'node:test'
import { setTimeout } from 'node:timers/promises'
import { FileDevice } from '@varve/images/device/file-device.ts'
import { isVarveError } from '@varve/images/errors.ts'
import { CHECKSUM_START, checksumBlock } from '@varve/images/filesystems/ext4/checksum.ts'
import { openExt4 } from '@varve/images/filesystems/ext4/filesystem.ts'
import type { Ext4Filesystem } from '@varve/images/filesystems/ext4/filesystem.ts'
import { Random, testSeed } from '../../../random.ts'
import { checkFilesystem } from '../conformance.ts'
import { modelOf } from '../model.ts'
import type { Model } from '../model.ts'
import { CloneStore, CutDisk } from './cut-disk.ts'

const CUTS = Number(process.env.VARVE_EXT4_CUTS ?? 2)
const MIB = 2 ** 20

/** Journals are small, so that they go round. */
const KINDS: readonly { name: string; make: string[]; mount: string }[] = [
  { name: 'as mke2fs makes it', make: ['-t', 'ext4', '-b', '4096', '-J', 'size=4'], mount: 'data=ordered,commit=1' },
  { name: 'data in the journal, blocks of 1 KiB', make: ['-t', 'ext4', '-b', '1024', '-J', 'size=8'], mount: 'data=journal' },
  { name: 'data written back late', make: ['-t', 'ext4', '-b', '2048', '-O', 'inline_data,ea_inode,orphan_file', '-J', 'size=4'], mount: 'data=writeback' },
  { name: 'ext3, without checksums', make: ['-t', 'ext3', '-b', '4096', '-J', 'size=4'], mount: 'data=journal' },
  { name: 'checksums of transactions (version 1), not awaited', make: ['-t', 'ext4', '-b', '1024', '-O', '^metadata_csum,^64bit', '-J', 'size=4'], mount: 'journal_async_commit,data=writeback' },
]

const seed = testSeed()

describe(`ext4 after a power cut (seed ${seed})`, () => {
  const store = new CloneStore()
  after(() => store[Symbol.dispose]())
  for (const [index, { name, make, mount }] of KINDS.entries()) {
    test(`${name}: what is read is what the kernel replays`, async () => {
      const random = new Random(seed + index)
      const cuts: string[] = []
      {
        await using disk = await CutDisk.start(store, { make, mount, sizeBytes: 64 * MIB, seed: seed + index })
        for (let cut = 0; cut < CUTS; cut++) {
          await setTimeout(random.between(50, 1000))
          cuts.push(disk.cut())
        }
      }
      let replayed = 0
      for (const path of cuts) {
        replayed += await compare(path)
        await compareDamaged(path, new Random(random.uint32()))
      }
      assert.ok(replayed > 0, 'some of the journals held something')
    })
  }

  /** @returns blocks that were replayed */
  async function compare(path: string): Promise<number> {
    const model = kernelModel(store.clone(path))
    assert.ok(model !== undefined, `seed ${seed}: the kernel mounts it`)
    await using volume = FileDevice.open({ path, readOnly: true })
    const filesystem = await openExt4(volume)
    assert.ok(filesystem.unclean)
    await checkFilesystem({ filesystem, model, volume }, seed)
    assert.deepEqual(await remarksOnWrittenOut(filesystem), remarksOf(store.clone(path)), `seed ${seed}: e2fsck of what was replayed`)
    return Number(/(\d+) blocks of its journal/.exec(filesystem.notices.join())?.[1] ?? 0)
  }

  /** What the kernel shows after its own replay, which it writes. Times that this itself has set are left out. */
  function kernelModel(path: string): Model | undefined {
    const before = Math.floor(Date.now() / 1000) - 1
    const model = store.mounted(path, (directory) => modelOf(directory, { allTimes: true, data: true }))
    // Of files that were being truncated.
    for (const entry of model ?? []) if (entry.changed!.seconds >= before) Object.assign(entry, { changed: undefined, modified: undefined })
    return model
  }

  /** Of the volume as it was replayed, written out with its journal empty. */
  async function remarksOnWrittenOut(filesystem: Ext4Filesystem): Promise<string[]> {
    const path = store.newPath()
    const fd = openSync(path, 'w')
    const bytes = Buffer.alloc(MIB)
    for (let at = 0; at < filesystem.volume.sizeBytes; at += bytes.length) {
      await filesystem.volume.read(bytes, at)
      writeSync(fd, bytes, 0, bytes.length, at)
    }
    const { diskOffset } = (await filesystem.journal())[0]
    const superblock = bytes.subarray(0, 1024)
    await filesystem.volume.read(superblock, diskOffset)
    superblock.writeUInt32BE(0, 0x1c)
    superblock.writeUInt32BE(0, 0xfc)
    superblock.writeUInt32BE(checksumBlock(CHECKSUM_START, superblock), 0xfc)
    writeSync(fd, superblock, 0, superblock.length, diskOffset)
    closeSync(fd)
    execFileSync('debugfs', ['-w', '-R', 'feature -needs_recovery', path], { stdio: 'ignore' })
    return remarksOf(path)
  }

  /**
   * What e2fsck puts right, after it has replayed the journal if there is something in it: orphans above all, and what it takes for damage where the kernel
   * does not (values of attributes of orphans, targets of some short symlinks).
   */
  function remarksOf(path: string): string[] {
    const { stdout } = spawnSync('e2fsck', ['-fy', path], { encoding: 'utf8' })
    return stdout.split('\n').filter((line) => !line.includes(path) && !line.includes('FILE SYSTEM WAS MODIFIED'))
  }

  /**
   * A sector of the journal that did not reach the disk, or is damaged: refused as a whole where the kernel refuses it. Where the log ends there, the files
   * may not fit each other: of those that are damaged then, the kernel says so, or shows a part.
   */
  async function compareDamaged(path: string, random: Random): Promise<void> {
    const copy = store.clone(path)
    {
      await using volume = FileDevice.open({ path: copy })
      const { diskOffset, length } = random.pick(await (await openExt4(volume)).journal())
      // Not the superblock of the journal.
      const at = diskOffset + random.between(8, length / 512 - 1) * 512
      await volume.write(random.chance(0.5) ? Buffer.alloc(512) : random.bytes(512), at)
    }
    const isMounted = store.mounted(store.clone(copy), () => true) ?? false
    await using volume = FileDevice.open({ path: copy, readOnly: true })
    const filesystem = await unlessDamaged(() => openExt4(volume))
    assert.equal(filesystem !== undefined, isMounted, `seed ${seed}: the kernel ${isMounted ? 'mounts' : 'refuses'} it`)
    if (filesystem === undefined) return
    let model: Model
    try {
      model = kernelModel(store.clone(copy))!
    } catch {
      return
    }
    await unlessDamaged(() => checkFilesystem({ filesystem, model, volume }, seed))
  }
})

async function unlessDamaged<Result>(act: () => Promise<Result>): Promise<Result | undefined> {
  try {
    return await act()
  } catch (error) {
    if (!isVarveError(error, 'FORMAT_INVALID')) throw error
    return undefined
  }
}
