/**
 * Extended headers: negotiation and frames byte by byte, lengths beyond 32 bits, and block status with a payload.
 * libnbd speaks them from 1.18 on and qemu from 8.2 on; Debian 12 has older ones, so our own client and bytes are the judges here.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { NbdClient, NbdRequestError } from '@varve/blockserver/nbd/client.ts'
import type { MetaContext } from '@varve/blockserver/nbd/export.ts'
import { RawPeer, extendedRequest, go, metaContext, option, uint16, uint32, uint64 } from './raw-peer.ts'
import { serve } from './serving.ts'
import { SparseDisk } from './sparse-disk.ts'
import { TestDisk } from './test-disk.ts'

const MiB = 1024 * 1024
const TiB = 1024 ** 4
const ACK = 1
const ERR_INVALID = 0x8000_0003
const ERR_EXT_HEADER_REQD = 0x8000_000a
const [READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS] = [0, 1, 2, 3, 4, 5, 6, 7]
const [FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN] = [1, 2, 4, 8, 16, 32]
const DONE = 1
const [NONE, OFFSET_DATA, OFFSET_HOLE, STATUS_EXT, ERROR] = [0, 1, 2, 6, 0x8001]
const [EPERM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP] = [1, 22, 28, 75, 95]

/** Odd and even MiB. */
const STRIPES: MetaContext = {
  name: 'x-test:stripes',
  extents(offset, length, most) {
    const runs = []
    for (let at = offset; at < offset + length && runs.length < most;) {
      const end = Math.min(offset + length, (Math.floor(at / MiB) + 1) * MiB)
      runs.push({ length: end - at, flags: Math.floor(at / MiB) % 2 })
      at = end
    }
    return runs
  },
}

interface Chunk {
  flags: number
  type: number
  cookie: bigint
  offset: bigint
  payload: Buffer
}

/** A peer in the transmission phase of `disk`, with extended headers. */
async function entered(address: string, contexts: string[] = [], name = 'disk'): Promise<RawPeer> {
  const peer = await RawPeer.greeted(address)
  for (const bytes of [option(11), metaContext(10, name, contexts), go(name)]) {
    peer.send(bytes)
    assert.equal((await peer.replies()).at(-1)?.type, ACK)
  }
  return peer
}

async function chunk(peer: RawPeer): Promise<Chunk> {
  const header = await peer.read(32)
  assert.equal(header.readUInt32BE(), 0x6e8a278c)
  return {
    flags: header.readUInt16BE(4), type: header.readUInt16BE(6), cookie: header.readBigUInt64BE(8), offset: header.readBigUInt64BE(16),
    payload: await peer.read(Number(header.readBigUInt64BE(24))),
  }
}

/** All chunks of a reply. */
async function reply(peer: RawPeer): Promise<Chunk[]> {
  const chunks = [await chunk(peer)]
  while ((chunks[chunks.length - 1].flags & DONE) === 0) chunks.push(await chunk(peer))
  return chunks
}

/** The error of the reply to a request, or 0. */
async function errorOf(peer: RawPeer, ...parts: Buffer[]): Promise<number> {
  peer.send(...parts)
  const last = (await reply(peer)).at(-1)!
  return last.type === ERROR ? last.payload.readUInt32BE() : 0
}

async function types(peer: RawPeer, bytes: Buffer): Promise<number[]> {
  peer.send(bytes)
  return (await peer.replies()).map(({ type }) => type)
}

test('extended headers are agreed on alone or after structured replies, and then take precedence', async () => {
  await using serving = await serve({ disk: new TestDisk(MiB) })
  using peer = await RawPeer.greeted(serving.unix)
  assert.deepEqual(await types(peer, option(11, Buffer.from('x'))), [ERR_INVALID])
  assert.deepEqual(await types(peer, option(8)), [ACK])
  assert.deepEqual(await types(peer, option(11)), [ACK])
  assert.deepEqual(await types(peer, option(8)), [ERR_EXT_HEADER_REQD])
  assert.deepEqual(await types(peer, option(11)), [ACK])
  assert.deepEqual(await types(peer, metaContext(9, 'disk', [])), [4, ACK])
  peer.send(go('disk', [], 6))
  assert.equal((await peer.replies())[0].data.readUInt16BE(10), 0b1101_1110_1101, 'DF, and no payload of block status without a context')
  assert.deepEqual(await types(peer, metaContext(10, 'disk', ['base:allocation'])), [4, ACK])
  peer.send(go('disk'))
  assert.equal((await peer.replies())[0].data.readUInt16BE(10), 0b1_1101_1110_1101)
})

