import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { FileDevice } from '@varve/images/device/file-device.ts'
import { MemoryDevice } from '@varve/images/device/memory-device.ts'
import { readGpt } from '@varve/images/formats/gpt-reader.ts'
import { PartitionType, guidBytes, writeGpt } from '@varve/images/formats/gpt.ts'
import type { GptPartition } from '@varve/images/formats/gpt.ts'
import { Random, testSeed } from '../../random.ts'
import { FileSink } from '../filesystems/fat/file-sink.ts'

const MIB = 2 ** 20
const directory = mkdtempSync(join(tmpdir(), 'varve-gpt-'))
after(() => rmSync(directory, { recursive: true }))
const image = join(directory, 'disk.img')

function write(diskBytes: number, partitions: GptPartition[], bootCode?: Uint8Array): void {
  using sink = new FileSink(image, diskBytes)
  writeGpt(sink, { diskBytes, diskGuid: '0f0e0d0c-1b2a-4321-8765-0123456789ab', partitions, bootCode })
}

const three: GptPartition[] = [
  { typeGuid: PartitionType.biosBoot, guid: '11111111-2222-4333-8444-555555555555', name: 'bios', firstByte: MIB, byteLength: MIB },
  { typeGuid: PartitionType.efiSystem, guid: '21111111-2222-4333-8444-555555555555', name: 'efi', firstByte: 2 * MIB, byteLength: 64 * MIB, attributes: 1n },
  { typeGuid: PartitionType.linuxRootX64, guid: '31111111-2222-4333-8444-555555555555', name: 'Wurzel äöü', firstByte: 66 * MIB, byteLength: 33 * MIB },
]

test('sgdisk finds no problem with a table of three partitions', () => {
  write(100 * MIB, three)
  assert.match(execFileSync('sgdisk', ['-v', image], { encoding: 'utf8' }), /No problems found/)
})

test('sfdisk reads back what was written', () => {
  write(100 * MIB, three)
  const { partitiontable: table } = JSON.parse(execFileSync('sfdisk', ['--json', image], { encoding: 'utf8' }))
  assert.equal(table.label, 'gpt')
  assert.equal(table.id, '0F0E0D0C-1B2A-4321-8765-0123456789AB')
  assert.deepEqual([table.firstlba, table.lastlba], [34, 100 * 2048 - 34])
  assert.deepEqual(
    table.partitions.map((partition: Record<string, unknown>) => [partition.start, partition.size, partition.type, partition.uuid, partition.name, partition.attrs]),
    three.map((partition) => [partition.firstByte / 512, partition.byteLength / 512, partition.typeGuid.toUpperCase(), partition.guid.toUpperCase(), partition.name, partition.attributes === 1n ? 'RequiredPartition' : undefined]),
  )
  assert.match(execFileSync('sfdisk', ['--verify', image], { encoding: 'utf8', stdio: 'pipe' }), /No errors detected/)
})

test('each copy of the table is usable without the other', () => {
  for (const [from, to] of [[512, 1024], [100 * MIB - 512, 100 * MIB]]) {
    write(100 * MIB, three)
    execFileSync('dd', ['if=/dev/zero', `of=${image}`, 'bs=1', `seek=${from}`, `count=${to - from}`, 'conv=notrunc', 'status=none'])
    const { partitiontable: table } = JSON.parse(execFileSync('sfdisk', ['--json', image], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }))
    assert.equal(table.partitions.length, 3)
  }
})

test('the protective MBR covers the disk and keeps the boot code', () => {
  const code = new Random(1).bytes(440)
  for (const diskBytes of [100 * MIB, 9 * 1024 * MIB, 3 * 2 ** 40]) {
    write(diskBytes, three, code)
    const sector = firstSector()
    assert.ok(sector.subarray(0, 440).equals(code))
    assert.equal(sector[450], 0xee)
    assert.equal(sector.readUInt32LE(454), 1)
    assert.equal(sector.readUInt32LE(458), Math.min(diskBytes / 512 - 1, 0xffffffff))
    assert.equal(sector.readUInt16LE(510), 0xaa55)
    assert.match(execFileSync('sgdisk', ['-v', image], { encoding: 'utf8' }), /No problems found/)
  }
})

function firstSector(): Buffer {
  return execFileSync('dd', [`if=${image}`, 'bs=512', 'count=1', 'status=none'])
}

