/** Partitions as sfdisk, sgdisk and partx see them; logical volumes as LVM made them; what lies about itself is told, and nothing hangs. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'
import { crc32 } from 'node:zlib'
import { FileDevice } from '@varve/images/device/file-device.ts'
import { MemoryDevice } from '@varve/images/device/memory-device.ts'
import { openExt4 } from '@varve/images/filesystems/ext4/filesystem.ts'
import { readVolumes } from '@varve/images/volumes/volume-table.ts'
import type { VolumeTable } from '@varve/images/volumes/volume-table.ts'
import { Random, testSeed } from '../../random.ts'
import { LvmDisk, PARTITIONS } from './lvm-disk.ts'

const MIB = 2 ** 20
const directory = fs.mkdtempSync(join(tmpdir(), 'varve-volumes-'))
after(() => fs.rmSync(directory, { recursive: true, force: true }))
const image = join(directory, 'disk')
const seed = testSeed()

function makeDisk(sizeBytes: number, script: string): void {
  fs.rmSync(image, { force: true })
  fs.writeFileSync(image, '')
  fs.truncateSync(image, sizeBytes)
  if (script !== '') execFileSync('sfdisk', ['-q', '--no-reread', image], { input: script, stdio: ['pipe', 'ignore', 'pipe'] })
}

async function tableOf(path = image): Promise<VolumeTable> {
  await using disk = FileDevice.open({ path, readOnly: true })
  return await readVolumes(disk)
}

/** What partx shows, in units of 512 bytes whatever the sectors, without what holds other partitions. */
function partx(sectorBytes = 512): { name: string; type: string; label: string; start: number; length: number }[] {
  const text = execFileSync('partx', ['--sector-size', String(sectorBytes), '--pairs', '-o', 'NR,START,SECTORS,NAME,TYPE', image], { encoding: 'utf8' })
  return [...text.matchAll(/NR="(\d+)" START="(\d+)" SECTORS="(\d+)" NAME="([^"]*)" TYPE="([^"]*)"/g)]
    .filter(([, , , , , type]) => !['0x5', '0xf', '0x85', '0xee'].includes(type))
    .map(([, name, start, sectors, label, type]) => ({ name, type: type.replace(/^0x(.)$/, '0x0$1'), label, start: Number(start) * 512, length: Number(sectors) * 512 }))
}

function seen({ volumes }: VolumeTable): ReturnType<typeof partx> {
  return volumes.map(({ name, type, label, segments: [{ diskOffset, length }] }) => ({ name, type, label, start: diskOffset, length }))
}