test('EXPORT_NAME after extended headers ends the session', async () => {
  await using serving = await serve({ disk: new TestDisk(MiB) })
  using peer = await RawPeer.greeted(serving.unix)
  assert.deepEqual(await types(peer, option(11)), [ACK])
  peer.send(option(1, Buffer.from('disk')))
  assert.equal((await peer.end()).length, 0)
})

test('every command is answered in chunks with headers of 32 bytes that repeat cookie and offset', async () => {
  await using serving = await serve({ disk: new TestDisk(MiB) }, { fastZeroes: true })
  using peer = await entered(serving.unix)
  const cookie = 0x8000_0000_0000_0001n
  const about = ({ flags, type, payload, ...rest }: Chunk) => ({ flags, type, bytes: payload.length, ...rest })
  for (const [type, flags, length, payload] of [
    [WRITE, PAYLOAD_LEN, 100n, Buffer.alloc(100, 7)], [WRITE, PAYLOAD_LEN | FUA, 50_000n, Buffer.alloc(50_000, 7)], [TRIM, 0, 10n], [TRIM, FUA, 10n], [CACHE, 0, 1000n], [WRITE_ZEROES, NO_HOLE, 5n],
    [WRITE_ZEROES, FAST_ZERO | FUA, 5n], [READ, 0, 0n],
  ] as [number, number, bigint, Buffer?][]) {
    peer.send(extendedRequest({ type, flags, cookie, offset: 77n, length }), payload ?? Buffer.alloc(0))
    assert.deepEqual((await reply(peer)).map(about), [{ flags: DONE, type: NONE, bytes: 0, cookie, offset: 77n }], `command ${type}`)
  }
  peer.send(extendedRequest({ type: FLUSH, cookie }))
  assert.deepEqual((await reply(peer)).map(about), [{ flags: DONE, type: NONE, bytes: 0, cookie, offset: 0n }])
  peer.send(extendedRequest({ type: READ, cookie, offset: 90n, length: 4n }))
  const [read] = await reply(peer)
  assert.deepEqual([about(read), read.payload], [{ flags: DONE, type: OFFSET_DATA, bytes: 12, cookie, offset: 90n }, Buffer.concat([uint64(90n), Buffer.alloc(4, 7)])])
  peer.send(extendedRequest({ type: READ, cookie, offset: 10n, length: 500_000n }))
  const sparse = await reply(peer)
  assert.deepEqual(sparse.map(({ type, offset }) => [type, offset]), [[OFFSET_DATA, 10n], [OFFSET_HOLE, 10n]])
  assert.deepEqual(sparse[1].payload, Buffer.concat([uint64(53_248n), uint32(500_010 - 53_248)]))
  peer.send(extendedRequest({ type: READ, flags: DF, offset: 10n, length: 500_000n }))
  assert.equal((await reply(peer)).length, 1)
  peer.send(extendedRequest({ type: DISC }))
  assert.equal((await peer.end()).length, 0)
})

test('errors are those of compact headers, for what is out of place as for what is too long', async () => {
  await using serving = await serve({ disk: new TestDisk(MiB), reader: new TestDisk(MiB, { readOnly: true }) })
  using peer = await entered(serving.unix, ['base:allocation'])
  const cases: [number, number, number, bigint, bigint][] = [
    [EINVAL, READ, 0, 1n, BigInt(MiB)], [EINVAL, READ, 0, 1n << 62n, 512n], [EINVAL, READ, 0, 0n, 0xffff_ffff_ffff_ffffn], [EINVAL, TRIM, 0, 0n, 1n << 40n], [EINVAL, CACHE, 0, 0n, 1n << 33n],
    [ENOSPC, WRITE_ZEROES, 0, 0n, 1n << 40n], [EINVAL, FLUSH, 0, 1n, 0n], [EINVAL, 8, 0, 0n, 0n], [EINVAL, READ, NO_HOLE, 0n, 1n], [ENOTSUP, WRITE_ZEROES, FAST_ZERO, 0n, 512n], [EINVAL, BLOCK_STATUS, 0, 0n, 1n << 40n],
    [EINVAL, BLOCK_STATUS, 0, 0n, 0n], [EINVAL, READ, 1 << 6, 0n, 1n],
  ]
  for (const [error, type, flags, offset, length] of cases) assert.equal(await errorOf(peer, extendedRequest({ type, flags, offset, length })), error, `command ${type} at ${offset}, ${length}`)
  assert.equal(await errorOf(peer, extendedRequest({ type: WRITE, flags: PAYLOAD_LEN, offset: BigInt(MiB), length: 3n }), Buffer.alloc(3)), ENOSPC)
  using reader = await entered(serving.unix, [], 'reader')
  assert.equal(await errorOf(reader, extendedRequest({ type: WRITE, flags: PAYLOAD_LEN, length: 100_000n }), Buffer.alloc(100_000)), EPERM)
  assert.equal(await errorOf(reader, extendedRequest({ type: READ, length: 1n })), 0)
})

