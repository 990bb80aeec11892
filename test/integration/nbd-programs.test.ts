/**
 * Programs of the world against `varve serve` itself: what qemu, libnbd and fio write and read, and what is there after the server has ended,
 * in order or not. Single features, against a disk that tells what it was asked, are tested in test/blockserver/nbd/.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { createReadStream, existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { pipeline } from 'node:stream/promises'
import test from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { compose } from '@varve/composer/compose.ts'
import { prepareRecipe } from '@varve/composer/prepare-recipe.ts'
import { appendExtent } from '@varve/images/device/block-device.ts'
import type { DeviceExtent, ExtentType } from '@varve/images/device/block-device.ts'
import { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { MapDevice } from '@varve/images/device/map-device.ts'
import { Home } from '@varve/images/store/home.ts'
import { run } from '../blockserver/nbd/serving.ts'
import { Random, testSeed } from '../random.ts'
import { DeskHome } from './desk-home.ts'

async function sha256(file: string): Promise<string> {
  const hash = createHash('sha256')
  await pipeline(createReadStream(file), hash)
  return hash.digest('hex')
}

/** Files of all sizes, the same for the same seed. */
function fillWithFiles(random: Random, count: number): (directory: string) => void {
  return (directory) => {
    for (let number = 0; number < count; number++) {
      const parent = path.join(directory, `directory-${number % 7}`)
      mkdirSync(parent, { recursive: true })
      writeFileSync(path.join(parent, `file-${number}`), random.bytes(random.pick([0, 1, 4095, 4096, 70_000, random.below(300_000)])))
    }
  }
}

test('qemu-io: patterns at random places, with FUA, discards and zeroes, are the disk that is copied after the server\'s death', async () => {
  const seed = testSeed()
  const random = new Random(seed)
  using home = new DeskHome({ size: '32M' })
  const disk = home.scratch.join('disk')
  await using server = await home.serve()
  await run('nbdcopy', [home.uri(), disk])
  const model = readFileSync(disk)
  const commands: string[] = []
  for (let count = 0; count < 400; count++) {
    const length = random.pick([1, 100, 512, 4096, 5000, 65_536, 200_000, random.below(100_000) + 1])
    const at = random.below(model.length - length)
    const pattern = random.below(256)
    const kind = random.pick(['write', 'write', 'write -f', 'write -z', 'write -z -u', 'write -z -f', 'discard', 'read'])
    if (kind === 'read') {
      // As long as one byte repeats: what qemu-io can check.
      const from = model.subarray(at)
      const until = from.findIndex((byte) => byte !== from[0])
      commands.push(`read -P ${from[0]} ${at} ${until === -1 ? from.length : until}`)
    } else {
      commands.push(kind.startsWith('write') && !kind.includes('-z') ? `${kind} -P ${pattern} ${at} ${length}` : `${kind} ${at} ${length}`)
      model.fill(kind.includes('-z') || kind === 'discard' ? 0 : pattern, at, at + length)
    }
  }
  const { stdout } = await run('qemu-io', ['-t', 'writeback', '-d', 'unmap', '-f', 'raw', ...[...commands, 'flush'].flatMap((command) => ['-c', command]), home.uri()])
  assert.doesNotMatch(stdout, /failed/, `seed ${seed}`)
  assert.equal(await server.stop('SIGKILL'), 'SIGKILL')
  await using again = await home.serve()
  await run('nbdcopy', [home.uri(), disk])
  assert.ok(readFileSync(disk).equals(model), `seed ${seed}`)
  assert.equal(await again.stop(), 0)
})

test('libnbd: every command and flag on 4 connections at once agrees with a model of the disk, which is there after the server\'s death', async () => {
  const seed = testSeed()
  using home = new DeskHome({ fill: fillWithFiles(new Random(seed), 40), size: '32M' })
  const [model, disk] = [home.scratch.join('model'), home.scratch.join('disk')]
  {
    await using server = await home.serve()
    await run('/usr/bin/python3', [path.join(import.meta.dirname, 'nbd-model.py'), home.uri(), String(seed), '6000', model])
    assert.equal(await server.stop('SIGKILL'), 'SIGKILL')
  }
  await using server = await home.serve()
  await run('nbdcopy', [home.uri(), disk])
  assert.equal(await sha256(disk), await sha256(model), `seed ${seed}`)
  assert.equal(await server.stop(), 0)
})

