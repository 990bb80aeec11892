/**
 * Disks in and out by the command: from files, chains of images and NBD servers with dirty bitmaps; to files of every format, exports and HTTP.
 * Judges: qemu-img, qemu-nbd, curl. Debian packages: qemu-utils, libnbd-bin, curl.
 */
import assert from 'node:assert/strict'
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import test, { after, before, describe } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { RealVolume } from '../composer/import/disk-home.ts'
import { Random, testSeed } from '../random.ts'
import { ScratchDirectory, varve, VarveServer } from '../varve-command.ts'

const seed = testSeed()
const MIB = 1 << 20
const DISK_BYTES = 48 * MIB
const FORMATS = { raw: 'raw', vhd: 'vpc', vhdx: 'vhdx', vmdk: 'vmdk', qcow2: 'qcow2' }
const scratch = new ScratchDirectory('disk-command')
const home = scratch.join('home')
const disk = scratch.join('disk.raw')
const random = new Random(seed)
const launcher = path.resolve(import.meta.dirname, '../../tools/varve')

function qemuImg(...args: string[]): string {
  return execFileSync('qemu-img', args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] })
}

function assertSame(image: string, format: string, raw: string): void {
  assert.match(qemuImg('compare', '-f', format, '-F', 'raw', image, raw), /Images are identical/, `seed ${seed}`)
}

before(async () => {
  writeFileSync(disk, '')
  truncateSync(disk, DISK_BYTES)
  using volume = new RealVolume(disk, { sizeBytes: DISK_BYTES })
  await volume.mounted((root) => {
    for (let file = 0; file < 30; file++) writeFileSync(`${root}/file-${file}`, random.bytes(random.between(1, 300_000)))
  })
  varve(home, ['layer', 'import', 'vm', `disk:${disk}`, '--kind', 'base', '--keep-free'])
})
after(() => scratch[Symbol.dispose]())