test('a payload that no command has is passed over and answered; one that is too large ends the connection', async () => {
  await using serving = await serve({ disk: new TestDisk(64 * MiB) })
  using peer = await entered(serving.unix)
  for (const type of [READ, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, 99]) {
    assert.equal(await errorOf(peer, extendedRequest({ type, flags: PAYLOAD_LEN, length: 70_000n }), Buffer.alloc(70_000)), EINVAL, `command ${type}`)
  }
  // qemu 10 forgets the flag; the payload is there.
  assert.equal(await errorOf(peer, extendedRequest({ type: WRITE, length: 5n }), Buffer.from('hello')), 0)
  peer.send(extendedRequest({ type: READ, length: 5n }))
  assert.equal((await reply(peer))[0].payload.toString('utf8', 8), 'hello')
  assert.equal(await errorOf(peer, extendedRequest({ type: READ, length: 33n * BigInt(MiB) })), EOVERFLOW)
  peer.send(extendedRequest({ type: WRITE, flags: PAYLOAD_LEN, length: 33n * BigInt(MiB) }))
  await peer.end()
  for (const length of [1n << 32n, 0xffff_ffff_ffff_ffffn]) {
    using other = await entered(serving.unix)
    other.send(extendedRequest({ type: WRITE, flags: PAYLOAD_LEN, length }))
    await other.end()
  }
  assert.equal((await serving.server.metrics()).connectionsCut, 3)
})

test('a compact request where extended ones were agreed on ends the connection', async () => {
  await using serving = await serve({ disk: new TestDisk(MiB) })
  using peer = await entered(serving.unix)
  peer.send(extendedRequest({ type: READ, length: 1n, magic: 0x25609513 }))
  assert.equal((await peer.end()).length, 0)
})

test('block status gives a chunk for each context, with 64-bit lengths; a payload says which', async () => {
  const disk = new TestDisk(4 * MiB)
  await disk.write(Buffer.alloc(4096, 1), 4096)
  await using serving = await serve({ disk }, { contexts: [STRIPES] })
  using peer = await entered(serving.unix, ['base:allocation', 'x-test:stripes'])
  const status = async (bytes: Buffer, payload: Buffer = Buffer.alloc(0)) => {
    peer.send(bytes, payload)
    return (await reply(peer)).map(({ type, payload: data }) => {
      assert.ok(type === STATUS_EXT || type === NONE)
      return data.length === 0 ? [] : [data.readUInt32BE(), data.readUInt32BE(4), ...Array.from({ length: (data.length - 8) / 8 }, (_, index) => Number(data.readBigUInt64BE(8 + 8 * index)))]
    })
  }
  const allocation = [1, 3, 4096, 3, 4096, 0, 4 * MiB - 8192, 3]
  const stripes = [2, 4, MiB, 0, MiB, 1, MiB, 0, MiB, 1]
  const request = (fields: { flags?: number; offset?: bigint; length: bigint }) => extendedRequest({ type: BLOCK_STATUS, ...fields })
  assert.deepEqual(await status(request({ length: 4n * BigInt(MiB) })), [allocation, stripes])
  assert.deepEqual(await status(request({ length: 4n * BigInt(MiB), flags: REQ_ONE })), [[1, 1, 4096, 3], [2, 1, MiB, 0]])
  const filter = (...ids: number[]) => Buffer.concat([uint64(4n * BigInt(MiB)), ...ids.map(uint32)])
  const filtered = (payload: Buffer, flags = 0) => [request({ length: BigInt(payload.length), flags: PAYLOAD_LEN | flags }), payload] as const
  assert.deepEqual(await status(...filtered(filter(2))), [stripes])
  assert.deepEqual(await status(...filtered(filter(2, 1))), [stripes, allocation])
  assert.deepEqual(await status(...filtered(filter(1), REQ_ONE)), [[1, 1, 4096, 3]])
  assert.deepEqual(await status(...filtered(filter())), [[]])
  const wrong = [
    filter(3), filter(0), filter(1, 1), filter(1, 2, 1), Buffer.alloc(7), Buffer.alloc(13), Buffer.alloc(100_000),
    Buffer.concat([uint64(0n), uint32(1)]), Buffer.concat([uint64(5n * BigInt(MiB)), uint32(1)]), Buffer.concat([uint64(1n << 63n), uint32(1)]),
  ]
  for (const payload of wrong) assert.equal(await errorOf(peer, ...filtered(payload)), EINVAL, payload.subarray(0, 20).toString('hex'))
  // Cut anywhere.
  const stream = Buffer.concat(filtered(filter(1)))
  for (let at = 1; at < stream.length; at++) {
    peer.send(stream.subarray(0, at))
    await new Promise((resolve) => setImmediate(resolve))
    assert.deepEqual(await status(stream.subarray(at)), [allocation])
  }
})

