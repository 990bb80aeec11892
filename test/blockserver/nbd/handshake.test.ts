/**
 * The handshake byte by byte: each option, its replies and its errors, and what ends a session.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import type { MetaContext } from '@varve/blockserver/nbd/export.ts'
import { RawPeer, counted, go, metaContext, option, request, uint16, uint32 } from './raw-peer.ts'
import { type Serving, serve } from './serving.ts'
import { TestDisk } from './test-disk.ts'

const MiB = 1024 * 1024
const ACK = 1
const ERR_UNSUP = 0x8000_0001
const ERR_INVALID = 0x8000_0003
const ERR_UNKNOWN = 0x8000_0006
const ERR_BLOCK_SIZE_REQD = 0x8000_0008
const ERR_TOO_BIG = 0x8000_0009
const READ_WRITE_FLAGS = 0b1101_0110_1101

async function served(action: (serving: Serving, peer: RawPeer) => Promise<void>): Promise<void> {
  await using serving = await serve({ disk: new TestDisk(MiB), second: new TestDisk(2 * MiB, { readOnly: true }) })
  using peer = await RawPeer.greeted(serving.unix)
  await action(serving, peer)
}

/** The types of all replies to an option. */
async function types(peer: RawPeer, ...parts: Buffer[]): Promise<number[]> {
  peer.send(...parts)
  return (await peer.replies()).map(({ type }) => type)
}

test('the server greets with fixed newstyle and NO_ZEROES', async () => {
  await using serving = await serve({ disk: new TestDisk(MiB) })
  using peer = new RawPeer(serving.unix)
  assert.deepEqual(await peer.read(18), Buffer.concat([Buffer.from('NBDMAGICIHAVEOPT'), uint16(3)]))
})

test('unknown client flags end the session', async () => {
  await using serving = await serve({ disk: new TestDisk(MiB) })
  using peer = await RawPeer.greeted(serving.unix, 4)
  assert.equal((await peer.end()).length, 0)
})

test('a client without the fixed newstyle flag is served too', async () => {
  await using serving = await serve({ disk: new TestDisk(MiB) })
  using peer = await RawPeer.greeted(serving.unix, 0)
  peer.send(option(1, Buffer.from('disk')))
  const reply = await peer.read(8 + 2 + 124)
  assert.equal(reply.readBigUInt64BE(), BigInt(MiB))
  assert.equal(reply.readUInt16BE(8), READ_WRITE_FLAGS)
  assert.ok(reply.subarray(10).every((byte) => byte === 0))
  peer.send(request({ type: 0, length: 3 }))
  assert.deepEqual(await peer.read(19), Buffer.concat([uint32(0x67446698), uint32(0), uint32(0), uint32(1), Buffer.alloc(3)]))
})

test('EXPORT_NAME with NO_ZEROES sends 10 bytes; an unknown name ends the session', () => served(async (serving, peer) => {
  peer.send(option(1), request({ type: 2 }))
  assert.equal((await peer.end()).length, 10)
  for (const name of [Buffer.from('missing'), Buffer.alloc(5000, 'x'), Buffer.alloc(100_000, 'x'), Buffer.from([0xff]), Buffer.from('disk\0')]) {
    using other = await RawPeer.greeted(serving.unix)
    other.send(option(1, name))
    assert.equal((await other.end()).length, 0)
  }
}))

test('LIST names all exports; data with it is invalid', () => served(async (_, peer) => {
  peer.send(option(3))
  const replies = await peer.replies()
  assert.deepEqual(replies.map(({ option: of, type }) => [of, type]), [[3, 2], [3, 2], [3, ACK]])
  assert.deepEqual(replies[1].data, Buffer.concat([counted('second'), Buffer.from('the disk second')]))
  assert.deepEqual(await types(peer, option(3, Buffer.from('x'))), [ERR_INVALID])
}))

test('unknown options are unsupported, whatever their data', () => served(async (_, peer) => {
  for (const type of [0, 4, 12, 0x7fff_ffff, 0xffff_ffff]) assert.deepEqual(await types(peer, option(type, Buffer.alloc(type % 1000))), [ERR_UNSUP], `option ${type}`)
  assert.deepEqual(await types(peer, option(3)), [2, 2, ACK])
}))

test('an option that is too long is passed over, and answered', () => served(async (_, peer) => {
  assert.deepEqual(await types(peer, option(7, Buffer.alloc(70_000))), [ERR_TOO_BIG])
  assert.deepEqual(await types(peer, option(99, Buffer.alloc(3 * MiB))), [ERR_TOO_BIG])
  assert.deepEqual(await types(peer, go(Buffer.alloc(4097, 'x'))), [ERR_TOO_BIG])
  assert.deepEqual(await types(peer, metaContext(9, 'disk', Array.from({ length: 200 }, () => 'base:'))), [ERR_TOO_BIG])
  assert.deepEqual(await types(peer, option(3)), [2, 2, ACK])
}))

