/**
 * Real clients against the server: qemu-io, qemu-img, nbdinfo, nbdcopy, nbdfuse with a filesystem on it, fio.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
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

test('qemu-nbd lists exports', async () => {
  await using serving = await serve({ desk: new TestDisk(3 * MiB) })
  const { stdout } = await run('qemu-nbd', ['--list', '-k', serving.unix.slice('unix:'.length)])
  assert.match(stdout, /exports available: 1\n export: 'desk'\n\s+description: the disk desk\n\s+size:\s+3145728/)
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

test('a filesystem is made on nbdfuse, mounted, filled and found clean', async () => {
  const disk = new TestDisk(64 * MiB)
  await using serving = await serve({ disk })
  const mountPoint = path.join(serving.directory, 'fuse')
  const files = path.join(serving.directory, 'files')
  mkdirSync(mountPoint)
  mkdirSync(files)
  const source = path.join(serving.directory, 'source')
  makeFiles(source, new Random(testSeed()))
  const image = path.join(mountPoint, 'nbd')
  const fuse = spawn('nbdfuse', [mountPoint, serving.uri('disk')], { stdio: 'ignore' })
  const fuseEnded = new Promise<void>((resolve) => fuse.once('close', () => resolve()))
  try {
    while (!existsSync(image) || statSync(image).size !== disk.sizeBytes) await sleep(50)
    await run('mkfs.ext4', ['-q', '-F', image])
    // cp and diff in processes of their own: the server runs in this one.
    await withMounted(image, files, () => run('cp', ['-r', source, files]))
    await withMounted(image, files, () => run('diff', ['-r', source, path.join(files, 'source')]))
    await run('e2fsck', ['-fn', image])
  } finally {
    await run('fusermount3', ['-u', mountPoint]).catch(() => run('umount', ['-l', mountPoint]))
    await fuseEnded
  }
  const copy = path.join(serving.directory, 'copy')
  writeFileSync(copy, disk.bytes)
  await run('e2fsck', ['-fn', copy])
})

test('fio verifies a mixed random load', async () => {
  const disk = new TestDisk(64 * MiB)
  await using serving = await serve({ disk })
  await run('fio', ['--name=mixed', '--ioengine=nbd', `--uri=${serving.uri('disk')}`, '--rw=randrw', '--bsrange=512-128k', '--size=64m', '--io_size=96m', '--iodepth=32',
    '--verify=crc32c', '--verify_fatal=1', '--fsync=200', '--randseed=1', `--aux-path=${serving.directory}`])
  assert.equal((await serving.server.metrics()).errors, 0)
})

async function withMounted(image: string, directory: string, action: () => Promise<unknown>): Promise<void> {
  await run('mount', ['-o', 'loop', image, directory])
  try {
    await action()
  } finally {
    await run('umount', [directory])
  }
}

function makeFiles(directory: string, random: Random): void {
  for (let number = 0; number < 200; number++) {
    const parent = path.join(directory, `directory-${number % 7}`)
    mkdirSync(parent, { recursive: true })
    writeFileSync(path.join(parent, `file-${number}`), random.bytes(random.between(0, 200_000)))
  }
}

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
