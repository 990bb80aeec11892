/** Disks in memory and in files. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { readFileSync, statSync, writeFileSync } from 'node:fs'
import { describe, test } from 'node:test'
import { FileDevice } from '@varve/images/device/file-device.ts'
import { MemoryDevice } from '@varve/images/device/memory-device.ts'
import { deviceConformance } from './conformance.ts'
import { TemporaryDirectory } from './temporary.ts'

deviceConformance('MemoryDevice', async content => {
  const device = MemoryDevice.of(content)
  return { device, [Symbol.asyncDispose]: () => device[Symbol.asyncDispose]() }
})

deviceConformance('read-only MemoryDevice', async content => {
  const device = MemoryDevice.of(content, { readOnly: true })
  return { device, [Symbol.asyncDispose]: () => device[Symbol.asyncDispose]() }
})

for (const readOnly of [false, true]) {
  deviceConformance(readOnly ? 'read-only FileDevice' : 'FileDevice', async content => {
    const directory = new TemporaryDirectory()
    const path = `${directory.path}/disk`
    writeFileSync(path, content)
    const subject = {
      device: FileDevice.open({ path, readOnly }),
      async reopen() {
        await subject.device[Symbol.asyncDispose]()
        subject.device = FileDevice.open({ path, readOnly })
      },
      async [Symbol.asyncDispose]() {
        await subject.device[Symbol.asyncDispose]()
        directory[Symbol.dispose]()
      },
    }
    return subject
  })
}

describe('FileDevice', () => {
  test('creates a sparse file, gives space back on trim, and keeps it where no hole may be', async () => {
    using directory = new TemporaryDirectory()
    const path = `${directory.path}/disk`
    await using device = FileDevice.open({ path, createBytes: 1 << 30 })
    assert.equal(device.sizeBytes, 1 << 30)
    assert.deepEqual(device.extents(0, 1 << 30).map(extent => extent.type), ['hole'])
    await device.write(Buffer.alloc(1 << 20, 1), 0)
    await device.flush()
    assert.ok(statSync(path).blocks * 512 >= 1 << 20)
    await device.trim(0, 1 << 20)
    assert.ok(statSync(path).blocks * 512 < 1 << 16)
    await device.writeZeroes(0, 1 << 20, { noHole: true, fua: true })
    assert.ok(statSync(path).blocks * 512 >= 1 << 20)
    assert.throws(() => FileDevice.open({ path, createBytes: 1 }), { code: 'EEXIST' })
  })

  test('a directory is not a disk', () => {
    using directory = new TemporaryDirectory()
    assert.throws(() => FileDevice.open({ path: directory.path, readOnly: true }), { code: 'SOURCE_INVALID' })
  })

  test('a block device of the machine is a disk of its own size', { skip: process.getuid?.() !== 0 && 'loop devices need root' }, async () => {
    using directory = new TemporaryDirectory()
    const path = `${directory.path}/disk`
    writeFileSync(path, Buffer.alloc(1 << 20, 5))
    const loop = execFileSync('losetup', ['--find', '--show', path], { encoding: 'utf8' }).trim()
    try {
      await using device = FileDevice.open({ path: loop })
      assert.equal(device.sizeBytes, 1 << 20)
      assert.deepEqual(device.extents(0, 1 << 20), [{ offset: 0, length: 1 << 20, type: 'data' }])
      await device.write(Buffer.from('written'), 1000)
      await device.trim(8000, 20_000)
      await device.flush()
      const expected = Buffer.alloc(1 << 20, 5)
      expected.write('written', 1000)
      expected.fill(0, 8000, 28_000)
      const into = Buffer.alloc(1 << 20)
      device.read(into, 0)
      assert.ok(into.equals(expected))
      assert.ok(readFileSync(path).equals(expected))
    } finally {
      execFileSync('losetup', ['--detach', loop])
    }
  })
})