test('random tables pass sgdisk, and are read as they were written', async () => {
  const seed = testSeed()
  const random = new Random(seed)
  for (let round = 0; round < 15; round++) {
    const partitions: GptPartition[] = []
    let at = 34 * 512
    // sgdisk takes no disk that has only room for the table itself.
    for (let index = random.between(1, 128); index > 0; index--) {
      at += random.below(4) * 512
      const byteLength = random.between(1, 5000) * 512
      partitions.push({ typeGuid: PartitionType.linuxRootX64, guid: guidOf(random), name: 'x'.repeat(random.between(0, 36)), firstByte: at, byteLength })
      at += byteLength
    }
    write(at + 33 * 512 + random.below(3) * 512, partitions)
    assert.match(execFileSync('sgdisk', ['-v', image], { encoding: 'utf8' }), /No problems found/, `VARVE_TEST_SEED=${seed}, round ${round}`)
    const expected = partitions.map((partition, index) => ({ ...partition, attributes: partition.attributes ?? 0n, number: index + 1 }))
    await using disk = FileDevice.open({ path: image, readOnly: true })
    assert.deepEqual(await readGpt(disk), { sectorBytes: 512, diskGuid: '0f0e0d0c-1b2a-4321-8765-0123456789ab', partitions: expected, notices: [] }, `VARVE_TEST_SEED=${seed}, round ${round}`)
  }
})

test('a damaged table is replaced by its backup, and a damaged backup is said to be one', async () => {
  const damagedAt = async (...places: number[]): Promise<Awaited<ReturnType<typeof readGpt>>> => {
    write(100 * MIB, three)
    await using disk = FileDevice.open({ path: image })
    for (const place of places) await disk.write(Buffer.of(0xa5), place)
    return await readGpt(disk)
  }
  const [header, entries, backupEntries, backupHeader] = [512 + 60, 1024 + 130, 100 * MIB - 33 * 512 + 130, 100 * MIB - 512 + 60]
  for (const place of [header, entries]) {
    const table = (await damagedAt(place))!
    assert.deepEqual(table.partitions.map(({ name }) => name), three.map(({ name }) => name))
    assert.match(table.notices.join(), /its backup is used/)
  }
  for (const place of [backupHeader, backupEntries]) {
    const table = (await damagedAt(place))!
    assert.deepEqual(table.partitions.map(({ name }) => name), three.map(({ name }) => name))
    assert.match(table.notices.join(), /the backup of the GPT at sector 204799 (?:is damaged|has damaged entries)/)
  }
  assert.equal(await damagedAt(header, backupEntries), undefined)
  assert.equal(await readGpt(new MemoryDevice(1000)), undefined)
  assert.equal(await readGpt(new MemoryDevice(MIB)), undefined)
})

test('partitions outside of the disk are left out, which is said', async () => {
  write(100 * MIB, three)
  execFileSync('truncate', ['-s', '66M', image])
  await using disk = FileDevice.open({ path: image, readOnly: true })
  const table = (await readGpt(disk))!
  assert.deepEqual(table.partitions.map(({ name }) => name), ['bios', 'efi'])
  assert.deepEqual(table.notices, ['the backup of the GPT at sector 204799 is not on the disk', 'partition 3 reaches beyond the end of the disk, and is left out'])
})

function guidOf(random: Random): string {
  return random.bytes(16).toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-')
}

test('partitions that overlap, leave the disk or are not whole sectors are refused', () => {
  const [first] = three
  const sink = { bytes() {}, chunk() {} }
  const attempt = (...partitions: GptPartition[]) => () => writeGpt(sink, { diskBytes: 10 * MIB, diskGuid: first.guid, partitions })
  assert.throws(attempt(first, { ...first, firstByte: 2 * MIB - 512 }), RangeError)
  assert.throws(attempt({ ...first, byteLength: 9 * MIB }), RangeError)
  assert.throws(attempt({ ...first, firstByte: MIB + 1 }), RangeError)
  assert.throws(attempt({ ...first, firstByte: 512 }), RangeError)
})

test('a GUID is stored with its first three groups reversed', () => {
  assert.equal(Buffer.from(guidBytes('c12a7328-f81f-11d2-ba4b-00c93ec93b8b')).toString('hex'), '28732ac11ff8d211ba4b00c93ec93b8b')
  assert.throws(() => guidBytes('c12a7328'), RangeError)
})