test('ABORT is acknowledged, with data or without, and ends the session', () => served(async (serving, peer) => {
  assert.deepEqual(await types(peer, option(2, Buffer.from('why not'))), [ACK])
  await peer.end()
  assert.equal((await serving.server.metrics()).handshakesFailed, 0)
}))

test('INFO tells what is asked for and stays in the handshake; GO enters transmission', () => served(async (_, peer) => {
  for (const type of [6, 6, 7]) {
    peer.send(go('', [1, 2, 3, 77], type))
    const replies = await peer.replies()
    assert.deepEqual(replies.map((reply) => [reply.type, reply.type === 3 ? reply.data.readUInt16BE() : -1]), [[3, 0], [3, 1], [3, 2], [3, 3], [ACK, -1]])
    assert.deepEqual(replies[0].data, Buffer.concat([uint16(0), uint32(0), uint32(MiB), uint16(READ_WRITE_FLAGS)]))
    assert.equal(replies[1].data.toString('utf8', 2), 'disk')
    assert.equal(replies[2].data.toString('utf8', 2), 'the disk disk')
    assert.deepEqual(replies[3].data, Buffer.concat([uint16(3), uint32(1), uint32(4096), uint32(32 * MiB)]))
  }
  peer.send(request({ type: 2 }))
  assert.equal((await peer.end()).length, 0)
}))

test('INFO and GO for what does not exist or is malformed are answered, and the handshake goes on', () => served(async (_, peer) => {
  for (const type of [6, 7]) {
    assert.deepEqual(await types(peer, go('missing', [], type)), [ERR_UNKNOWN])
    assert.deepEqual(await types(peer, option(type)), [ERR_INVALID])
    assert.deepEqual(await types(peer, option(type, Buffer.concat([uint32(500), Buffer.from('disk'), uint16(0)]))), [ERR_INVALID])
    assert.deepEqual(await types(peer, option(type, Buffer.concat([counted('disk'), uint16(2), uint16(1)]))), [ERR_INVALID])
    assert.deepEqual(await types(peer, option(type, Buffer.concat([counted('disk'), uint16(0), Buffer.alloc(1)]))), [ERR_INVALID])
    assert.deepEqual(await types(peer, go(Buffer.from([0xc3, 0x28]), [], type)), [ERR_INVALID])
    assert.deepEqual(await types(peer, go('di\0sk', [], type)), [ERR_INVALID])
  }
  assert.deepEqual(await types(peer, go('disk')), [3, ACK])
}))

test('DF is offered only after structured replies, TRIM and WRITE_ZEROES not to readers', () => served(async (_, peer) => {
  assert.deepEqual(await types(peer, option(8, Buffer.from('x'))), [ERR_INVALID])
  assert.deepEqual(await types(peer, option(8)), [ACK])
  peer.send(go('disk', [], 6), go('second'))
  assert.equal((await peer.replies())[0].data.readUInt16BE(10), READ_WRITE_FLAGS | 1 << 7)
  assert.equal((await peer.replies())[0].data.readUInt16BE(10), 0b101_1000_1111)
}))

test('metadata contexts need structured replies; wildcards list and do not select; unknown ones are passed over', () => served(async (_, peer) => {
  assert.deepEqual(await types(peer, metaContext(10, 'disk', ['base:allocation'])), [ERR_INVALID])
  assert.deepEqual(await types(peer, metaContext(9, 'disk', [])), [ERR_INVALID])
  assert.deepEqual(await types(peer, option(8)), [ACK])
  assert.deepEqual(await types(peer, metaContext(9, 'disk', [])), [4, ACK])
  assert.deepEqual(await types(peer, metaContext(9, 'disk', ['base:'])), [4, ACK])
  assert.deepEqual(await types(peer, metaContext(9, 'disk', ['qemu:', 'base:other'])), [ACK])
  assert.deepEqual(await types(peer, metaContext(10, 'disk', ['base:', 'x-y:z'])), [ACK])
  assert.deepEqual(await types(peer, metaContext(10, 'disk', ['nocolon'])), [ERR_INVALID])
  assert.deepEqual(await types(peer, metaContext(10, 'missing', ['base:allocation'])), [ERR_UNKNOWN])
  assert.deepEqual(await types(peer, option(10, Buffer.concat([counted('disk'), uint32(2), counted('base:allocation')]))), [ERR_INVALID])
  assert.deepEqual(await types(peer, metaContext(10, 'disk', ['base:allocation', 'base:allocation'])), [4, ACK])
}))

