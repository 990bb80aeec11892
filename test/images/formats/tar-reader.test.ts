import assert from 'node:assert/strict'
import test, { describe } from 'node:test'
import { VarveError } from '@varve/images/errors.ts'
import { ByteStream } from '@varve/images/formats/byte-stream.ts'
import { aclFromText } from '@varve/images/formats/posix-acl.ts'
import { TarReader } from '@varve/images/formats/tar-reader.ts'
import type { TarMember } from '@varve/images/formats/tar-reader.ts'
import { Random, testSeed } from '../../random.ts'
import { TarWriter } from './tar-writer.ts'
import type { TarWriterMember } from './tar-writer.ts'

const seed = testSeed()

/** Gives the bytes in pieces of random length. */
async function* pieces(bytes: Uint8Array, random: Random): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; ) {
    const length = random.pick([1, 7, 512, 700, 5000, 100_000])
    yield bytes.subarray(at, at + length)
    at += length
  }
}

async function readAll(bytes: Uint8Array, random = new Random(seed)): Promise<(TarMember & { data: Buffer })[]> {
  const reader = new TarReader(new ByteStream(pieces(bytes, random)), { endRequired: true })
  const members: (TarMember & { data: Buffer })[] = []
  for (let member = await reader.next(); member !== undefined; member = await reader.next()) {
    const length = reader.dataBytes
    // Data that is not read is skipped. What a damaged header says of its length is not believed.
    const data = Buffer.alloc(length > 1 << 20 || random.chance(0.2) ? 0 : length)
    await reader.readData(data)
    members.push({ ...member, data })
  }
  return members
}

async function readOne(write: (writer: TarWriter) => void): Promise<TarMember & { data: Buffer }> {
  const writer = new TarWriter()
  write(writer)
  writer.end()
  const reader = new TarReader(new ByteStream(pieces(writer.bytes(), new Random(seed))), { endRequired: true })
  const member = await reader.next()
  const data = Buffer.alloc([...member!.parts].reduce((sum, { length }) => sum + length, 0))
  await reader.readData(data)
  assert.equal(await reader.next(), undefined)
  return { ...member!, data }
}

const one = (member: TarWriterMember) => readOne((writer) => writer.member(member))
const FILE: TarWriterMember = { path: 'a', type: '0', data: Buffer.from('content') }

