/**
 * A serving process is killed at any moment, or stopped in order: what FLUSH or FUA acknowledged is there when it is started again.
 */
import assert from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import test from 'node:test'
import { NbdClient } from '@varve/blockserver/nbd/client.ts'
import { Random, testSeed } from '../../random.ts'

const DISK_BYTES = 16 * 1024 * 1024
const SECTOR_BYTES = 512
const SECTORS = DISK_BYTES / SECTOR_BYTES
const KILLS = 12

/** What each sector may hold: the last durable content first, then what was written since. Zero is a sector never written. */
class Expected {
  readonly #tags = new Map<number, number[]>()

  written(sector: number, tag: number): void {
    const tags = this.#tags.get(sector)
    if (tags === undefined) this.#tags.set(sector, [0, tag])
    else tags.push(tag)
  }

  durable(sector: number): void {
    const tags = this.#tags.get(sector)
    if (tags !== undefined) this.#tags.set(sector, tags.slice(-1))
  }

  allDurable(): void {
    for (const sector of this.#tags.keys()) this.durable(sector)
  }

  /** Compares, and takes over what is there. */
  check(bytes: Buffer, message: string): void {
    for (let sector = 0; sector < SECTORS; sector++) {
      const tag = bytes.readUInt32LE(sector * SECTOR_BYTES)
      const allowed = this.#tags.get(sector) ?? [0]
      assert.ok(allowed.includes(tag), `${message}: sector ${sector} holds ${tag}, which is not one of ${allowed.join()}`)
      assert.deepEqual(bytes.subarray(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES), sectorContent(tag), `${message}: sector ${sector} is torn`)
      if (allowed.length > 1) this.#tags.set(sector, [tag])
    }
  }
}

function sectorContent(tag: number): Buffer {
  const bytes = Buffer.alloc(SECTOR_BYTES)
  for (let at = 0; at < SECTOR_BYTES; at += 4) bytes.writeUInt32LE(tag, at)
  return bytes
}

async function start(directory: string, socketPath: string): Promise<ChildProcess> {
  const child = spawn(process.execPath, [path.join(import.meta.dirname, 'serve-overlay.ts'), path.join(directory, 'overlay'), socketPath, String(DISK_BYTES)], { stdio: ['ignore', 'pipe', 'inherit'] })
  await once(child.stdout, 'data')
  return child
}

/** Writes rounds of requests in flight together, with flushes and FUA between, until the server is gone. */
async function writeUntilKilled(client: NbdClient, random: Random, expected: Expected, nextTag: () => number): Promise<void> {
  for (;;) {
    const sent: Promise<void>[] = []
    let sector = random.below(200)
    while (sent.length < 24 && sector < SECTORS - 300) {
      const count = random.pick([1, 1, 3, 8, 8, 64, 200])
      sent.push(writeSectors(client, { sector, count, fua: random.chance(0.1) }, expected, nextTag()))
      sector += count + random.below(3000)
    }
    await Promise.all(sent)
    if (random.chance(0.5)) {
      await client.flush()
      expected.allDurable()
    }
  }
}

async function writeSectors(client: NbdClient, { sector, count, fua }: { sector: number; count: number; fua: boolean }, expected: Expected, tag: number): Promise<void> {
  for (let index = 0; index < count; index++) expected.written(sector + index, tag)
  await client.write(Buffer.concat(Array.from({ length: count }, () => sectorContent(tag))), sector * SECTOR_BYTES, { fua })
  if (fua) for (let index = 0; index < count; index++) expected.durable(sector + index)
}

test('what was flushed before SIGKILL is there afterwards', async (context) => {
  const seed = testSeed()
  const random = new Random(seed)
  const directory = mkdtempSync(path.join(tmpdir(), 'varve-nbd-'))
  const socketPath = path.join(directory, 's')
  const expected = new Expected()
  let tag = 0
  let child: ChildProcess | undefined
  try {
    for (let kill = 0; kill <= KILLS; kill++) {
      child = await start(directory, socketPath)
      const client = await NbdClient.connect(`unix:${socketPath}`)
      expected.check(await client.read(0, DISK_BYTES), `seed ${seed}, after ${kill} kills`)
      const ended = once(child, 'close')
      setTimeout((victim: ChildProcess) => victim.kill('SIGKILL'), random.between(1, 250), child)
      await assert.rejects(writeUntilKilled(client, random, expected, () => ++tag))
      await ended
    }
    context.diagnostic(`seed ${seed}: ${tag} writes`)
  } finally {
    child?.kill('SIGKILL')
    rmSync(directory, { recursive: true, force: true })
  }
})

test('what was acknowledged before SIGTERM is there afterwards, flushed or not', async () => {
  const directory = mkdtempSync(path.join(tmpdir(), 'varve-nbd-'))
  const socketPath = path.join(directory, 's')
  let child = await start(directory, socketPath)
  try {
    const client = await NbdClient.connect(`unix:${socketPath}`)
    const content = new Random(1).bytes(3_000_001)
    await client.write(content, 12_345)
    const stopped = once(child, 'close')
    child.kill('SIGTERM')
    assert.deepEqual(await stopped, [0, null])
    child = await start(directory, socketPath)
    const again = await NbdClient.connect(`unix:${socketPath}`)
    assert.deepEqual(await again.read(12_345, content.length), content)
    await again.disconnect()
  } finally {
    child.kill('SIGKILL')
    rmSync(directory, { recursive: true, force: true })
  }
})
