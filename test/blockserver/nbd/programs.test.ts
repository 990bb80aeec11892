/**
 * Real clients against the server: qemu-io, qemu-img, nbdinfo, nbdcopy, fio. Against the whole command: test/integration/nbd-programs.test.ts.
 */
import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { Random, testSeed } from '../../random.ts'
import { run, serve } from './serving.ts'
import { TestDisk } from './test-disk.ts'

const MiB = 1024 * 1024

for (const over of ['unix', 'tcp'] as const) {
  test(`qemu-io verifies patterns it wrote, over ${over}`, async () => {
    const disk = new TestDisk(64 * MiB)
    await using serving = await serve({ disk })
    await run('qemu-io', ['-f', 'raw',
      '-c', 'write -P 0x11 0 64k', '-c', 'write -P 0x22 1M 3M', '-c', 'write -f -P 0x33 8M 512', '-c', 'aio_write -P 0x44 9M 1M', '-c', 'aio_write -P 0x55 10M 1M', '-c', 'aio_flush',
      '-c', 'read -P 0x11 0 64k', '-c', 'read -P 0x22 1M 3M', '-c', 'read -P 0x33 8M 512', '-c', 'read -P 0x44 9M 1M', '-c', 'read -P 0x55 10M 1M',
      '-c', 'write -z 2M 1M', '-c', 'read -P 0 2M 1M', '-c', 'write -z -u 3M 512k', '-c', 'read -P 0 3M 512k', '-c', 'read -P 0x22 3584k 512k',
      '-c', 'discard 0 64k', '-c', 'read -P 0 0 64k', '-c', 'write -P 0x66 100 1000', '-c', 'read -P 0x66 100 1000', '-c', 'read -P 0 0 100', '-c', 'flush',
      serving.uri('disk', over)])
    assert.deepEqual(disk.durable, disk.bytes)
    assert.equal(disk.bytes[100], 0x66)
  })

  test(`qemu-img converts, compares, maps and describes, over ${over}`, async () => {
    const seed = testSeed()
    const random = new Random(seed)
    const disk = new TestDisk(32 * MiB)
    await using serving = await serve({ disk }, { fastZeroes: true })
    const image = path.join(serving.directory, 'image')
    const content = Buffer.alloc(disk.sizeBytes)
    for (let count = 0; count < 40; count++) random.bytes(random.between(1, 200_000)).copy(content, random.below(content.length - 200_000))
    writeFileSync(image, content)
    const uri = serving.uri('disk', over)
    await run('qemu-img', ['convert', '-n', '-f', 'raw', '-O', 'raw', image, uri])
    assert.ok(disk.bytes.equals(content), `seed ${seed}`)
    await run('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', image, uri])
    const copy = path.join(serving.directory, 'copy.qcow2')
    await run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', uri, copy])
    await run('qemu-img', ['compare', '-f', 'raw', '-F', 'qcow2', image, copy])
    assert.equal(JSON.parse((await run('qemu-img', ['info', '--output=json', uri])).stdout)['virtual-size'], disk.sizeBytes)
    const map = JSON.parse((await run('qemu-img', ['map', '--output=json', uri])).stdout) as { start: number; length: number; zero: boolean }[]
    assert.deepEqual(map.map(({ start, length, zero }) => ({ start, length, zero })), zeroRuns(disk))
  })

  test(`nbdcopy copies both ways on 4 connections, over ${over}`, async () => {
    const seed = testSeed()
    const disk = new TestDisk(48 * MiB)
    await using serving = await serve({ disk })
    const image = path.join(serving.directory, 'image')
    const back = path.join(serving.directory, 'back')
    const content = new Random(seed).bytes(disk.sizeBytes)
    content.fill(0, 10 * MiB, 20 * MiB)
    writeFileSync(image, content)
    await run('nbdcopy', ['--connections=4', '--flush', image, serving.uri('disk', over)])
    assert.ok(disk.durable.equals(content), `seed ${seed}`)
    await run('nbdcopy', ['--connections=4', serving.uri('disk', over), back])
    assert.ok(readFileSync(back).equals(content), `seed ${seed}`)
    assert.equal((await serving.server.metrics()).errors, 0)
  })
}