test('one request trims, zeroes and asks about many terabytes', async () => {
  const disk = new SparseDisk(64 * TiB)
  disk.write(Buffer.alloc(4096, 1), 3 * TiB)
  disk.write(Buffer.alloc(4096, 2), 40 * TiB)
  await using serving = await serve({ disk })
  await using client = await NbdClient.connect(serving.unix)
  assert.equal(client.framing, 'extended')
  assert.deepEqual(await client.allocation(0, 64 * TiB), [
    { length: 3 * TiB, flags: 3 }, { length: 4096, flags: 0 }, { length: 37 * TiB - 4096, flags: 3 }, { length: 4096, flags: 0 }, { length: 24 * TiB - 4096, flags: 3 },
  ])
  await client.trim(0, 20 * TiB)
  assert.deepEqual(await client.allocation(0, 40 * TiB), [{ length: 40 * TiB, flags: 3 }])
  await client.writeZeroes(4096, 64 * TiB - 4096)
  assert.deepEqual(await client.allocation(0, 64 * TiB), [{ length: 64 * TiB, flags: 3 }])
  await assert.rejects(client.trim(4096, 64 * TiB), (error) => error instanceof NbdRequestError && error.errno === EINVAL)
  await using compact = await NbdClient.connect(serving.unix, { framing: 'structured' })
  await assert.rejects(compact.trim(0, TiB), RangeError)
  assert.deepEqual(await compact.allocation(0, 0xffff_f000), [{ length: 0xffff_f000, flags: 3 }])
})

for (const framing of ['extended', 'structured'] as const) {
  test(`our client asks for some contexts or all, ${framing}`, async () => {
    await using serving = await serve({ disk: new TestDisk(4 * MiB) }, { contexts: [STRIPES] })
    await using client = await NbdClient.connect(serving.unix, { framing, contexts: ['x-test:stripes', 'base:allocation', 'x-test:none'] })
    assert.deepEqual(client.contexts, ['base:allocation', 'x-test:stripes'])
    const stripes = [{ length: MiB, flags: 0 }, { length: MiB, flags: 1 }, { length: 1000, flags: 0 }]
    assert.deepEqual(await client.blockStatus(0, 2 * MiB + 1000), new Map([['base:allocation', [{ length: 2 * MiB + 1000, flags: 3 }]], ['x-test:stripes', stripes]]))
    assert.deepEqual(await client.blockStatus(0, 2 * MiB + 1000, { contexts: ['x-test:stripes'] }), new Map([['x-test:stripes', stripes]]))
    assert.deepEqual(await client.blockStatus(MiB, 2 * MiB, { one: true, contexts: ['x-test:stripes'] }), new Map([['x-test:stripes', [{ length: MiB, flags: 1 }]]]))
  })
}

test('INFO and GO with extended headers tell the same', async () => {
  await using serving = await serve({ disk: new TestDisk(MiB) })
  using peer = await RawPeer.greeted(serving.unix)
  assert.deepEqual(await types(peer, option(11)), [ACK])
  const answers = []
  for (const type of [6, 7]) {
    peer.send(go('', [0, 1, 2, 3], type))
    answers.push((await peer.replies()).map(({ type: of, data }) => [of, data]))
  }
  assert.deepEqual(answers[0], answers[1])
  assert.deepEqual(answers[0][3], [3, Buffer.concat([uint16(3), uint32(1), uint32(4096), uint32(32 * MiB)])])
})

test('a read that the device fails is answered by an error with its offset, and by nothing else', async () => {
  let broken = false
  const disk = new TestDisk(MiB, { fault: () => { if (broken) throw new Error('broken on purpose') } })
  await disk.write(Buffer.alloc(MiB, 1), 0)
  broken = true
  await using serving = await serve({ disk })
  using peer = await entered(serving.unix)
  for (const length of [512n, 500_000n]) {
    peer.send(extendedRequest({ type: READ, offset: 4096n, length }))
    const [{ type, payload, offset }, ...rest] = await reply(peer)
    assert.deepEqual([type, offset, rest], [0x8002, 4096n, []])
    assert.equal(payload.readUInt32BE(), 5)
    assert.equal(payload.readBigUInt64BE(6 + payload.readUInt16BE(4)), 4096n)
  }
  assert.equal(await errorOf(peer, extendedRequest({ type: FLUSH })), 5)
})