test('nbdcopy and qemu-img copy disks in and out, on 4 connections, before and after a restart', async () => {
  const seed = testSeed()
  const random = new Random(seed)
  using home = new DeskHome({ size: '48M' })
  const [image, copy, qcow2] = [home.scratch.join('image'), home.scratch.join('copy'), home.scratch.join('copy.qcow2')]
  const content = random.bytes(home.composed.sizeBytes)
  for (let count = 0; count < 20; count++) content.fill(0, random.below(content.length), random.below(content.length))
  writeFileSync(image, content)
  {
    await using server = await home.serve()
    await run('nbdcopy', ['--connections=4', '--requests=32', '--flush', image, home.uri()])
    await run('nbdcopy', ['--connections=4', '--requests=32', home.uri(), copy])
    assert.equal(await sha256(copy), await sha256(image), `seed ${seed}`)
    assert.equal(await server.stop('SIGKILL'), 'SIGKILL')
  }
  {
    await using server = await home.serve()
    await run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', home.uri(), qcow2])
    await run('qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', qcow2, image])
    content.reverse()
    writeFileSync(image, content)
    await run('qemu-img', ['convert', '-n', '-W', '-m', '8', '-f', 'raw', '-O', 'raw', image, home.uri()])
    assert.equal(await server.stop('SIGTERM'), 0)
  }
  await using server = await home.serve()
  await run('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', image, home.uri()])
  await run('nbdcopy', ['--connections=4', home.uri(), copy])
  assert.equal(await sha256(copy), await sha256(image), `seed ${seed}`)
  assert.equal(await server.stop(), 0)
})

test('nbdinfo and qemu-img map what the composed disk says of its extents, and what was written over it', async () => {
  const seed = testSeed()
  using home = new DeskHome({ fill: fillWithFiles(new Random(seed), 100), size: '64M' })
  const expected = await composedExtents(home.path)
  assert.ok(expected.length > 10)
  await using server = await home.serve()
  assert.deepEqual(await nbdMap(home.uri('layer:files')), await composedExtents(home.path, 'files'))
  assert.deepEqual(await nbdMap(home.uri()), expected)

  await run('qemu-io', ['-d', 'unmap', '-f', 'raw', '-c', 'write 30M 1M', '-c', 'write -z 30M 64k', '-c', 'discard 1M 256k', '-c', 'write 40M 4k', home.uri()])
  const changes: DeviceExtent[] = [
    { offset: 30 << 20, length: 1 << 20, type: 'data' },
    { offset: 30 << 20, length: 64 << 10, type: 'zero' },
    { offset: 1 << 20, length: 256 << 10, type: 'zero' },
    { offset: 40 << 20, length: 4 << 10, type: 'data' },
  ]
  const changed = changes.reduce(overlaid, expected)
  assert.deepEqual(await nbdMap(home.uri()), changed, `seed ${seed}`)
  const { stdout } = await run('qemu-img', ['map', '-f', 'raw', '--output=json', home.uri()])
  const map = JSON.parse(stdout) as { start: number; length: number; zero: boolean }[]
  assert.deepEqual(merged(map.map(({ start, length, zero }) => ({ offset: start, length, type: zero ? 'zero' : 'data' }))), merged(changed.map((extent) => extent.type === 'hole' ? { ...extent, type: 'zero' } : extent)), `seed ${seed}`)
  assert.equal(await server.stop(), 0)
})

/** Of the CVD, or of a layer by itself. */
async function composedExtents(directory: string, layer?: string): Promise<DeviceExtent[]> {
  await using home = await Home.open(directory)
  const recipe = layer === undefined ? await prepareRecipe({ cvd: 'desk' }, home) : await prepareRecipe({ layers: [layer], policy: { boot: 'none' } }, home)
  const { map } = await compose(recipe, home)
  await using device = new MapDevice(map, home.store, ChunkCache.create({ bytesMax: 1 << 20 }))
  return device.extents(0, device.sizeBytes)
}

async function nbdMap(uri: string): Promise<DeviceExtent[]> {
  const { stdout } = await run('nbdinfo', ['--map', '--json', uri])
  const types: Record<number, ExtentType> = { 0: 'data', 2: 'zero', 3: 'hole' }
  return (JSON.parse(stdout) as { offset: number; length: number; type: number }[]).map(({ offset, length, type }) => ({ offset, length, type: types[type] }))
}

/** What the extents are after a change of a part of the disk. */
function overlaid(extents: readonly DeviceExtent[], change: DeviceExtent): DeviceExtent[] {
  const end = change.offset + change.length
  const before = extents.flatMap(({ offset, length, type }) => offset < change.offset ? [{ offset, length: Math.min(length, change.offset - offset), type }] : [])
  const after = extents.flatMap(({ offset, length, type }) => offset + length > end ? [{ offset: Math.max(offset, end), length: offset + length - Math.max(offset, end), type }] : [])
  return merged([...before, change, ...after])
}

function merged(extents: readonly DeviceExtent[]): DeviceExtent[] {
  const found: DeviceExtent[] = []
  for (const { offset, length, type } of extents) appendExtent(found, offset, length, type)
  return found
}

