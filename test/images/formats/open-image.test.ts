/** Formats are known by content, and what an image names is opened only where it may. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { copyFileSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, afterEach, before, describe, test } from 'node:test'
import { MemoryDevice } from '@varve/images/device/memory-device.ts'
import { openImage } from '@varve/images/formats/open-image.ts'
import { computeQcow2Overlay } from '@varve/images/formats/qcow2/writer.ts'
import { qemuImg, writeOut } from './image-judge.ts'

const root = mkdtempSync(join(tmpdir(), 'varve-open-image-'))
after(() => rmSync(root, { recursive: true }))
const raw = join(root, 'disk.raw')
before(() => writeFileSync(raw, Buffer.alloc(1 << 20, 'content')))

const openFiles = () => readdirSync('/proc/self/fd').length
const descriptors = openFiles()
afterEach(() => assert.equal(openFiles(), descriptors, 'every file that was opened is closed'))

describe('the format of an image', () => {
  const kinds: Record<string, [format: string, type: string, ...options: string[]]> = {
    qcow2: ['qcow2', 'qcow2'],
    'qcow2 of version 2': ['qcow2', 'qcow2', 'compat=0.10'],
    'monolithicSparse VMDK': ['vmdk', 'vmdk'],
    'monolithicFlat VMDK': ['vmdk', 'vmdk', 'subformat=monolithicFlat'],
    'streamOptimized VMDK': ['vmdk', 'vmdk', 'subformat=streamOptimized'],
    'dynamic VHD': ['vhd', 'vpc', 'force_size=on'],
    'fixed VHD': ['vhd', 'vpc', 'subformat=fixed,force_size=on'],
    VHDX: ['vhdx', 'vhdx'],
  }
  for (const [kind, [format, type, ...options]] of Object.entries(kinds)) {
    test(`${kind} is known by its content, whatever the file is called`, async () => {
      const directory = mkdtempSync(join(root, 'kind-'))
      const image = join(directory, 'holiday.jpg')
      qemuImg('convert', '-f', 'raw', '-O', type, ...options.flatMap((option) => ['-o', option]), raw, image)
      await using opened = await openImage(image)
      assert.equal(opened.format, format)
      const content = Buffer.alloc(1 << 20)
      await opened.disk.read(content, 0)
      assert.ok(content.equals(Buffer.alloc(1 << 20, 'content')))
    })
  }

  test('what no format claims is a raw disk, and a raw disk may be said to be one', async () => {
    await using opened = await openImage(raw)
    assert.equal(opened.format, 'raw')
    const image = join(root, 'guest-wrote-this.raw')
    qemuImg('create', '-f', 'qcow2', image, '1M')
    await using asRaw = await openImage(image, { format: 'raw' })
    const start = Buffer.alloc(4)
    await asRaw.disk.read(start, 0)
    assert.equal(start.toString('latin1'), 'QFI\xfb')
  })

  for (const [format, type] of [['VDI', 'vdi'], ['QED', 'qed'], ['Parallels', 'parallels']]) {
    test(`${format} is refused, not taken for a raw disk`, async () => {
      const image = join(root, `image.${type}`)
      qemuImg('create', '-f', type, image, '1M')
      await assert.rejects(openImage(image), { code: 'FORMAT_UNSUPPORTED', message: new RegExp(format) })
    })
  }

  test('a compressed file is refused, not taken for a raw disk', async () => {
    copyFileSync(raw, join(root, 'compressed.raw'))
    execFileSync('gzip', [join(root, 'compressed.raw')])
    await assert.rejects(openImage(join(root, 'compressed.raw.gz')), { code: 'FORMAT_UNSUPPORTED', message: /gzip/ })
  })

  test('what is not a file is refused, and waits for nobody', async () => {
    execFileSync('mkfifo', [join(root, 'fifo')])
    await assert.rejects(openImage(join(root, 'fifo')), { code: 'SOURCE_INVALID' })
    await assert.rejects(openImage(root), { code: 'SOURCE_INVALID' })
    await assert.rejects(openImage(join(root, 'nothing')), { code: 'SOURCE_INVALID' })
    writeFileSync(join(root, 'empty'), '')
    await using empty = await openImage(join(root, 'empty'))
    assert.equal(empty.disk.sizeBytes, 0)
  })
})

describe('what an image names', () => {
  const own = join(root, 'own')
  const secret = join(root, 'secret')
  before(() => {
    mkdirSync(own)
    writeFileSync(secret, Buffer.alloc(1 << 20, 'secret'))
  })

  /** A qcow2 image that lies over `name`, without asking whether that is there. */
  function over(name: string, file: string, format = 'raw'): string {
    const image = join(own, file)
    qemuImg('create', '-f', 'qcow2', '-u', '-b', name, '-F', format, image, '1M')
    return image
  }

  test('is opened below its own directory, in subdirectories too', async () => {
    mkdirSync(join(own, 'below'))
    copyFileSync(raw, join(own, 'below', 'base.raw'))
    for (const name of ['below/base.raw', './below/base.raw', join(own, 'below/base.raw'), 'file:below/base.raw', `file://${own}/below/base.raw`]) {
      await using opened = await openImage(over(name, 'good.qcow2'))
      const content = Buffer.alloc(7)
      await opened.disk.read(content, 0)
      assert.equal(content.toString(), 'content')
    }
  })

  test('is opened relative to where the image is, under the name by which it was opened', async () => {
    over('below/base.raw', 'relative.qcow2')
    symlinkSync(own, join(root, 'link'))
    await using opened = await openImage(join(root, 'link', 'relative.qcow2'))
    assert.equal(opened.disk.sizeBytes, 1 << 20)
  })

  test('is not opened elsewhere, by no way of naming it, and nothing is told of what is there', async () => {
    symlinkSync(secret, join(own, 'innocent'))
    symlinkSync(root, join(own, 'directory'))
    const names = [secret, '../secret', join(own, '..', 'secret'), 'innocent', 'directory/secret', '/dev/null', '/etc/passwd', '/no/such/file', 'file:../secret']
    for (const name of names) await assert.rejects(openImage(over(name, 'bad.qcow2')), { code: 'SOURCE_INVALID', message: /not below its own directory/ }, name)
  })

  test('is opened elsewhere if that directory is allowed', async () => {
    for (const name of [secret, '../secret', 'innocent']) {
      await using opened = await openImage(over(name, 'trusted.qcow2'), { allow: [root] })
      const content = Buffer.alloc(6)
      await opened.disk.read(content, 0)
      assert.equal(content.toString(), 'secret')
    }
  })

  test('is not opened if it is not a file of this machine', async () => {
    for (const name of ['nbd://127.0.0.1/disk', 'json:{"driver":"null-co"}', 'ssh://host/disk']) {
      await assert.rejects(openImage(over(name, 'remote.qcow2')), { code: 'SOURCE_UNSUPPORTED' }, name)
    }
    execFileSync('mkfifo', [join(own, 'fifo')])
    await assert.rejects(openImage(over('fifo', 'fifo.qcow2')), { code: 'SOURCE_INVALID' })
    await assert.rejects(openImage(over('absent', 'absent.qcow2')), { code: 'SOURCE_INVALID' })
    await assert.rejects(openImage(over('below', 'directory.qcow2')), { code: 'SOURCE_INVALID' })
  })

  test('is not opened elsewhere as a data file or an extent either', async () => {
    const image = join(own, 'data.qcow2')
    qemuImg('create', '-f', 'qcow2', '-o', `data_file=${join(root, 'data')}`, image, '1M')
    await assert.rejects(openImage(image), { code: 'SOURCE_INVALID' })
    const descriptor = join(own, 'descriptor.vmdk')
    for (const name of [secret, '../secret', 'innocent']) {
      writeFileSync(descriptor, `# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType="monolithicFlat"\nRW 8 FLAT "${name}" 0\n`)
      await assert.rejects(openImage(descriptor), { code: 'SOURCE_INVALID' }, name)
    }
  })

  test('is refused if a chain goes round', async () => {
    const [first, second] = [join(own, 'first.qcow2'), join(own, 'second.qcow2')]
    over('second.qcow2', 'first.qcow2', 'qcow2')
    over('first.qcow2', 'second.qcow2', 'qcow2')
    over('self.qcow2', 'self.qcow2', 'qcow2')
    for (const image of [first, second, join(own, 'self.qcow2')]) await assert.rejects(openImage(image), { code: 'FORMAT_INVALID', message: /over itself/ })
  })

  test('is refused if a chain is too long', async () => {
    const directory = join(root, 'chain')
    mkdirSync(directory)
    copyFileSync(raw, join(directory, '0'))
    const disk = MemoryDevice.of(Buffer.alloc(1 << 20))
    for (let index = 1; index <= 256; index++) {
      await writeOut(await computeQcow2Overlay(disk, { changed: [], backing: { name: String(index - 1), format: index === 1 ? 'raw' : 'qcow2', sizeBytes: disk.sizeBytes } }), join(directory, String(index)))
    }
    await using longest = await openImage(join(directory, '255'))
    const content = Buffer.alloc(7)
    await longest.disk.read(content, 0)
    assert.equal(content.toString(), 'content')
    assert.equal(longest.disk.extents(0, 1 << 20).length, 1)
    await assert.rejects(openImage(join(directory, '256')), { code: 'LIMIT_EXCEEDED' })
  })
})