describe('tar reader', () => {
  test('data comes whole, however the stream is cut', async () => {
    const random = new Random(seed)
    const writer = new TarWriter()
    const contents = Array.from({ length: 50 }, () => random.bytes(random.pick([0, 1, 511, 512, 513, 20_000])))
    for (const [index, content] of contents.entries()) writer.file(`f${index}`, content)
    writer.end()
    const reader = new TarReader(new ByteStream(pieces(writer.bytes(), random)), { endRequired: true })
    for (const content of contents) {
      const member = await reader.next()
      const data = Buffer.alloc(member!.sizeBytes)
      assert.ok((await reader.peekData(16)).length === Math.min(16, content.length))
      await reader.readData(data)
      assert.ok(data.equals(content), `seed ${seed}`)
    }
    assert.equal(await reader.next(), undefined)
  })

  test('numbers in base 256: large, and negative', async () => {
    const large = Buffer.from([0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xfe])
    const before = Buffer.from([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe])
    const member = await one({ ...FILE, patch: [{ offset: 108, bytes: large }, { offset: 136, bytes: before }] })
    assert.equal(member.uid, 0xfffffffe)
    assert.equal(member.mtimeSeconds, -2)
  })

  test('a checksum of signed bytes is accepted, a wrong one is not', async () => {
    const path = 'n\xe4me'
    const header = Buffer.from(path, 'latin1')
    const unsigned = (await one({ ...FILE, path })).path
    assert.equal(unsigned, path)
    const writer = new TarWriter()
    writer.member({ ...FILE, path })
    const sum = Number.parseInt(writer.bytes().toString('latin1', 148, 154), 8)
    assert.equal((await one({ ...FILE, path, checksum: sum - 256 * header.filter((byte) => byte >= 0x80).length })).path, path)
    await assert.rejects(one({ ...FILE, checksum: 1 }), { code: 'FORMAT_INVALID', message: /wrong checksum/ })
  })

  test('times of PAX: before 1970, with more digits than fit', async () => {
    for (const [text, seconds, nanoseconds] of [['-1.5', -2, 500_000_000], ['-0.25', -1, 750_000_000], ['-3', -3, 0], ['5000000000.1234567899', 5_000_000_000, 123_456_789], ['0', 0, 0]] as const) {
      const member = await readOne((writer) => {
        writer.pax([['mtime', text]])
        writer.member(FILE)
      })
      assert.deepEqual([member.mtimeSeconds, member.mtimeNanoseconds], [seconds, nanoseconds], text)
    }
  })

  test('global records hold until others take their place; an empty value takes them away', async () => {
    const writer = new TarWriter()
    writer.pax([['uid', '70'], ['gid', '71']], 'g')
    writer.member(FILE)
    writer.pax([['uid', '80']])
    writer.member(FILE)
    writer.pax([['uid', '']])
    writer.member({ ...FILE, uid: 5 })
    writer.pax([['gid', '']], 'g')
    writer.member({ ...FILE, gid: 6 })
    writer.end()
    assert.deepEqual((await readAll(writer.bytes())).map(({ uid, gid }) => [uid, gid]), [[70, 71], [80, 71], [5, 71], [70, 6]])
  })

  test('a size of PAX counts, not that of the header', async () => {
    const member = await readOne((writer) => {
      writer.pax([['size', '7']])
      writer.member({ ...FILE, sizeBytes: 0 })
    })
    assert.equal(member.data.toString(), 'content')
  })

  test('attributes: SCHILY as bytes, LIBARCHIVE in base 64, labels', async () => {
    const value = Buffer.from([0, 1, 0xff, 0x0a, 0x3d])
    const member = await readOne((writer) => {
      writer.pax([['SCHILY.xattr.user.raw', value], ['LIBARCHIVE.xattr.user.b%3Dc', value.toString('base64')], ['RHT.security.selinux', 'system_u:object_r:etc_t:s0'], ['SCHILY.xattr.user.empty', '']])
      writer.member(FILE)
    })
    assert.deepEqual(
      member.xattrs.map(({ name, value: bytes }) => [name, Buffer.from(bytes).toString('latin1')]).sort(),
      [['security.selinux', 'system_u:object_r:etc_t:s0\0'], ['user.b=c', value.toString('latin1')], ['user.empty', ''], ['user.raw', value.toString('latin1')]],
    )
  })

  test('ustar prefix; the old GNU format has other things there', async () => {
    const prefix = { offset: 345, bytes: Buffer.from('usr/share') }
    assert.equal((await one({ ...FILE, patch: [prefix] })).path, 'usr/share/a')
    assert.equal((await one({ ...FILE, magic: 'ustar  \0', patch: [prefix] })).path, 'a')
  })

  test('a slash at the end makes a directory of a file, links have no data, directories of incremental archives do', async () => {
    const writer = new TarWriter()
    writer.member({ path: 'd/', type: '\0' })
    writer.member({ path: 'l', type: '1', linkName: 'x', sizeBytes: 7000 })
    writer.member({ path: 'dump', type: 'D', data: Buffer.from('Yname\0Nother\0\0') })
    writer.member({ path: 'label', type: 'V' })
    writer.member({ path: 'contiguous', type: '7', data: Buffer.from('x') })
    writer.end()
    assert.deepEqual((await readAll(writer.bytes())).map(({ path, type }) => [path, type]), [['d/', 'directory'], ['l', 'link'], ['dump', 'directory'], ['contiguous', 'file']])
  })

  test('what is not read is named', async () => {
    for (const type of ['M', 'Z', 'N', '\u00ff']) await assert.rejects(one({ ...FILE, type }), { code: 'FORMAT_UNSUPPORTED', message: /"a"/ })
  })

  test('lengths are limited', async () => {
    for (const [type, sizeBytes] of [['x', 5 << 20], ['g', 0xffffffff], ['L', 70_000], ['K', 70_000]] as const) {
      await assert.rejects(one({ path: 'a', type, sizeBytes }), { code: 'LIMIT_EXCEEDED' }, type)
    }
    await assert.rejects(
      readOne((writer) => {
        writer.pax([['path', 'a/'.repeat(40_000)]])
        writer.member(FILE)
      }),
      { code: 'LIMIT_EXCEEDED' },
    )
    await assert.rejects(
      readOne((writer) => {
        writer.pax([['GNU.sparse.major', '1'], ['GNU.sparse.minor', '0'], ['GNU.sparse.realsize', '10']])
        writer.member({ ...FILE, data: Buffer.from('99999999\n'.padEnd(512, '\0')) })
      }),
      { code: 'LIMIT_EXCEEDED' },
    )
  })

  test('sparse maps that lie are refused', async () => {
    for (const map of ['0', '0,7,3,4', '5,100', '0,3', '0,-7', '0,7,x,1', '9007199254740993,7']) {
      await assert.rejects(
        readOne((writer) => {
          writer.pax([['GNU.sparse.size', '10'], ['GNU.sparse.map', map]])
          writer.member(FILE)
        }),
        { code: 'FORMAT_INVALID' },
        map,
      )
    }
  })

  test('records that are no records are refused', async () => {
    for (const text of ['7 a=b', 'x a=b\n', '100 a=b\n', '4 ab\n', '-6 a=b\n', '99999999999999999999999 a=b\n', '6a=b\n']) {
      await assert.rejects(
        readOne((writer) => {
          writer.member({ path: 'x', type: 'x', data: Buffer.from(text) })
          writer.member(FILE)
        }),
        { code: 'FORMAT_INVALID' },
        text,
      )
    }
  })

  test(`damaged archives: an error with a code or members, nothing else (seed ${seed})`, async () => {
    const random = new Random(seed)
    const valid = [await everything(random), plain(random)]
    for (let round = 0; round < 4000; round++) {
      const bytes = Buffer.from(random.pick(valid))
      const damage = random.below(4)
      const damaged = damage === 0 ? bytes.subarray(0, random.below(bytes.length)) : damage === 1 ? random.bytes(random.below(3000)) : bytes
      if (damage >= 2) for (let flips = random.between(1, 8); flips > 0; flips--) mutate(damaged, random)
      try {
        await readAll(damaged, random)
      } catch (error) {
        assert.ok(error instanceof VarveError, `seed ${seed}, round ${round}: ${(error as Error).stack}`)
      }
    }
  })
})