test('a filesystem made and filled on nbdfuse is clean, and whole after a restart of the server', async () => {
  using home = new DeskHome({ size: '96M' })
  const source = home.scratch.join('files')
  fillWithFiles(new Random(testSeed()), 200)(source)
  const target = home.scratch.join('mounted')
  mkdirSync(target)
  {
    await using server = await home.serve()
    await using fuse = await NbdFuse.mount(home.scratch.join('fuse'), home.uri(), home.composed.sizeBytes)
    await run('mkfs.ext4', ['-q', '-F', fuse.file])
    await fuse.withFiles(target, () => run('cp', ['-r', source, target]))
    await run('e2fsck', ['-fn', fuse.file])
    await fuse[Symbol.asyncDispose]()
    assert.equal(await server.stop('SIGTERM'), 0)
  }
  await using server = await home.serve()
  {
    await using fuse = await NbdFuse.mount(home.scratch.join('fuse'), home.uri(), home.composed.sizeBytes)
    await fuse.withFiles(target, () => run('diff', ['-r', source, path.join(target, 'files')]))
    await run('e2fsck', ['-fn', fuse.file])
  }
  assert.equal(await server.stop(), 0)
})

/** An export as a file, by nbdfuse. */
class NbdFuse implements AsyncDisposable {
  readonly #directory: string
  readonly #ended: Promise<void>
  #mounted = true

  private constructor(directory: string, ended: Promise<void>) {
    this.#directory = directory
    this.#ended = ended
  }

  static async mount(directory: string, uri: string, sizeBytes: number): Promise<NbdFuse> {
    mkdirSync(directory, { recursive: true })
    const child = spawn('nbdfuse', [directory, uri], { stdio: 'ignore' })
    const fuse = new NbdFuse(directory, new Promise((resolve) => child.once('close', () => resolve())))
    while (!existsSync(fuse.file) || statSync(fuse.file).size !== sizeBytes) {
      if (child.exitCode !== null) throw new Error(`nbdfuse ended with ${child.exitCode}`)
      await sleep(50)
    }
    return fuse
  }

  get file(): string {
    return path.join(this.#directory, 'nbd')
  }

  /** Mounts the filesystem that the export holds on `directory` meanwhile. */
  async withFiles(directory: string, action: () => Promise<unknown>): Promise<void> {
    const device = (await run('losetup', ['-f', '--show', this.file])).stdout.trim()
    try {
      await run('mount', [device, directory])
      try {
        await action()
      } finally {
        await run('umount', [directory])
      }
    } finally {
      await run('losetup', ['-d', device])
    }
  }

  /** Ends when nbdfuse has flushed and left. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#mounted) return
    this.#mounted = false
    await run('fusermount3', ['-u', this.#directory])
    await this.#ended
  }
}

test('fio verifies random loads by 4 jobs at once, one where each write follows a trim', async () => {
  using home = new DeskHome({ size: '64M' })
  await using server = await home.serve()
  const jobs = ['--ioengine=nbd', `--uri=${home.uri()}`, '--size=15m', '--offset_increment=15m', '--numjobs=4', '--randseed=1', '--verify=crc32c', '--verify_fatal=1', '--fsync=100',
    `--aux-path=${home.scratch.path}`, '--output-format=json', '--group_reporting']
  const mixed = await fio(['--name=mixed', '--rw=randrw', '--bsrange=512-128k', '--iodepth=16', ...jobs])
  assert.ok(mixed.read.total_ios > 100 && mixed.write.total_ios > 100)
  // In depth 1: fio waits for no trim before it writes to the same place.
  const trimmed = await fio(['--name=trimmed', '--rw=randtrimwrite', '--bs=16k', '--iodepth=1', ...jobs])
  assert.ok(trimmed.trim.total_ios > 100 && trimmed.write.total_ios > 100)
  assert.equal(await server.stop(), 0)
})

async function fio(args: string[]): Promise<any> {
  const { stdout } = await run('fio', args)
  const [job] = JSON.parse(stdout.slice(stdout.indexOf('{'))).jobs
  assert.equal(job.error, 0)
  return job
}

test('qemu-nbd and nbd-client list what is served', async () => {
  using home = new DeskHome()
  await using server = await home.serve('127.0.0.1:0')
  const port = server.addresses[0].split(':').at(-1)!
  const listed = await run('qemu-nbd', ['--list', '-b', '127.0.0.1', '-p', port])
  assert.match(listed.stdout, /exports available: 2\n export: 'desk'\n/)
  assert.match(listed.stdout, /export: 'layer:files@1'\n/)
  const names = await run('nbd-client', ['-l', '127.0.0.1', port])
  assert.match(names.stdout, /^desk: CVD of files@1\nlayer:files@1: base layer$/m)
  assert.equal(await server.stop(), 0)
})
