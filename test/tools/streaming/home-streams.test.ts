/**
 * What of a CVD is streamed: its newest state, as one map that stays while the disk is open, whoever owns the CVD, and whatever is removed meanwhile.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { mkdirSync, readdirSync, writeFileSync } from 'node:fs'
import { describe, it } from 'node:test'
import { pino } from 'pino'
import { importLayer } from '@varve/composer/import/import-layer.ts'
import { decodeChunkList } from '@varve/images/chunk/chunk-list.ts'
import { type Digest, digestToHex } from '@varve/images/chunk/digest.ts'
import type { BlockDevice } from '@varve/images/device/block-device.ts'
import { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { MapDevice } from '@varve/images/device/map-device.ts'
import { isVarveError } from '@varve/images/errors.ts'
import type { Agent } from '@varve/images/store/catalog-agents.ts'
import { Home } from '@varve/images/store/home.ts'
import { getObject } from '@varve/images/store/object.ts'
import { reachableChunks } from '@varve/images/store/reachable.ts'
import { CvdDisk, ownCvd, removeCvdFiles } from '@varve/tools/cvd-disk.ts'
import { HomeExports } from '@varve/tools/exports.ts'
import { readMap } from '@varve/tools/settlement.ts'
import { makeToken, tokenHash } from '@varve/tools/streaming/agent-token.ts'
import { HomeStreams } from '@varve/tools/streaming/home-streams.ts'
import { ScratchDirectory } from '../../varve-command.ts'

const log = pino({ level: 'silent' })
const cache = () => ChunkCache.create({ bytesMax: 1 << 20 })
const { signal } = new AbortController()

class StreamedHome implements AsyncDisposable {
  readonly scratch: ScratchDirectory
  readonly home: Home
  readonly streams: HomeStreams

  /** With the CVDs `desk` and `other`, which were never started. */
  static async make(): Promise<StreamedHome> {
    const scratch = new ScratchDirectory('home-streams')
    const source = scratch.join('source')
    mkdirSync(source)
    writeFileSync(`${source}/file`, 'content')
    const home = await Home.open(scratch.join('home'))
    await importLayer({ home, name: 'base', kind: 'base', source: `dir:${source}`, workers: 1 })
    for (const name of ['desk', 'other']) await home.catalog.createCvd({ name, layers: ['base'], policy: { boot: 'none' } })
    return new StreamedHome(scratch, home)
  }

  private constructor(scratch: ScratchDirectory, home: Home) {
    this.scratch = scratch
    this.home = home
    this.streams = new HomeStreams(home)
  }

  async enrol(cvds: string[] | null = null): Promise<Agent> {
    const { token, hash } = makeToken(undefined)
    await this.home.catalog.addAgentToken({ hash, cvds, uses: 1, expiresAtMs: Date.now() + 3_600_000 })
    return this.home.catalog.enrolAgent({ tokenHash: tokenHash(token), publicKey: randomBytes(32), name: 'machine' })
  }

  /** What the disk begins with, by its map. */
  async firstByte({ map }: { map: Digest }): Promise<number> {
    const bytes = new Uint8Array(4096)
    await new MapDevice(await readMap(this.home, map), this.home.store, cache()).read(bytes, 0)
    return bytes[0]
  }

  snapshotNames(): Promise<string[]> {
    return this.home.catalog.snapshots('desk').then((snapshots) => snapshots.map(({ name }) => name))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.streams[Symbol.asyncDispose]()
    await this.home[Symbol.asyncDispose]()
    this.scratch[Symbol.dispose]()
  }
}

async function fill(device: BlockDevice, value: number): Promise<void> {
  await device.write(new Uint8Array(4096).fill(value), 0)
  await device.flush()
}