/** Changes a byte or a field, and mostly makes the checksum of its block right again, so that what is behind it is reached. */
function mutate(bytes: Buffer, random: Random): void {
  const block = random.below(bytes.length / 512) * 512
  const at = block + random.pick([random.below(512), random.between(100, 160), random.between(124, 136), 156, random.between(257, 265), random.between(386, 495)])
  bytes[at] = random.pick([0, 0x20, 0x30, 0x37, 0x39, 0x80, 0xff, random.below(256)])
  if (random.chance(0.2)) return
  let sum = 0
  for (let index = 0; index < 512; index++) sum += index >= 148 && index < 156 ? 0x20 : bytes[block + index]
  if (bytes.toString('latin1', block + 257, block + 262) === 'ustar') bytes.write(`${sum.toString(8).padStart(6, '0')}\0 `, block + 148, 'latin1')
}

function plain(random: Random): Buffer {
  const writer = new TarWriter()
  for (let member = 0; member < 5; member++) writer.file(`f${member}`, random.bytes(random.below(2000)))
  writer.end()
  return writer.bytes()
}

/** One member of every sort. */
async function everything(random: Random): Promise<Buffer> {
  const writer = new TarWriter()
  writer.pax([['comment', 'x']], 'g')
  writer.member({ path: './', type: '5' })
  writer.member({ path: 'long', type: 'L', data: Buffer.from(`${'n'.repeat(300)}\0`) })
  writer.member({ path: 'long', type: 'K', data: Buffer.from(`${'t'.repeat(300)}\0`) })
  writer.member({ path: 'n', type: '2', linkName: 't' })
  writer.pax([['GNU.sparse.size', '5000'], ['GNU.sparse.numblocks', '2'], ['GNU.sparse.offset', '0'], ['GNU.sparse.numbytes', '3'], ['GNU.sparse.offset', '4000'], ['GNU.sparse.numbytes', '4']])
  writer.file('sparse00', random.bytes(7))
  writer.pax([['GNU.sparse.size', '5000'], ['GNU.sparse.map', '0,3,4000,4']])
  writer.file('sparse01', random.bytes(7))
  writer.pax([['GNU.sparse.major', '1'], ['GNU.sparse.minor', '0'], ['GNU.sparse.name', 'sparse10'], ['GNU.sparse.realsize', '5000']])
  writer.file('x', Buffer.concat([Buffer.from('2\n0\n3\n4000\n4\n'.padEnd(512, '\0')), random.bytes(7)]))
  const octal = (value: number) => Buffer.from(`${value.toString(8).padStart(11, '0')}\0`)
  writer.member({
    path: 'sparse-old', type: 'S', magic: 'ustar  \0', sizeBytes: 7,
    patch: [{ offset: 386, bytes: Buffer.concat([octal(0), octal(3)]) }, { offset: 482, bytes: Buffer.from([1]) }, { offset: 483, bytes: octal(5000) }],
  })
  const more = Buffer.alloc(512)
  more.set(Buffer.concat([octal(4000), octal(4)]))
  writer.raw(more)
  writer.raw(Buffer.concat([random.bytes(7), Buffer.alloc(505)]))
  writer.pax([['SCHILY.xattr.user.a', 'b'], ['LIBARCHIVE.xattr.user.c', 'ZA=='], ['SCHILY.acl.access', 'user::rwx,user:5:r--,group::r-x,mask::rwx,other::---'], ['mtime', '1.5'], ['uid', '70000']])
  writer.file('attributes', random.bytes(600))
  writer.member({ path: 'c', type: '3', patch: [{ offset: 329, bytes: Buffer.from('0000005\x000000007\0', 'latin1') }] })
  writer.member({ path: 'p', type: '6' })
  writer.member({ path: 'l', type: '1', linkName: 'attributes' })
  writer.end()
  assert.equal((await readAll(writer.bytes())).length, 10)
  return writer.bytes()
}

