/** `varve bootset`, and a server that learns by itself, with something that reads a disk as a boot does. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { NbdClient } from '@varve/blockserver/nbd/client.ts'
import { DiskView } from '@varve/composer/bootset/disk-view.ts'
import { Home } from '@varve/images/store/home.ts'
import { readMap } from '@varve/tools/settlement.ts'
import { Random } from '../random.ts'
import { ScratchDirectory, varve, VarveServer } from '../varve-command.ts'

const FILES = 200
const WAIT_MS_MAX = 300_000

/** A home with a CVD `desk` of a layer `base`, which holds files `data/0`, ... */
function makeHome(scratch: ScratchDirectory): string {
  const source = scratch.join('source')
  mkdirSync(path.join(source, 'data'), { recursive: true })
  const random = new Random(9)
  for (let index = 0; index < FILES; index++) writeFileSync(path.join(source, 'data', String(index)), random.bytes(5000))
  const home = scratch.join('home')
  varve(home, ['layer', 'import', 'base', `dir:${source}`, '--kind', 'base'])
  varve(home, ['cvd', 'create', 'desk', '--layer', 'base', '--boot', 'none'])
  varve(home, ['compose', 'desk'])
  return home
}

/** Reads files of the disk, last one first. */
async function readFiles(home: string, socket: string, count: number): Promise<NbdClient> {
  await using opened = await Home.open(home)
  const client = await connect(`unix:${socket}`)
  const view = await DiskView.open(await readMap(opened, (await opened.catalog.cvd('desk')).baseMap!), opened.store)
  for (let index = count - 1; index >= 0; index--) {
    const { pieces } = await view.placesOf((await view.trail(`data/${index}`))!.at(-1)!.node.id)
    for (const { start, length } of pieces) await client.read(start, length)
  }
  return client
}

/** As soon as there is somebody. */
async function connect(address: string): Promise<NbdClient> {
  for (const deadline = Date.now() + WAIT_MS_MAX; ; ) {
    try {
      return await NbdClient.connect(address, { exportName: 'desk' })
    } catch (error) {
      if (Date.now() > deadline) throw error
      await new Promise((resolve) => setTimeout(resolve, 100))
    }
  }
}

test('bootset record serves a CVD until its boot is over; list and show say what was learned', async () => {
  using scratch = new ScratchDirectory('bootset')
  const home = makeHome(scratch)
  assert.equal(varve(home, ['bootset', 'show', 'desk']).json.source, 'guessed')
  assert.deepEqual(varve(home, ['bootset', 'list']).json, [])
  assert.equal(varve(home, ['bootset', 'show', 'nothing'], { expect: 1 }).json.error.code, 'NOT_FOUND')
  for (const [count, learned] of [[10, false], [100, true]] as const) {
    const socket = scratch.join('record.sock')
    const child = spawn(path.resolve(import.meta.dirname, '../../tools/varve'), ['bootset', 'record', 'desk', '--nbd', `unix:${socket}`, '--quiet', '2', '--json', '--home', home], { stdio: ['ignore', 'pipe', 'inherit'] })
    let text = ''
    child.stdout.on('data', (bytes: Buffer) => (text += bytes.toString()))
    const ended = new Promise((resolve) => child.on('close', resolve))
    await using _client = await readFiles(home, socket, count)
    assert.equal(await ended, 0)
    const document = JSON.parse(text)
    assert.equal(document.learned, learned)
    assert.ok(document.chunks >= count && document.bytes >= count * 5000)
  }
  const [listed] = varve(home, ['bootset', 'list']).json
  assert.deepEqual([listed.subject, listed.boots, listed.files], ['layer base', 1, 100])
  for (const name of ['desk', 'base']) {
    const shown = varve(home, ['bootset', 'show', name]).json
    assert.equal(shown.source, 'learned')
    assert.deepEqual(shown.fileList.map((file: { path: string }) => file.path), Array.from({ length: 100 }, (_, index) => `/data/${99 - index}`))
    assert.equal(shown.bytes, 500_000)
  }
  assert.equal(varve(home, ['verify']).json.damageCount, 0)
})

test('a server learns from what it serves, when nothing new is read for a while', async () => {
  using scratch = new ScratchDirectory('bootset')
  const home = makeHome(scratch)
  const socket = scratch.join('nbd.sock')
  await using _server = await VarveServer.start(home, `unix:${socket}`)
  // The first start gives the CVD its base.
  await (await connect(`unix:${socket}`))[Symbol.asyncDispose]()
  await using _client = await readFiles(home, socket, 100)
  const deadline = Date.now() + WAIT_MS_MAX
  while (varve(home, ['bootset', 'list']).json.length === 0) {
    assert.ok(Date.now() < deadline, 'nothing is learned')
    await new Promise((resolve) => setTimeout(resolve, 1000))
  }
  const shown = varve(home, ['bootset', 'show', 'desk']).json
  assert.deepEqual([shown.boots > 0, shown.fileList[0].path], [true, '/data/99'])
})