/** The type of the chunk that answers a block status request, after these options. */
async function statusChunk(options: Buffer[]): Promise<number> {
  await using serving = await serve({ disk: new TestDisk(MiB), second: new TestDisk(MiB) })
  using peer = await RawPeer.greeted(serving.unix)
  for (const bytes of [option(8), ...options, go('disk')]) {
    peer.send(bytes)
    await peer.replies()
  }
  peer.send(request({ type: 7, length: 512 }))
  return (await peer.read(20)).readUInt16BE(6)
}

test('block status is for the export and the contexts of the last SET_META_CONTEXT', async () => {
  const set = metaContext(10, 'disk', ['base:allocation'])
  assert.equal(await statusChunk([set]), 5)
  assert.equal(await statusChunk([]), 0x8001)
  assert.equal(await statusChunk([set, metaContext(10, 'disk', [])]), 0x8001)
  assert.equal(await statusChunk([set, metaContext(10, 'second', ['base:allocation'])]), 0x8001)
  assert.equal(await statusChunk([set, metaContext(10, 'disk', ['nocolon'])]), 0x8001)
})

test('an option without its magic number, and options without end, end the session', () => served(async (serving, peer) => {
  peer.send(Buffer.from('IHAVEOPS'), uint32(3), uint32(0))
  assert.equal((await peer.end()).length, 0)
  using other = await RawPeer.greeted(serving.unix)
  for (let count = 0; count < 2000; count++) other.send(option(50))
  await other.end()
}))

test('requests sent together with GO are answered', () => served(async (_, peer) => {
  peer.send(go('disk'), request({ type: 1, offset: 7n, length: 5 }), Buffer.from('hello'), request({ type: 0, offset: 7n, length: 5 }), request({ type: 2 }))
  assert.deepEqual((await peer.replies()).map(({ type }) => type), [3, ACK])
  const bytes = await peer.end()
  assert.equal(bytes.length, 16 + 16 + 5)
  assert.equal(bytes.toString('utf8', 32), 'hello')
}))

test('cookies come back as they were sent, all 64 bits', () => served(async (_, peer) => {
  peer.send(go('disk'))
  await peer.replies()
  for (const cookie of [0n, 0xffff_ffff_ffff_ffffn, 0x8000_0000_0000_0001n, 0x0123_4567_89ab_cdefn]) {
    peer.send(request({ type: 3, cookie }))
    assert.equal((await peer.read(16)).readBigUInt64BE(8), cookie)
  }
}))

test('unknown commands, and FLUSH with a range, are EINVAL; offsets beyond all sense are outside', () => served(async (_, peer) => {
  peer.send(go('disk'))
  await peer.replies()
  const error = async (bytes: Buffer) => {
    peer.send(bytes)
    return (await peer.read(16)).readUInt32BE(4)
  }
  for (const type of [8, 9, 255, 65535]) assert.equal(await error(request({ type, length: 100 })), 22)
  assert.equal(await error(request({ type: 3, length: 1 })), 22)
  assert.equal(await error(request({ type: 3, offset: 1n })), 22)
  for (const offset of [0xffff_ffff_ffff_ffffn, 0x7fff_ffff_ffff_fe00n, 1n << 53n]) {
    assert.equal(await error(request({ type: 0, offset, length: 512 })), 22)
    assert.equal(await error(request({ type: 6, offset, length: 512 })), 28)
  }
  assert.equal(await error(request({ type: 0, length: 0 })), 0)
}))

test('a request without its magic number ends the connection', () => served(async (serving, peer) => {
  peer.send(go('disk'))
  await peer.replies()
  peer.send(request({ type: 0, length: 1, magic: 0x12560953 }))
  assert.equal((await peer.end()).length, 0)
  assert.equal((await serving.server.metrics()).connectionsCut, 1)
}))

test('DISC answers what came before it and nothing after', () => served(async (_, peer) => {
  peer.send(go('disk'))
  await peer.replies()
  peer.send(...Array.from({ length: 1000 }, (_unused, index) => request({ type: 0, cookie: BigInt(index), length: 1 })), request({ type: 2 }), request({ type: 0, length: 1 }), Buffer.alloc(100))
  assert.equal((await peer.end()).length, 17_000)
}))

test('requests cut anywhere across reads are put together', () => served(async (_, peer) => {
  peer.send(go('disk'))
  await peer.replies()
  const stream = Buffer.concat([request({ type: 1, offset: 3n, length: 50 }), Buffer.alloc(50, 'a'), request({ type: 0, offset: 3n, length: 50 })])
  for (let at = 1; at < stream.length; at++) {
    peer.send(stream.subarray(0, at))
    await new Promise((resolve) => setImmediate(resolve))
    peer.send(stream.subarray(at))
    assert.equal((await peer.read(16 + 16 + 50)).toString('utf8', 32), 'a'.repeat(50))
  }
}))