describe('volumes', () => {
  test('primary and logical partitions are those that partx shows', async () => {
    const random = new Random(seed)
    for (let round = 0; round < 12; round++) {
      const logical = random.below(20)
      const lines = ['label: dos', 'size=1MiB, type=83', ...(logical > 0 ? [`size=${logical * 3 + 5}MiB, type=${random.pick(['5', 'f', '85'])}`] : []), 'size=2MiB, type=7, bootable']
      for (let index = 0; index < logical; index++) lines.push(`size=${random.between(1, 4) * 512}KiB, type=${random.pick(['82', '83', 'b', '8e'])}`)
      makeDisk(128 * MIB, `${lines.join('\n')}\n`)
      const table = await tableOf()
      assert.deepEqual([seen(table), table.scheme, table.notices], [partx(), 'mbr', []], `seed ${seed}, round ${round}`)
    }
  })

  test('partitions of a GPT are those that partx shows: many entries, sectors of 4 KiB, a hybrid MBR, a damaged table', async () => {
    const lines = ['label: gpt', 'size=1MiB, type=uefi, name="EFI system"', 'size=2MiB, type=linux, name="äöü 😀"', 'size=1MiB, type=21686148-6449-6E6F-744E-656564454649']
    makeDisk(64 * MIB, `${lines.join('\n')}\n`)
    const expected = partx()
    assert.equal(expected.length, 3)
    const check = async (notices: RegExp): Promise<void> => {
      const table = await tableOf()
      assert.deepEqual([seen(table), table.scheme], [expected, 'gpt'])
      assert.match(table.notices.join(), notices)
    }
    await check(/^$/)
    execFileSync('sgdisk', ['--hybrid', '1:2', image], { stdio: 'ignore' })
    await check(/^$/)
    const sound = fs.readFileSync(image)
    const damaged = (from: number, to: number): void => fs.writeFileSync(image, Buffer.from(sound).fill(0, from, to))
    damaged(512, 1024)
    await check(/its backup is used/)
    damaged(64 * MIB - 512, 64 * MIB)
    await check(/the backup of the GPT .* is not there/)
    damaged(0, 512)
    await check(/the MBR that should protect the GPT is damaged/)

    makeDisk(400 * MIB, `${lines[0]}\ntable-length: 400\n${Array.from({ length: 300 }, (_, index) => `size=64KiB, type=linux, name=p${index}`).join('\n')}\n`)
    assert.deepEqual(seen(await tableOf()), partx())

    makeDisk(64 * MIB, '')
    const loop = execFileSync('losetup', ['-f', '--show', '--sector-size', '4096', image], { encoding: 'utf8' }).trim()
    try {
      execFileSync('sfdisk', ['-q', '--no-reread', '--no-tell-kernel', loop], { input: `${lines.join('\n')}\n`, stdio: ['pipe', 'ignore', 'pipe'] })
    } finally {
      execFileSync('losetup', ['-d', loop])
    }
    const table = await tableOf()
    assert.deepEqual(seen(table), partx(4096))
    assert.equal(table.volumes.length, 3)
  })

  test('a GPT that the MBR does not name is told, and the MBR is used, as Linux does', async () => {
    makeDisk(64 * MIB, 'label: gpt\nsize=1MiB\n')
    const bytes = fs.readFileSync(image)
    makeDisk(64 * MIB, 'label: dos\nsize=3MiB\n')
    bytes.set(fs.readFileSync(image).subarray(0, 512))
    fs.writeFileSync(image, bytes)
    const table = await tableOf()
    assert.deepEqual([seen(table), table.scheme], [partx(), 'mbr'])
    assert.match(table.notices.join(), /there is a GPT/)
  })

  test('a disk without partitions is one volume: with a filesystem, with a boot sector, empty', async () => {
    for (const make of [[], ['mke2fs', '-q', '-F'], ['mkfs.vfat'], ['mkfs.vfat', '-F', '32']]) {
      makeDisk(64 * MIB, '')
      if (make.length > 0) execFileSync(make[0], [...make.slice(1), image], { stdio: 'ignore' })
      const { scheme, volumes } = await tableOf()
      assert.deepEqual([scheme, volumes.map(({ name, type, view }) => [name, type, view.sizeBytes])], ['none', [['', '', 64 * MIB]]], make.join(' '))
    }
    makeDisk(4 * MIB, 'label: dos\n')
    assert.equal((await tableOf()).volumes.length, 1)
    assert.deepEqual((await readVolumes(new MemoryDevice(0))).volumes, [])
  })

  test('a chain of logical partitions that leads back into itself, goes on for ever or leaves the disk ends, and is told', async () => {
    makeDisk(64 * MIB, `label: dos\nsize=60MiB, type=5\n${'size=1MiB\n'.repeat(5)}`)
    const sound = fs.readFileSync(image)
    const first = sound.readUInt32LE(446 + 8)
    const linked = async (next: number): Promise<VolumeTable> => {
      const bytes = Buffer.from(sound)
      bytes.writeUInt32LE(next, first * 512 + 446 + 16 + 8)
      return readVolumes(MemoryDevice.of(bytes))
    }
    const loop = await linked(0)
    assert.deepEqual([loop.volumes.length, loop.notices], [4, ['the chain of logical partitions leads back into itself']])
    assert.match((await linked(2 ** 31)).notices.join(), /where there is none/)
    const long = Buffer.from(sound)
    for (let link = 0; link < 1000; link++) {
      const at = (first + link) * 512
      long.fill(0, at + 446, at + 510)
      long.writeUInt8(0x83, at + 446 + 4)
      long.writeUInt32LE(1, at + 446 + 8)
      long.writeUInt32LE(1, at + 446 + 12)
      long.writeUInt8(5, at + 462 + 4)
      long.writeUInt32LE(link + 1, at + 462 + 8)
      long.writeUInt32LE(2, at + 462 + 12)
      long.writeUInt16LE(0xaa55, at + 510)
    }
    const table = await readVolumes(MemoryDevice.of(long))
    assert.deepEqual([table.volumes.length, table.notices], [3 + 128, ['the chain of logical partitions has more than 128 links']])
  })
})