describe('HomeStreams', () => {
  it('a CVD that was never started is started, and what is reported of it is known at the next opening', async () => {
    await using streamed = await StreamedHome.make()
    const agent = await streamed.enrol()
    const disk = await streamed.streams.openDisk('desk', { agent, signal })
    const map = await readMap(streamed.home, disk.map)
    assert.deepEqual([disk.sizeBytes, disk.chunkCount, disk.snapshot, disk.order], [map.sizeBytes, map.chunkCount, null, null])
    const cvd = await streamed.home.catalog.cvd('desk')
    assert.deepEqual([Buffer.from(cvd.baseMap!), cvd.device], [Buffer.from(disk.map), agent.id])
    const chunks = new Set(Array.from({ length: map.chunkCount }, (_, chunk) => digestToHex(map.chunkDigest(chunk))))
    const listed = decodeChunkList(await getObject(streamed.home.store, disk.bootSet!))
    for (let at = 0; at < listed.length; at += 32) assert.ok(chunks.has(digestToHex(listed.subarray(at, at + 32))))
    await disk.recordBoot(new Uint32Array([0]))
    const last = map.chunkCount - 1
    await disk.recordHeat(new Uint32Array([last]))
    await disk.close()
    const again = await streamed.streams.openDisk('desk', { agent, signal })
    assert.ok(again.order !== null)
    await again.close()
  })

  it('a CVD that was started and not written is its base, and no snapshot is taken', async () => {
    await using streamed = await StreamedHome.make()
    const agent = await streamed.enrol()
    await (await CvdDisk.open('desk', { home: streamed.home, cache: cache() }))[Symbol.asyncDispose]()
    const disk = await streamed.streams.openDisk('desk', { agent, signal })
    assert.deepEqual([Buffer.from(disk.map), disk.snapshot], [Buffer.from((await streamed.home.catalog.cvd('desk')).baseMap!), null])
    assert.deepEqual(await streamed.snapshotNames(), [])
    await disk.close()
  })

  it('what was written is in a snapshot that is taken; the next agent finds it, and takes none', async () => {
    await using streamed = await StreamedHome.make()
    {
      await using disk = await CvdDisk.open('desk', { home: streamed.home, cache: cache() })
      await fill(disk.device, 7)
    }
    const [agent, other] = [await streamed.enrol(), await streamed.enrol()]
    const disks = await Promise.all([agent, other].map((one) => streamed.streams.openDisk('desk', { agent: one, signal })))
    assert.equal(await streamed.firstByte(disks[0]), 7)
    assert.deepEqual(disks[0].map, disks[1].map)
    const names = await streamed.snapshotNames()
    assert.equal(names.length, 1)
    assert.deepEqual(disks.map(({ snapshot }) => snapshot), [`desk@${names[0]}`, `desk@${names[0]}`])
    const again = await streamed.streams.openDisk(`desk@${names[0]}`, { agent, signal })
    assert.deepEqual([again.map, again.snapshot], [disks[0].map, `desk@${names[0]}`])
    for (const disk of [...disks, again]) await disk.close()
  })

  it('an agent that says which map it has goes on with that one, as long as something keeps it, and no snapshot is taken', async () => {
    await using streamed = await StreamedHome.make()
    const agent = await streamed.enrol()
    const write = async (value: number) => {
      await using disk = await CvdDisk.open('desk', { home: streamed.home, cache: cache() })
      await fill(disk.device, value)
    }
    const open = async (map?: Digest) => {
      const disk = await streamed.streams.openDisk('desk', { agent, map, signal })
      await disk.close()
      return disk
    }
    const composed = await open()
    await write(1)
    const first = await open()
    await write(2)
    const again = await open(first.map)
    assert.deepEqual([again.map, again.snapshot, (await streamed.snapshotNames()).length], [first.map, first.snapshot, 1])
    assert.deepEqual((await open(composed.map)).map, composed.map)
    const newest = await open(randomBytes(32))
    assert.deepEqual([await streamed.firstByte(newest), (await streamed.snapshotNames()).length], [2, 2])
    await streamed.home.catalog.removeSnapshot('desk', first.snapshot!.split('@')[1])
    assert.deepEqual((await open(first.map)).map, newest.map)
  })

  it('the process that owns the CVD is asked, also while it writes', async () => {
    await using streamed = await StreamedHome.make()
    const agent = await streamed.enrol()
    const owned = await new HomeExports(streamed.home, log, cache()).open('desk')
    const untouched = await streamed.streams.openDisk('desk', { agent, signal })
    assert.deepEqual([untouched.snapshot, await streamed.snapshotNames()], [null, []])
    const seen = []
    for (const value of [1, 2]) {
      await fill(owned.device, value)
      const disk = await streamed.streams.openDisk('desk', { agent, signal })
      seen.push(await streamed.firstByte(disk))
      assert.ok(disk.snapshot !== null)
      await disk.close()
    }
    assert.deepEqual(seen, [1, 2])
    await untouched.close()
    await owned.close!()
  })

  it('a snapshot that is frozen is settled, by its owner if it has one', async () => {
    await using streamed = await StreamedHome.make()
    const agent = await streamed.enrol()
    {
      await using disk = await CvdDisk.open('desk', { home: streamed.home, cache: cache() })
      await fill(disk.device, 3)
      await disk.snapshot('monday')
      await fill(disk.device, 4)
      // Its owner has it, and settles it a little later.
      const opening = streamed.streams.openDisk('desk@monday', { agent, signal })
      assert.equal((await streamed.home.catalog.snapshot('desk', 'monday')).map, null)
      await disk.settle()
      const opened = await opening
      assert.deepEqual([await streamed.firstByte(opened), opened.snapshot], [3, 'desk@monday'])
      await opened.close()
      await disk.snapshot('tuesday')
    }
    const opened = await streamed.streams.openDisk('desk@tuesday', { agent, signal })
    assert.equal(await streamed.firstByte(opened), 4)
    await opened.close()
  })

  it('what a map names stays while it is streamed, though its CVD is removed', async () => {
    await using streamed = await StreamedHome.make()
    const agent = await streamed.enrol()
    {
      await using disk = await CvdDisk.open('desk', { home: streamed.home, cache: cache() })
      await disk.device.write(randomBytes(1 << 20), 0)
      await disk.device.flush()
    }
    const disk = await streamed.streams.openDisk('desk', { agent, signal })
    const { chunkDigests, chunkCount } = await readMap(streamed.home, disk.map)
    {
      const { cvd, owner } = await ownCvd(streamed.home, 'desk')
      using _owner = owner
      await streamed.home.catalog.removeCvd('desk', { snapshots: true })
      removeCvdFiles(streamed.home, cvd)
    }
    const collect = () => streamed.home.store.collect(() => reachableChunks(streamed.home))
    await collect()
    for (let chunk = 0; chunk < chunkCount; chunk++) await streamed.streams.stored(chunkDigests.subarray(32 * chunk, 32 * chunk + 32))
    await disk.close()
    assert.ok((await collect()).removed.chunks > 0)
  })

  it('an agent opens the CVDs of its token, and nothing else is told apart from what does not exist', async () => {
    await using streamed = await StreamedHome.make()
    const agent = await streamed.enrol(['other'])
    const refusal = (name: string) => streamed.streams.openDisk(name, { agent, signal }).then(() => assert.fail(name), (error: unknown) => {
      assert.ok(isVarveError(error, 'NOT_FOUND'), String(error))
      return error.message.replaceAll(/"(desk|nothing)"/g, '""')
    })
    assert.equal(await refusal('desk'), await refusal('nothing'))
    assert.equal(await refusal('desk@x'), await refusal('nothing'))
    await refusal('other@nothing')
    for (const name of ['', '../other', 'other@', 'layer:base@1']) await assert.rejects(streamed.streams.openDisk(name, { agent, signal }), { code: 'NAME_INVALID' })
    await (await streamed.streams.openDisk('other', { agent, signal })).close()
    await streamed.home.catalog.revokeAgent(agent.id)
    assert.equal(await streamed.streams.agent(agent.id), undefined)
    await assert.rejects(streamed.streams.openDisk('other', { agent, signal }), { code: 'AUTH_FAILED' })
  })

  it('an opening ends when the agent has gone, and leaves no lease', async () => {
    await using streamed = await StreamedHome.make()
    const agent = await streamed.enrol()
    await using disk = await CvdDisk.open('desk', { home: streamed.home, cache: cache() })
    await disk.snapshot('never')
    const gone = new AbortController()
    const opening = streamed.streams.openDisk('desk@never', { agent, signal: gone.signal })
    gone.abort()
    await assert.rejects(opening, { name: 'AbortError' })
    assert.deepEqual(readdirSync(`${streamed.home.directory}/packs/locks`).filter((name) => name.endsWith('.lease')), [])
  })
})

describe('tokens', () => {
  it('a token is known by its hash, with a fingerprint and without, and nothing else is one', () => {
    const { token, hash } = makeToken(undefined)
    assert.match(token, /^varve1\.[A-Za-z0-9_-]{43}\.$/)
    assert.equal(tokenHash(token), hash)
    assert.equal(tokenHash(`${token}${'A'.repeat(43)}`), hash)
    for (const wrong of ['', 'varve1', token.slice(1), token.slice(0, -1), `${token}x`, `${token}\n`, token.replace('varve1', 'varve2')]) assert.throws(() => tokenHash(wrong), { code: 'TOKEN_INVALID' }, wrong)
    assert.throws(() => makeToken('/nowhere/cert.pem'), { code: 'CREDENTIALS_INVALID' })
  })
})