test('nbdinfo lists exports with their descriptions and sizes', async () => {
  await using serving = await serve({ desk: new TestDisk(3 * MiB), 'layer:näme@3': new TestDisk(512, { readOnly: true }) })
  const { exports } = JSON.parse((await run('nbdinfo', ['--list', '--json', serving.uri('')])).stdout) as { exports: Record<string, unknown>[] }
  assert.deepEqual(exports.map((entry) => [entry['export-name'], entry.description, entry['export-size'], entry.is_read_only, entry.can_multi_conn]), [
    ['desk', 'the disk desk', 3 * MiB, false, true],
    ['layer:näme@3', 'the disk layer:näme@3', 512, true, true],
  ])
  assert.deepEqual([exports[0].block_size_minimum, exports[0].block_size_preferred, exports[0].block_size_maximum], [1, 4096, 32 * MiB])
})

test('qemu-img bench reads and writes as often as it says', async () => {
  const disk = new TestDisk(16 * MiB)
  await using serving = await serve({ disk })
  const bench = ['bench', '-f', 'raw', '-t', 'none', '-c', '3000', '-d', '32', '-s', '8192']
  await run('qemu-img', [...bench, serving.uri('disk')])
  const counted = async () => {
    const { exports: [{ bytesRead, bytesWritten }], errors } = await serving.server.metrics()
    return [bytesRead, bytesWritten, errors]
  }
  assert.deepEqual(await counted(), [3000 * 8192, 0, 0])
  await run('qemu-img', [...bench, '-w', '--pattern=90', '--flush-interval=100', serving.uri('disk')])
  assert.deepEqual(await counted(), [3000 * 8192, 3000 * 8192, 0])
  assert.ok(disk.flushes >= 29)
  assert.ok(disk.bytes.every((byte) => byte === 90))
})

test('nbdinfo maps what the device says of its extents', async () => {
  const disk = new TestDisk(16 * MiB)
  await disk.write(Buffer.alloc(300_000, 1), 1_000_000)
  await disk.write(Buffer.alloc(1, 1), 8 * MiB)
  await disk.writeZeroes(10 * MiB, MiB, { noHole: true })
  await using serving = await serve({ disk })
  const map = JSON.parse((await run('nbdinfo', ['--map', '--json', serving.uri('disk')])).stdout) as { offset: number; length: number; type: number }[]
  const flags = { data: 0, zero: 2, hole: 3 }
  assert.deepEqual(map.map(({ offset, length, type }) => ({ offset, length, type })), disk.extents(0, disk.sizeBytes).map(({ offset, length, type }) => ({ offset, length, type: flags[type] })))
})

test('fio verifies a mixed random load', async () => {
  const disk = new TestDisk(64 * MiB)
  await using serving = await serve({ disk })
  await run('fio', ['--name=mixed', '--ioengine=nbd', `--uri=${serving.uri('disk')}`, '--rw=randrw', '--bsrange=512-128k', '--size=64m', '--iodepth=32',
    '--verify=crc32c', '--verify_fatal=1', '--fsync=200', '--randseed=1', `--aux-path=${serving.directory}`])
  assert.equal((await serving.server.metrics()).errors, 0)
})

/** As qemu-img map shows it. */
function zeroRuns(disk: TestDisk): { start: number; length: number; zero: boolean }[] {
  const runs: { start: number; length: number; zero: boolean }[] = []
  for (const { offset, length, type } of disk.extents(0, disk.sizeBytes)) {
    const zero = type !== 'data'
    const last = runs.at(-1)
    if (last?.zero === zero) last.length += length
    else runs.push({ start: offset, length, zero })
  }
  return runs
}