describe('ACLs as text', () => {
  const idOfName = (name: string, of: 'user' | 'group') => (name === 'joe' && of === 'user' ? 1000 : undefined)
  const read = (text: string, isDefault = false) => aclFromText(text, { isDefault, idOfName })

  test('names, numbers, a fourth field, comments, one colon or two', () => {
    const expected = '0200000001000700ffffffff02000400e80300000200050031d4000004000500ffffffff10000700ffffffff20000000ffffffff'
    for (const text of ['user::rwx,user:joe:r--,user:54321:r-x,group::r-x,mask::rwx,other::---', 'u::rwx\nother:---\nmask:rwx\nuser:somebody:r-x:54321\nuser:joe:r--\t#effective:r--\ng::r-x\n']) {
      assert.equal(Buffer.from(read(text)!).toString('hex'), expected)
    }
  })

  test('an ACL that says what the mode says is none, unless it is a default', () => {
    assert.equal(read('user::rwx,group::r-x,other::r-x'), undefined)
    assert.ok(read('user::rwx,group::r-x,other::r-x', true))
  })

  test('a name without number, and nonsense, are refused', () => {
    assert.throws(() => read('user:nobody-here:r--'), { code: 'SOURCE_UNSUPPORTED' })
    for (const text of ['user', 'user:joe', 'user:joe:rrr', 'x::rwx', ':::']) assert.throws(() => read(text), { code: 'FORMAT_INVALID' }, text)
  })
})