describe('logical volumes', () => {
  /** Segments as LVM reports them: of each stripe, where its first extent is on the disk. */
  function reported(disk: LvmDisk, name: string): { stripeBytes: number; segments: { offset: number; length: number; starts: number[] }[] } {
    const text = disk.lvm('lvs', '--segments', '--noheadings', '--separator', '|', '--units', 'b', '--nosuffix', '-o', 'seg_start,seg_size,stripe_size,seg_pe_ranges', `group/${name}`)
    let stripeBytes = 0
    const segments = text.trim().split('\n').map((line) => {
      const [start, size, stripe, ranges] = line.trim().split('|')
      stripeBytes = Number(stripe)
      const starts = ranges.split(' ').map((range) => {
        const [, device, extent] = /^(.*):(\d+)-\d+$/.exec(range)!
        return PARTITIONS[disk.devices.indexOf(device)].firstByte + MIB + Number(extent) * 4 * MIB
      })
      return { offset: Number(start), length: Number(size), starts }
    })
    return { stripeBytes, segments }
  }

  test('linear and striped volumes are where LVM says, a filesystem in them is read; others are refused one by one', async () => {
    using disk = new LvmDisk()
    disk.lvm('pvcreate', '-q', ...disk.devices)
    disk.lvm('vgcreate', '-q', 'group', ...disk.devices)
    disk.create('root', '-L', '12M', 'group', disk.devices[0])
    disk.create('striped', '-i', '2', '-I', '64', '-L', '40M', 'group')
    disk.create('gap', '-l', '3', 'group', disk.devices[0])
    disk.lvm('lvextend', '-q', '-l', '+4', 'group/root', disk.devices[1])
    await using file = FileDevice.open({ path: disk.path })
    const table = await readVolumes(file)
    assert.deepEqual([table.scheme, table.volumes.map(({ name }) => name), table.refused, table.notices], ['gpt', ['1', '2', 'group/gap', 'group/root', 'group/striped'], [], []])
    for (const { name, view, segments } of table.volumes.slice(2)) {
      const { stripeBytes, segments: expected } = reported(disk, name.slice('group/'.length))
      const places = expected.flatMap(({ offset, length, starts }) => {
        const step = stripeBytes === 0 ? length : stripeBytes
        return Array.from({ length: length / step }, (_, stripe) => ({ offset: offset + stripe * step, diskOffset: starts[stripe % starts.length] + Math.floor(stripe / starts.length) * step, length: step }))
      })
      assert.equal(view.sizeBytes, expected.reduce((sum, { length }) => sum + length, 0))
      for (const place of places) assert.deepEqual(view.places(place.offset, place.length), [place], name)
      assert.ok(segments.length <= places.length)
    }

    // A filesystem in the striped volume, written stripe by stripe.
    const source = join(directory, 'filesystem')
    fs.writeFileSync(source, '')
    fs.truncateSync(source, 40 * MIB)
    execFileSync('mke2fs', ['-q', '-F', '-t', 'ext4', '-d', '/etc/apt', source])
    const bytes = fs.readFileSync(source)
    const { view } = table.volumes[4]
    for (const { offset, diskOffset, length } of view.places(0, bytes.length)) await file.write(bytes.subarray(offset, offset + length), diskOffset)
    const read = Buffer.alloc(bytes.length)
    await view.read(read, 0)
    assert.ok(read.equals(bytes))
    const random = new Random(seed)
    for (let round = 0; round < 200; round++) {
      const offset = random.below(bytes.length)
      const part = Buffer.alloc(random.between(0, Math.min(bytes.length - offset, 300_000)))
      await view.read(part, offset)
      assert.ok(part.equals(bytes.subarray(offset, offset + part.length)), `seed ${seed}: ${offset}+${part.length}`)
    }
    const filesystem = await openExt4(view)
    assert.notEqual(await filesystem.child(filesystem.root, 'sources.list.d'), undefined)
    const extents = view.extents!(0, view.sizeBytes)
    assert.equal(extents.reduce((sum, { length }) => sum + length, 0), view.sizeBytes)
    for (const most of [1, 2, 5]) assert.deepEqual(view.extents!(0, view.sizeBytes, most).length, Math.min(most, extents.length))
  })

  test('snapshots, RAID, thin volumes and those of other disks are refused, each with its reason', async () => {
    using disk = new LvmDisk()
    disk.lvm('pvcreate', '-q', ...disk.devices)
    disk.lvm('vgcreate', '-q', 'group', ...disk.devices)
    disk.create('origin', '-l', '1', 'group')
    disk.create('store', '-l', '1', 'group')
    disk.create('plain', '-l', '1', 'group')
    const backup = join(disk.directory, 'backup')
    disk.lvm('vgcfgbackup', '-q', '-f', backup, 'group')
    // As LVM writes them where it has a device mapper.
    const logical = (name: string, status: string, segment: string): string =>
      `${name} {\nid = "${Array.from({ length: 7 }, (_, index) => name.padEnd(6, 'x').slice(0, index === 0 || index === 6 ? 6 : 4)).join('-')}"\nstatus = [${status}]\nflags = []\nsegment_count = 1\nsegment1 {\nstart_extent = 0\n${segment}\n}\n}\n`
    const added = [
      logical('snapshot0', '"READ", "WRITE", "VISIBLE"', 'extent_count = 1\ntype = "snapshot"\nchunk_size = 8\norigin = "origin"\ncow_store = "store"'),
      logical('failed', '"READ", "WRITE", "VISIBLE"', 'extent_count = 2\ntype = "error"'),
    ]
    fs.writeFileSync(backup, fs.readFileSync(backup, 'utf8').replace(/logical_volumes \{\n/, (line) => line + added.join('\n')))
    disk.lvm('vgcfgrestore', '-q', '--force', '-f', backup, 'group')
    const { volumes, refused } = await tableOf(disk.path)
    assert.deepEqual(volumes.map(({ name }) => name), ['1', '2', 'group/origin', 'group/plain'])
    const reasons = Object.fromEntries(refused.map(({ name, reason }) => [name, reason]))
    assert.deepEqual(Object.keys(reasons).sort(), ['group/failed', 'group/store'])
    assert.match(reasons['group/store'], /it is a snapshot/)
    assert.match(reasons['group/failed'], /"error"/)

    // The second partition is on another disk.
    disk.create('both', '-i', '2', '-l', '4', 'group')
    const bytes = fs.readFileSync(disk.path)
    bytes.fill(0, PARTITIONS[1].firstByte, PARTITIONS[1].firstByte + MIB)
    const half = await readVolumes(MemoryDevice.of(bytes))
    assert.match(half.refused.find(({ name }) => name === 'group/both')!.reason, /on another disk/)
    assert.ok(half.volumes.some(({ name }) => name === 'group/plain'))
  })

  test('whatever the metadata says, tables are read in bounds, and only VarveErrors make them shorter', async () => {
    using disk = new LvmDisk()
    disk.lvm('pvcreate', '-q', ...disk.devices)
    disk.lvm('vgcreate', '-q', 'group', ...disk.devices)
    disk.create('root', '-L', '12M', 'group')
    disk.create('striped', '-i', '2', '-L', '40M', 'group')
    // All tables are in the first 3 MiB and in the first of the second partition.
    const sound = Buffer.concat([fs.readFileSync(disk.path).subarray(0, 160 * MIB)])
    const random = new Random(seed)
    const area = PARTITIONS[0].firstByte + 4096
    const textAt = area + Number(sound.readBigUInt64LE(area + 40))
    const textBytes = Number(sound.readBigUInt64LE(area + 48))
    const words = ['{', '}', '[', ']', '"', '=', ',', '#', '\\', ' 0 ', '-1', '99999999999999999999', '1e9', 'stripes', '"pv1"', '"striped"', 'segment1', 'extent_count = 4000000000', 'stripe_size = 1', '{{{{{{{{{{{{{{{{{{{{', '\n']
    let volumes = 0
    for (let round = 0; round < 400; round++) {
      const bytes = new Map<number, Uint8Array>()
      if (random.chance(0.75)) {
        let text = sound.toString('latin1', textAt, textAt + textBytes)
        for (let change = random.between(1, 4); change > 0; change--) {
          const at = random.below(text.length)
          text = text.slice(0, at) + random.pick(words) + text.slice(at + (random.chance(0.5) ? random.below(30) : 0))
        }
        const changed = Buffer.from(text, 'latin1')
        const header = Buffer.from(sound.subarray(area, area + 512))
        header.writeBigUInt64LE(BigInt(changed.length), 48)
        header.writeUInt32LE(lvmChecksum(changed), 56)
        header.writeUInt32LE(lvmChecksum(header.subarray(4)), 0)
        bytes.set(area, header).set(textAt, changed)
      } else {
        const at = random.pick([0, 512, 1024, MIB, MIB + 512, area])
        for (let change = random.between(1, 5); change > 0; change--) bytes.set(at + random.below(512), Buffer.of(random.pick([0, 0xff, random.below(256)])))
      }
      const table = await readVolumes({
        sizeBytes: sound.length,
        read: (into, offset) => {
          assert.ok(offset >= 0 && offset + into.length <= sound.length && into.length <= 16 * MIB, `seed ${seed}, round ${round}: ${offset}+${into.length}`)
          into.set(sound.subarray(offset, offset + into.length))
          for (const [at, change] of bytes) for (const [index, byte] of change.entries()) if (at + index >= offset && at + index < offset + into.length) into[at + index - offset] = byte
        },
      })
      for (const { view, segments } of table.volumes) {
        volumes++
        for (const { diskOffset, length } of segments) assert.ok(length > 0 && diskOffset >= 0 && diskOffset + length <= sound.length, `seed ${seed}, round ${round}`)
        assert.equal(view.places(0, view.sizeBytes).reduce((sum, { length }) => sum + length, 0), view.sizeBytes)
      }
    }
    assert.ok(volumes > 400)
  })

  test('a text that many areas name is read in bounds', async () => {
    const textBytes = 16 * MIB
    const disk = physicalVolume({ sizeBytes: 32 * MIB, text: '', textBytes, areas: 24 })
    let readBytes = 0
    const table = await readVolumes({
      sizeBytes: disk.sizeBytes,
      read: (into, offset) => {
        readBytes += into.length
        disk.read(into, offset)
      },
    })
    assert.ok(readBytes < 5 * textBytes, `${readBytes} bytes are read`)
    assert.match(table.notices.join('\n'), /more than is read of one disk/)
  })

  test('logical volumes that lie on each other have a number of stripes together that memory holds', async () => {
    const logical = (name: string): string =>
      `${name} { status = ["VISIBLE"] segment_count = 1 segment1 { start_extent = 0 extent_count = 2 type = "striped" stripe_size = 1 stripes = ["pv0", 0, "pv0", 1] } }`
    const text = `group { id = "g" seqno = 1 extent_size = 262144 physical_volumes { pv0 { id = "${PHYSICAL_ID}" pe_start = 2048 } } logical_volumes { ${Array.from({ length: 12 }, (_, index) => logical(`v${index}`)).join('\n')} } }`
    const { volumes: [, ...volumes], refused } = await readVolumes(physicalVolume({ sizeBytes: 258 * MIB, text, textBytes: 8192, areas: 1 }))
    const segments = volumes.reduce((sum, volume) => sum + volume.segments.length, 0)
    assert.ok(volumes.length > 2 && segments <= 1 << 22, `${segments} segments of ${volumes.length} volumes`)
    assert.equal(volumes.length + refused.length, 12)
    assert.match(refused[0].reason, /segments, or stripes/)
  })
})

/** A disk that is one physical volume, whose `areas` metadata areas are all the same one: its text, with zeroes up to `textBytes`. */
function physicalVolume({ sizeBytes, text, textBytes, areas }: { sizeBytes: number; text: string; textBytes: number; areas: number }): MemoryDevice {
  const label = Buffer.alloc(512)
  label.write('LABELONE', 0)
  label.writeBigUInt64LE(1n, 8)
  label.writeUInt32LE(32, 20)
  label.write('LVM2 001', 24)
  label.write(PHYSICAL_ID.replaceAll('-', ''), 32)
  label.writeBigUInt64LE(BigInt(MIB), 72)
  for (let area = 0; area < areas; area++) {
    label.writeBigUInt64LE(4096n, 104 + 16 * area)
    label.writeBigUInt64LE(BigInt(textBytes + 1024), 112 + 16 * area)
  }
  label.writeUInt32LE(lvmChecksum(label.subarray(20)), 16)
  const area = Buffer.alloc(512 + textBytes)
  area.write('\x20LVM2\x20x[5A%r0N*>', 4, 'latin1')
  area.writeUInt32LE(1, 20)
  for (const [at, value] of [[24, 4096], [32, textBytes + 1024], [40, 512], [48, textBytes]]) area.writeBigUInt64LE(BigInt(value), at)
  area.write(text, 512)
  area.writeUInt32LE(lvmChecksum(area.subarray(512)), 56)
  area.writeUInt32LE(lvmChecksum(area.subarray(4, 512)), 0)
  const disk = new MemoryDevice(sizeBytes)
  disk.write(label, 512)
  disk.write(area, 4096)
  return disk
}

const PHYSICAL_ID = 'aaaaaa-aaaa-aaaa-aaaa-aaaa-aaaa-aaaaaa'

function lvmChecksum(bytes: Uint8Array): number {
  return ~crc32(bytes, ~0xf597a6cf >>> 0) >>> 0
}
