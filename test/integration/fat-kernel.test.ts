/** FAT and exFAT as the kernel's drivers leave them, after mkfs, mtools and exfat-fuse, are read as the kernel reads them; left mounted, they are unclean. */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { FileDevice } from '@varve/images/device/file-device.ts'
import type { VolumeFilesystem } from '@varve/images/filesystems/filesystem.ts'
import { openFilesystem } from '@varve/images/filesystems/open-filesystem.ts'
import { walk } from '@varve/images/filesystems/walk.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import { ageDirectory } from '../images/filesystems/age-directory.ts'
import { checkFilesystem } from '../images/filesystems/conformance.ts'
import { ExfatImage } from '../images/filesystems/exfat/exfat-image.ts'
import { FatImage } from '../images/filesystems/fat/fat-image.ts'
import type { ModelEntry } from '../images/filesystems/model.ts'
import { Random, testSeed } from '../random.ts'
import { useVolumes } from './fat-guest.ts'
import type { GuestEntry, GuestVolume } from './fat-guest.ts'

const MIB = 1 << 20
/** Steps that the guest takes on each volume; more is a thorough run. */
const STEPS = Number(process.env.VARVE_FAT_ROUNDS ?? 5) * 10

test('volumes that the kernel has used are read as the kernel reads them', async () => {
  const seed = testSeed()
  const random = new Random(seed)
  using made = new DisposableStack()
  const scratch = mkdtempSync(join(tmpdir(), 'varve-fat-guest-'))
  made.defer(() => rmSync(scratch, { recursive: true }))
  const fat = (bits: 12 | 16 | 32, sizeBytes: number, use: { sectorBytes?: number; sectorsPerCluster?: number; isLeftMounted?: boolean; fills?: boolean; bytesMax: number }): GuestVolume => {
    const image = made.use(new FatImage({ bits, sizeBytes, ...use }))
    if (bits === 16) for (let round = 0; round < 3; round++) image.age(random, use.bytesMax)
    return { image: image.path, type: 'vfat', sectorBytes: use.sectorBytes ?? 512, fillBytes: use.fills === true ? sizeBytes : 0, bytesMax: use.bytesMax, isLeftMounted: use.isLeftMounted ?? false }
  }
  const exfat = (sizeBytes: number, use: { sectorBytes?: number; isLeftMounted?: boolean; fills?: boolean; bytesMax: number }): GuestVolume => {
    const image = made.use(new ExfatImage({ sizeBytes, ...use }))
    image.mounted((directory) => ageDirectory(directory, random, { rounds: 2, bytesMax: use.bytesMax, fillBytes: 0 }))
    return { image: image.path, type: 'exfat', sectorBytes: use.sectorBytes ?? 512, fillBytes: use.fills === true ? sizeBytes : 0, bytesMax: use.bytesMax, isLeftMounted: use.isLeftMounted ?? false }
  }
  const volumes = [
    fat(12, 2 * MIB, { fills: true, bytesMax: 40_000 }),
    fat(16, 8 * MIB, { sectorsPerCluster: 1, fills: true, bytesMax: 100_000 }),
    fat(32, 40 * MIB, { sectorsPerCluster: 1, bytesMax: 300_000 }),
    // Fewer clusters than the specification asks of FAT32: drivers know it by another sign.
    fat(32, 32 * MIB, { sectorBytes: 4096, bytesMax: 300_000 }),
    exfat(8 * MIB, { fills: true, bytesMax: 100_000 }),
    exfat(32 * MIB, { sectorBytes: 4096, bytesMax: 300_000 }),
    fat(32, 40 * MIB, { sectorsPerCluster: 1, isLeftMounted: true, bytesMax: 100_000 }),
    exfat(8 * MIB, { isLeftMounted: true, bytesMax: 100_000 }),
  ]
  const found = await useVolumes(volumes, { scratch, random, steps: STEPS })
  for (const [index, volume] of volumes.entries()) {
    await using device = FileDevice.open({ path: volume.image, readOnly: true })
    const filesystem = (await openFilesystem(device))!
    const what = `seed ${seed}, volume ${index}, ${filesystem.type}`
    assert.equal(filesystem.unclean, volume.isLeftMounted, what)
    assert.ok(found[index].length > STEPS / 10, what)
    const ordered = found[index]
    await checkFilesystem({ filesystem, volume: device, ignoresCase: true, model: ordered.map(modelOfGuest) }, seed)
    assert.deepEqual(await contents(filesystem), new Map(ordered.filter(({ sha256 }) => sha256 !== undefined).map(({ path, mtimeSeconds, sha256 }) => [path, `${mtimeSeconds} ${sha256}`])), what)
    if (volume.fillBytes > 0) assert.ok(await piecesOfFiles(filesystem) > 1, `${what} has files in pieces`)
  }
})

function modelOfGuest({ path, mode, sizeBytes }: GuestEntry): ModelEntry {
  const isDirectory = (mode & 0o170000) === 0o040000
  // The kernel takes no notice of read-only directories.
  const permissions = isDirectory ? 0o755 : (mode & 0o200) === 0 ? 0o444 : 0o644
  return { path, kind: isDirectory ? Kind.directory : Kind.file, mode: permissions, sizeBytes: isDirectory ? undefined : sizeBytes, links: isDirectory ? undefined : 1 }
}

/** Time and digest of every file. */
async function contents(filesystem: VolumeFilesystem): Promise<Map<string, string>> {
  const found = new Map<string, string>()
  for await (const { path, node } of walk(filesystem)) {
    if (node.kind !== Kind.file) continue
    const bytes = Buffer.alloc(node.sizeBytes)
    await filesystem.read(node.id, bytes, 0)
    found.set(path, `${node.modified.seconds} ${createHash('sha256').update(bytes).digest('hex')}`)
  }
  return found
}

/** Of the file that is in most pieces. */
async function piecesOfFiles(filesystem: VolumeFilesystem): Promise<number> {
  let most = 0
  for await (const { node } of walk(filesystem)) if (node.kind === Kind.file) most = Math.max(most, (await filesystem.extents(node.id)).length)
  return most
}