test('an export of blocks is served to who asks for their size, and to nobody else', async () => {
  await using serving = await serve({ disk: new TestDisk(MiB) }, { minimumBlockBytes: 4096, contexts: [{ name: 'x-test:all', extents: (_offset, length) => [{ length, flags: 1 }] }] })
  using peer = await RawPeer.greeted(serving.unix)
  for (const type of [6, 7]) {
    peer.send(go('disk', [1, 2], type))
    const replies = await peer.replies()
    assert.deepEqual(replies.map((reply) => reply.type), [3, ERR_BLOCK_SIZE_REQD])
    assert.deepEqual(replies[0].data, Buffer.concat([uint16(3), uint32(4096), uint32(4096), uint32(32 * MiB)]))
  }
  assert.deepEqual(await types(peer, option(8)), [ACK])
  assert.deepEqual(await types(peer, metaContext(10, 'disk', ['x-test:all'])), [4, ACK])
  assert.deepEqual(await types(peer, go('disk', [3])), [3, 3, ACK])
  for (const type of [0, 4, 5, 6, 7]) {
    for (const [offset, length] of [[512n, 4096], [0n, 512], [4095n, 4097]] as const) {
      peer.send(request({ type, offset, length }))
      const header = await peer.read(20)
      assert.equal(header.readUInt16BE(6), 0x8001, `command ${type}`)
      assert.equal((await peer.read(header.readUInt32BE(16))).readUInt32BE(), 22)
    }
  }
  peer.send(request({ type: 1, offset: 1n, length: 5 }), Buffer.alloc(5), request({ type: 1, offset: 8192n, length: 4096 }), Buffer.alloc(4096))
  const refused = await peer.read(20)
  assert.equal((await peer.read(refused.readUInt32BE(16))).readUInt32BE(), 22)
  assert.equal((await peer.read(16)).readUInt32BE(4), 0)
  using old = await RawPeer.greeted(serving.unix)
  old.send(option(1, Buffer.from('disk')))
  assert.equal((await old.end()).length, 0)
})

test('contexts of an export are listed by name and by namespace, and each has an id of its own', async () => {
  const context = (name: string): MetaContext => ({ name, extents: (_offset, length) => [{ length, flags: 0 }] })
  await using serving = await serve({ disk: new TestDisk(MiB), second: new TestDisk(MiB) }, { contexts: [context('varve:dirty'), context('varve:resident'), context('x-a:b:c')] })
  using peer = await RawPeer.greeted(serving.unix)
  assert.deepEqual(await types(peer, option(8)), [ACK])
  const named = async (type: number, queries: string[], name = 'disk') => {
    peer.send(metaContext(type, name, queries))
    return (await peer.replies()).slice(0, -1).map(({ data }) => [data.readUInt32BE(), data.toString('utf8', 4)])
  }
  assert.deepEqual(await named(9, []), [[0, 'base:allocation'], [0, 'varve:dirty'], [0, 'varve:resident'], [0, 'x-a:b:c']])
  assert.deepEqual(await named(9, ['varve:']), [[0, 'varve:dirty'], [0, 'varve:resident']])
  assert.deepEqual(await named(9, ['x-a:', 'varve:dirty', 'varve:d', 'x-a:b']), [[0, 'varve:dirty'], [0, 'x-a:b:c']])
  assert.deepEqual(await named(10, ['varve:', 'x-a:b', 'base:']), [])
  assert.deepEqual(await named(10, ['x-a:b:c', 'base:allocation', 'varve:resident']), [[1, 'base:allocation'], [3, 'varve:resident'], [4, 'x-a:b:c']])
  // An export that is asked about in between is closed again, and what was selected stays.
  assert.deepEqual(await types(peer, go('second', [], 6)), [3, ACK])
  assert.deepEqual(await types(peer, go('disk')), [3, ACK])
  peer.send(request({ type: 7, length: 512 }))
  for (const [id, flags] of [[1, 0], [3, 0], [4, 1]]) {
    const header = await peer.read(20)
    assert.deepEqual([header.readUInt16BE(4), header.readUInt16BE(6)], [flags, 5])
    assert.equal((await peer.read(header.readUInt32BE(16))).readUInt32BE(), id)
  }
})

test('a structured read that the device fails is answered by an error with its offset', async () => {
  await using serving = await serve({ disk: new TestDisk(MiB, { fault: () => { throw new Error('broken on purpose') } }) })
  using peer = await RawPeer.greeted(serving.unix)
  for (const bytes of [option(8), go('disk')]) {
    peer.send(bytes)
    await peer.replies()
  }
  peer.send(request({ type: 0, offset: 4096n, length: 512 }))
  const header = await peer.read(20)
  assert.deepEqual([header.readUInt16BE(4), header.readUInt16BE(6)], [1, 0x8002])
  const payload = await peer.read(header.readUInt32BE(16))
  assert.deepEqual([payload.readUInt32BE(), payload.readBigUInt64BE(payload.length - 8)], [5, 4096n])
})
