/**
 * `varve agent stream` against `varve serve`, as processes: over a thin line, with a guest that writes, both sides killed, until the disk is complete.
 * Debian packages: qemu-utils (qemu-img), mount (losetup), e2fsprogs (mke2fs).
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { cpSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { NbdClient } from '@varve/blockserver/nbd/client.ts'
import { DelayLine } from '@varve/tools/wan/delay-line.ts'
import { run } from '../blockserver/nbd/serving.ts'
import { Random, testSeed } from '../random.ts'
import { varve, VarveServer } from '../varve-command.ts'
import { DeskHome } from './desk-home.ts'

const launcher = path.resolve(import.meta.dirname, '../../tools/varve')
const FILES = 400

/** `varve agent stream` in the background. */
class StreamingAgent implements AsyncDisposable {
  readonly #child
  readonly exited: Promise<number | NodeJS.Signals>
  readonly #ready: Promise<void>
  #output = ''
  #errors = ''

  constructor(state: string, args: string[]) {
    this.#child = spawn(launcher, ['agent', 'stream', ...args, '--json'], { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, XDG_STATE_HOME: state, XDG_RUNTIME_DIR: state } })
    this.exited = new Promise((resolve) => this.#child.on('exit', (status, signal) => resolve(status ?? signal!)))
    this.#child.stderr.on('data', (bytes: Buffer) => (this.#errors += bytes.toString()))
    this.#ready = new Promise((resolve) => this.#child.stdout.on('data', (bytes: Buffer) => {
      this.#output += bytes.toString()
      if (this.#output.endsWith('}\n')) resolve()
    }))
  }

  /** The document that it printed when it served the disk. */
  async ready(): Promise<any> {
    const ended = await Promise.race([this.#ready, this.exited])
    if (ended !== undefined) throw new Error(`varve agent stream ended with ${ended}\n${this.#output}\n${this.#errors}`)
    return JSON.parse(this.#output)
  }

  get output(): string {
    return this.#output + this.#errors
  }

  async stop(signal: NodeJS.Signals): Promise<number | NodeJS.Signals> {
    this.#child.kill(signal)
    return this.exited
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.exitCode === null && this.#child.signalCode === null) await this.stop('SIGKILL')
  }
}

function fill(random: Random): (directory: string) => void {
  return (directory) => {
    for (let file = 0; file < FILES; file++) {
      const folder = path.join(directory, `folder-${file % 17}`)
      mkdirSync(folder, { recursive: true })
      writeFileSync(path.join(folder, `file-${file}`), random.bytes(random.between(0, random.pick([500, 60_000, 400_000]))))
    }
  }
}

test('a disk streams over a thin line while it is written to; agent and server are killed; it ends as the CVD with what was written', async () => {
  const seed = testSeed()
  const random = new Random(seed)
  using home = new DeskHome({ fill: fill(random), size: '160M' })
  const state = home.scratch.join('state')
  const { token } = varve(home.path, ['agent', 'token', '--cvd', 'desk']).json
  const http = ['--http', '127.0.0.1:0']
  let server = await VarveServer.start(home.path, `unix:${home.socket()}`, { args: http })
  try {
    await using line = await DelayLine.open({ listen: '127.0.0.1:0', target: server.document.http, delayMs: 10, bitsPerSecond: 40_000_000 })
    const target = home.scratch.join('disk.raw')
    const nbd = `unix:${home.scratch.join('agent.sock')}`
    const args = ['desk', '--to', target, '--nbd', nbd]
    // What the CVD's disk is, by another way.
    await run('qemu-img', ['convert', '-O', 'raw', home.uri(), home.scratch.join('expected.raw')])
    const expected = readFileSync(home.scratch.join('expected.raw'))
    const write = async (client: NbdClient, count: number): Promise<void> => {
      for (let index = 0; index < count; index++) {
        const bytes = random.bytes(random.between(1, 20_000))
        const offset = random.below(expected.length - bytes.length)
        await client.write(bytes, offset, { fua: random.chance(0.2) })
        bytes.copy(expected, offset)
      }
    }
    const check = async (client: NbdClient, count: number): Promise<void> => {
      for (let index = 0; index < count; index++) {
        const length = random.between(1, 30_000)
        const offset = random.below(expected.length - length)
        assert.ok((await client.read(offset, length)).equals(expected.subarray(offset, offset + length)), `seed ${seed}: bytes ${offset}+${length}`)
      }
    }
    {
      await using agent = new StreamingAgent(state, [...args, '--from', `http://${line.address}`, '--token', token])
      await agent.ready()
      const client = await NbdClient.connect(nbd, { exportName: 'desk' })
      await check(client, 20)
      await write(client, 30)
      await check(client, 20)
      assert.equal(await agent.stop('SIGKILL'), 'SIGKILL')
    }
    {
      // It needs no token and no address any more: the target knows. A token that is used up is no harm. What was answered is there.
      await using agent = new StreamingAgent(home.scratch.join('another-state'), random.chance(0.5) ? args : [...args, '--from', `http://${line.address}`, '--token', token])
      assert.equal((await agent.ready()).cvd, 'desk')
      const client = await NbdClient.connect(nbd, { exportName: 'desk' })
      await check(client, 20)
      await server.stop('SIGKILL')
      // What these lack of the blocks that they change waits for the server.
      const written = write(client, 10)
      server = await VarveServer.start(home.path, `unix:${home.socket()}`, { args: ['--http', server.document.http] })
      await written
      await check(client, 40)
      line.cut()
      await sleep(300)
      line.mend()
      await write(client, 10)
      const status = varve(home.path, ['agent', 'list']).json
      assert.equal(status.length, 1)
      await client.disconnect()
      assert.equal(await agent.exited, 0, agent.output)
    }
    assert.equal(statSync(target).size, expected.length)
    assert.ok(readFileSync(target).equals(expected), `seed ${seed}: the disk is the CVD with what was written`)
    await using again = new StreamingAgent(state, args)
    assert.equal(await again.exited, 1)
    assert.match(again.output, /--from/)
  } finally {
    await server[Symbol.asyncDispose]()
  }
})

test('what a seed holds does not come over the line', async () => {
  const random = new Random(testSeed())
  using home = new DeskHome({ fill: fill(random), size: '160M' })
  const state = home.scratch.join('state')
  await using server = await VarveServer.start(home.path, `unix:${home.socket()}`, { args: ['--http', '127.0.0.1:0'] })
  const from = `http://${server.document.http}`
  const stream = async (name: string, more: string[]): Promise<number> => {
    await using line = await DelayLine.open({ listen: '127.0.0.1:0', target: server.document.http, delayMs: 1, bitsPerSecond: 20_000_000 })
    const { token } = varve(home.path, ['agent', 'token']).json
    await using agent = new StreamingAgent(path.join(state, name), ['desk', '--to', home.scratch.join(name), '--nbd', `unix:${home.scratch.join(`${name}.sock`)}`, '--from', from.replace(server.document.http, line.address), '--token', token, ...more])
    assert.equal(await agent.exited, 0, agent.output)
    return line.figures.down.bytes
  }
  const seed = home.scratch.join('seed')
  cpSync(home.scratch.join('source'), seed, { recursive: true })
  const plain = await stream('plain', [])
  const fromFiles = await stream('from-files', ['--seed', seed])
  const fromDisk = await stream('from-disk', ['--seed', home.scratch.join('plain')])
  // Another disk that holds the same files elsewhere.
  await run('mke2fs', ['-q', '-t', 'ext4', '-d', seed, home.scratch.join('other'), '200M'])
  const fromOther = await stream('from-other', ['--seed', home.scratch.join('other')])
  const [disk, ...others] = ['plain', 'from-files', 'from-disk', 'from-other'].map((name) => readFileSync(home.scratch.join(name)))
  for (const other of others) assert.ok(other.equals(disk))
  assert.ok(Math.max(fromFiles, fromDisk, fromOther) < plain / 2, `${plain} bytes without, ${fromFiles} with files, ${fromDisk} with the same disk, ${fromOther} with another`)
})

test('a block device that held something else becomes the disk, holes and all', async () => {
  const random = new Random(testSeed())
  using home = new DeskHome({ fill: fill(random), size: '160M' })
  await using server = await VarveServer.start(home.path, `unix:${home.socket()}`, { args: ['--http', '127.0.0.1:0'] })
  const image = home.scratch.join('device.img')
  writeFileSync(image, random.bytes(170 << 20))
  const device = (await run('losetup', ['--find', '--show', image])).stdout.trim()
  try {
    const { token } = varve(home.path, ['agent', 'token']).json
    const args = ['desk', '--to', device, '--nbd', `unix:${home.scratch.join('agent.sock')}`, '--from', `http://${server.document.http}`, '--token', token]
    {
      await using refused = new StreamingAgent(home.scratch.join('state'), args)
      assert.equal(await refused.exited, 1)
      assert.match(refused.output, /TARGET_INVALID.*--overwrite/s)
    }
    await using agent = new StreamingAgent(home.scratch.join('state'), [...args, '--overwrite'])
    assert.equal(await agent.exited, 0, agent.output)
    await run('qemu-img', ['convert', '-O', 'raw', home.uri(), home.scratch.join('expected.raw')])
    const expected = readFileSync(home.scratch.join('expected.raw'))
    const found = readFileSync(image)
    assert.ok(found.subarray(0, expected.length).equals(expected))
    assert.ok(!found.includes('PRIVATE KEY'), 'the key of the agent is not left on the device')
  } finally {
    await run('losetup', ['--detach', device])
  }
})