describe('disks by the command', () => {
  test('a disk that was imported is served bit for bit, and shown with its size and its files', async () => {
    const shown = varve(home, ['layer', 'show', 'vm']).json
    assert.deepEqual([shown.content, shown.diskBytes, shown.inodes.file], ['tree', DISK_BYTES, 30])
    const socket = scratch.join('bits.sock')
    await using server = await VarveServer.start(home, `unix:${socket}`)
    assertSame(`nbd+unix:///layer:vm@1?socket=${socket}`, 'raw', disk)
    assert.equal(await server.stop(), 0)
  })

  test('exports in every format are the disk, sparse, and replace nothing that was not to be replaced', () => {
    for (const [format, name] of Object.entries(FORMATS)) {
      for (const subformat of format === 'vhd' ? ['dynamic', 'fixed'] : [undefined]) {
        const file = scratch.join(`out-${subformat ?? ''}.${format}`)
        const args = ['export', 'layer:vm', file, '--format', format, ...(subformat === undefined ? [] : ['--subformat', subformat])]
        const { fileBytes } = varve(home, args).json
        assert.equal(fileBytes, statSync(file).size)
        assert.ok(statSync(file).blocks * 512 < DISK_BYTES, `${file} is sparse`)
        assertSame(file, name, disk)
        if (['qcow2', 'vhdx', 'vmdk'].includes(format)) qemuImg('check', '-f', name, file)
        assert.match(varve(home, args, { expect: 1 }).json.error.code, /ALREADY_EXISTS/)
        varve(home, [...args, '--force'])
        assertSame(file, name, disk)
      }
    }
    const { stdout } = spawnSync(launcher, ['export', 'layer:vm', '-', '--format', 'raw', '--home', home], { maxBuffer: 2 * DISK_BYTES })
    assert.ok(stdout.equals(readFileSync(disk)), 'standard output is the disk')
  })

  test('a CVD of a disk starts as that disk, and a snapshot is exported over what it was before', async () => {
    const imported = varve(home, ['cvd', 'import', 'pc', `disk:${disk}`, '--keep-free']).json
    assert.deepEqual([imported.layer, imported.cvd.layers], ['pc@1', ['pc@1']])
    varve(home, ['snapshot', 'create', 'pc', 'before'])
    const socket = scratch.join('cvd.sock')
    {
      await using server = await VarveServer.start(home, `unix:${socket}`)
      execFileSync('qemu-io', ['-f', 'raw', '-c', 'write -P 7 1M 300k', '-c', 'write -z 20M 64k', '-c', 'flush', `nbd+unix:///pc?socket=${socket}`], { stdio: 'ignore' })
      assert.equal(await server.stop(), 0)
    }
    varve(home, ['snapshot', 'create', 'pc', 'after'])
    const after = scratch.join('after.raw')
    varve(home, ['export', 'pc@after', after, '--format', 'raw'])
    assert.ok(readFileSync(after).subarray(MIB, MIB + 300_000).every((byte) => byte === 7))
    for (const [format, name] of [['qcow2', 'qcow2'], ['vhd', 'vpc']]) {
      varve(home, ['export', 'pc@before', scratch.join(`pc@before.${format}`), '--format', format])
      const file = scratch.join(`after.${format}`)
      varve(home, ['export', 'pc@after', file, '--format', format, '--base', 'pc@before'])
      assert.ok(statSync(file).blocks * 512 < 4 * MIB, 'only what differs is in it')
      // QEMU does not read differencing VHDs; we do.
      if (format === 'qcow2') assertSame(file, name, after)
      varve(home, ['layer', 'import', `back-${format}`, `disk:${file}`, '--kind', 'base', '--keep-free'])
      const back = scratch.join(`back-${format}.raw`)
      varve(home, ['export', `layer:back-${format}`, back, '--format', 'raw'])
      assert.ok(readFileSync(back).equals(readFileSync(after)), format)
    }
    assert.deepEqual(varve(home, ['snapshot', 'list', 'pc']).json.map((one: any) => one.name), ['before', 'after'], 'a copy leaves no snapshot behind')
    varve(home, ['export', 'pc', scratch.join('now.raw'), '--format', 'raw'])
    assert.ok(readFileSync(scratch.join('now.raw')).equals(readFileSync(after)))
  })

  test('images are served over NBD and HTTP, by ranges, to who may read the disk', async () => {
    const socket = scratch.join('images.sock')
    const config = scratch.join('varve.toml')
    writeFileSync(config, '[http]\nlisten = "127.0.0.1:0"\nimages = true\n[[access]]\nexport = "layer:secret*"\nallow = "deny"\n[[access]]\nallow = "read-only"\n')
    varve(home, ['layer', 'import', 'secret', `disk:${disk}`, '--kind', 'base'])
    await using server = await VarveServer.start(home, `unix:${socket}`, { args: ['--config', config] })
    const http = `http://${server.document.http}`
    for (const [format, name] of Object.entries(FORMATS)) {
      const nbd = `nbd+unix:///image:${format}:layer:vm@1?socket=${socket}`
      assertSame(nbd, name, disk)
      const file = scratch.join(`http.${format}`)
      execFileSync('curl', ['-sSf', '-o', file, `${http}/images/layer:vm@1.${format}`])
      assertSame(file, name, disk)
      const bytes = readFileSync(file)
      const range = await fetch(`${http}/images/layer:vm.${format}`, { headers: { range: 'bytes=70000-200000' } })
      assert.deepEqual([range.status, range.headers.get('content-range')], [206, `bytes 70000-200000/${bytes.length}`])
      assert.ok(Buffer.from(await range.arrayBuffer()).equals(bytes.subarray(70_000, 200_001)))
      const etag = range.headers.get('etag')!
      const head = await fetch(`${http}/images/layer:vm.${format}`, { method: 'HEAD' })
      assert.deepEqual([head.status, head.headers.get('content-length'), head.headers.get('etag'), head.headers.get('accept-ranges')], [200, String(bytes.length), etag, 'bytes'])
      const statuses = { '304': { 'if-none-match': etag }, '416': { range: `bytes=${bytes.length}-` }, '206': { range: 'bytes=-10', 'if-range': etag }, '200': { range: 'bytes=0-10', 'if-range': '"another"' } }
      for (const [status, headers] of Object.entries(statuses)) {
        const answer = await fetch(`${http}/images/layer:vm.${format}`, { headers: headers as unknown as Record<string, string> })
        await answer.arrayBuffer()
        assert.equal(answer.status, Number(status), JSON.stringify(headers))
      }
    }
    for (const name of ['layer:secret@1.raw', 'layer:none.raw', 'pc.raw', 'layer:vm.iso']) assert.equal((await fetch(`${http}/images/${name}`)).status, 404, name)
    assert.notEqual(spawnSync('qemu-img', ['info', `nbd+unix:///image:raw:layer:secret@1?socket=${socket}`]).status, 0)
    assert.ok((await (await fetch(`${http}/openapi.json`)).text()).includes('/images/{file}'))
    assert.equal(await server.stop(), 0)
  })

  test('a chain of qcow2 over a file that was imported costs what was written to it', () => {
    const [base, top] = [scratch.join('chain.qcow2'), scratch.join('top.qcow2')]
    qemuImg('convert', '-f', 'raw', '-O', 'qcow2', disk, base)
    varve(home, ['layer', 'import', 'chain', `disk:${base}`, '--kind', 'base', '--keep-free'])
    qemuImg('create', '-q', '-f', 'qcow2', '-b', base, '-F', 'qcow2', top)
    execFileSync('qemu-io', ['-c', 'write -P 9 30M 10k', top], { stdio: 'ignore' })
    const { json } = varve(home, ['layer', 'import', 'chain', `disk:${top}`, '--kind', 'base', '--keep-free'])
    assert.equal(json.base, 'chain@1')
    assert.ok(json.bytesRead <= MIB, `${json.bytesRead} bytes were read`)
    const raw = scratch.join('chain.raw')
    varve(home, ['export', 'layer:chain', raw, '--format', 'raw'])
    assertSame(top, 'qcow2', raw)
  })

  test('a backing file that lies elsewhere is opened where its directory is allowed, and a format that is said is believed', () => {
    const [apart, own] = [scratch.join('apart'), scratch.join('own')]
    for (const directory of [apart, own]) mkdirSync(directory)
    const [base, top] = [path.join(apart, 'base.qcow2'), path.join(own, 'top.qcow2')]
    qemuImg('convert', '-f', 'raw', '-O', 'qcow2', disk, base)
    qemuImg('create', '-q', '-f', 'qcow2', '-b', base, '-F', 'qcow2', top)
    const commands = [
      ['ls', `disk:${top}:/`],
      ['cat', `disk:${top}:/file-1`, '--length', '0'],
      ['cp', `disk:${top}:/file-1`, own],
      ['find', `disk:${top}:/`],
      ['diff', `disk:${top}`, `disk:${base}`],
      ['layer', 'import', 'elsewhere', `disk:${top}`, '--kind', 'base'],
      ['cvd', 'import', 'elsewhere-cvd', `disk:${top}`],
    ]
    for (const command of commands) {
      const { error } = varve(home, command, { expect: 1 }).json
      assert.equal(error.code, 'SOURCE_INVALID', command.join(' '))
      assert.match(error.message, /not below its own directory/)
      varve(home, [...command, '--allow', apart])
    }
    assert.ok(existsSync(path.join(own, 'file-1')))
    assert.equal(varve(home, ['ls', `disk:${base}:/`, '--format', 'raw'], { expect: 1 }).json.error.code, 'NOT_FOUND')
  })

  test('of a qcow2 image with a dirty bitmap, what is dirty is read', () => {
    const [image, raw] = [scratch.join('bitmap.qcow2'), scratch.join('bitmap.raw')]
    qemuImg('convert', '-f', 'raw', '-O', 'qcow2', disk, image)
    const first = ['layer', 'import', 'bitmap', `disk:${image}`, '--kind', 'base', '--keep-free']
    varve(home, first)
    qemuImg('bitmap', '--add', image, 'since')
    execFileSync('qemu-io', ['-f', 'qcow2', '-c', 'write -P 7 20M 10k', image], { stdio: 'ignore' })
    const { json } = varve(home, [...first, '--bitmap', 'since'])
    assert.equal(json.base, 'bitmap@1')
    assert.ok(json.bytesRead > 0 && json.bytesRead <= MIB, `${json.bytesRead} bytes were read`)
    varve(home, ['export', 'layer:bitmap', raw, '--format', 'raw'])
    assertSame(image, 'qcow2', raw)
    assert.equal(varve(home, [...first, '--bitmap', 'never'], { expect: 1 }).json.error.code, 'NOT_FOUND')
    assert.equal(varve(home, ['layer', 'import', 'bitmap', `disk:${raw}`, '--kind', 'base', '--bitmap', 'since'], { expect: 1 }).json.error.code, 'SOURCE_INVALID')
  })

  test('of an NBD server with a dirty bitmap, what is dirty is read', async () => {
    const image = scratch.join('dirty.qcow2')
    qemuImg('convert', '-f', 'raw', '-O', 'qcow2', disk, image)
    const socket = scratch.join('dirty.sock')
    const served = async <Result>(work: () => Result, ...args: string[]): Promise<Result> => {
      const server = spawn('qemu-nbd', ['-f', 'qcow2', '-r', '-t', '-k', socket, '-x', 'disk', ...args, image], { stdio: 'ignore' })
      try {
        while (!existsSync(socket)) await sleep(20)
        return work()
      } finally {
        server.kill()
        await new Promise((resolve) => server.once('exit', resolve))
      }
    }
    const uri = `nbd:nbd+unix:///disk?socket=${socket}`
    const first = await served(() => varve(home, ['layer', 'import', 'nbd', uri, '--kind', 'base', '--keep-free']).json)
    assert.equal(first.digest, varve(home, ['layer', 'show', 'vm@1']).json.digest)
    qemuImg('bitmap', '--add', image, 'since')
    execFileSync('qemu-io', ['-c', 'write -P 5 10M 70k', image], { stdio: 'ignore' })
    const second = await served(() => varve(home, ['layer', 'import', 'nbd', uri, '--kind', 'base', '--keep-free', '--bitmap', 'since']).json, '-B', 'since')
    assert.ok(second.bytesRead <= MIB, `${second.bytesRead} bytes were read`)
    const raw = scratch.join('dirty.raw')
    varve(home, ['export', 'layer:nbd', raw, '--format', 'raw'])
    assertSame(image, 'qcow2', raw)
    await served(() => assert.equal(varve(home, ['layer', 'import', 'nbd', uri, '--kind', 'base', '--bitmap', 'none'], { expect: 1 }).json.error.code, 'NOT_FOUND'))
  })

  test('what nobody names goes, and the rest is whole', () => {
    varve(home, ['layer', 'remove', 'secret@1'])
    varve(home, ['gc'])
    assert.deepEqual(varve(home, ['verify']).json.broken, [])
    assert.ok(varve(home, ['doctor']).json.every((finding: any) => finding.state !== 'damage'))
    assert.equal(varve(home, ['layer', 'remove', 'pc@1'], { expect: 1 }).json.error.code, 'IN_USE')
  })
})
