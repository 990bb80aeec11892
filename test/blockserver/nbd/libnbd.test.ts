/**
 * Every command and flag through libnbd's Python binding, with its own checks of what may be sent turned off where an error is wanted.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { run, serve } from './serving.ts'
import { TestDisk } from './test-disk.ts'

const MiB = 1024 * 1024

const PRELUDE = `
import nbd, errno, os
def fails(number, call, *args, **named):
    try:
        call(*args, **named)
    except nbd.Error as error:
        assert error.errnum == number, (error.errnum, number, str(error))
        return
    raise AssertionError('no error')
def connect(uri, structured=True, contexts=True, strict=0):
    h = nbd.NBD()
    h.set_request_structured_replies(structured)
    h.set_strict_mode(strict)
    if contexts: h.add_meta_context('base:allocation')
    h.connect_uri(uri)
    return h
`

async function python(script: string): Promise<void> {
  await run('/usr/bin/python3', ['-'], { input: PRELUDE + script })
}

for (const structured of [true, false]) {
  test(`libnbd: every command at odd offsets and lengths, ${structured ? 'structured' : 'simple'} replies`, async () => {
    const disk = new TestDisk(8 * MiB + 333)
    await using serving = await serve({ disk }, { fastZeroes: true })
    await python(`
h = connect('${serving.uri('disk')}', structured=${structured ? 'True' : 'False'})
size = h.get_size()
assert size == ${disk.sizeBytes}
assert h.get_structured_replies_negotiated() == ${structured ? 'True' : 'False'}
assert h.can_df() == ${structured ? 'True' : 'False'}
model = bytearray(size)
def write(data, at, flags=0):
    h.pwrite(data, at, flags)
    model[at:at+len(data)] = data
def zero(length, at, flags=0):
    h.zero(length, at, flags)
    model[at:at+length] = bytes(length)
def trim(length, at, flags=0):
    h.trim(length, at, flags)
    model[at:at+length] = bytes(length)
for at, length in [(0, 1), (1, 1), (511, 2), (513, 4095), (4095, 4098), (65535, 65537), (100001, 1300001), (size - 1, 1), (size - 70000, 70000)]:
    data = os.urandom(length)
    write(data, at)
    assert h.pread(length, at) == data
    write(os.urandom(length), at, nbd.CMD_FLAG_FUA)
    assert h.pread(length, at) == model[at:at+length]
    h.cache(length, at)
zero(1000, 777)
zero(1, 100100, nbd.CMD_FLAG_FUA)
zero(200000, 200001, nbd.CMD_FLAG_NO_HOLE)
zero(100000, 500001, nbd.CMD_FLAG_FAST_ZERO)
trim(3 * 65536 + 17, 600003)
trim(70001, 900001, nbd.CMD_FLAG_FUA)
h.flush()
for at in range(0, size, 1 << 20): assert h.pread(min(1 << 20, size - at), at) == model[at:at+(1 << 20)]
# all flags that a command takes, and 0 bytes
fails(errno.ENOTSUP, h.zero, 4096, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
h.pread(0, 5); h.pwrite(b'', 5); h.trim(0, 5); h.zero(0, 5); h.cache(0, 5)
# reads that end in zeroes, holes and data
if h.can_df():
    assert h.pread(1 << 20, 0, nbd.CMD_FLAG_DF) == model[:1 << 20]
    seen = []
    def chunk(data, at, status, error):
        seen.append((at, bytes(data), status))
    assert h.pread_structured(1 << 20, 1 << 19, chunk) == model[1 << 19:3 << 19]
    covered = 0
    for at, data, status in sorted(seen):
        assert at == (1 << 19) + covered
        covered += len(data)
    assert covered == 1 << 20 and any(status == nbd.READ_HOLE for _, _, status in seen)
    seen.clear()
    h.pread_structured(1 << 20, 1 << 19, chunk, nbd.CMD_FLAG_DF)
    assert len(seen) == 1 and seen[0][2] == nbd.READ_DATA
h.shutdown()
`)
    assert.equal((await serving.server.metrics()).connectionsCut, 0)
  })

  test(`libnbd: what is out of place gets the error of the specification and the connection lives on, ${structured ? 'structured' : 'simple'} replies`, async () => {
    const disk = new TestDisk(40 * MiB)
    const readOnly = new TestDisk(MiB, { readOnly: true })
    const broken = new TestDisk(MiB, {
      fault: (request, offset) => {
        if (offset === 8192) throw Object.assign(new Error('no space'), { code: 'ENOSPC' })
        if (offset >= 4096 || request === 'flush') throw new Error('broken on purpose')
      },
    })
    await using serving = await serve({ disk, readOnly, broken })
    await python(`
h = connect('${serving.uri('disk')}', structured=${structured ? 'True' : 'False'})
size = h.get_size()
kept = h.pread(4096, 0)
fails(errno.EINVAL, h.pread, 2, size - 1)
fails(errno.EINVAL, h.pread, 512, 1 << 62)
fails(errno.ENOSPC, h.pwrite, bytes(512), size - 511)
fails(errno.ENOSPC, h.pwrite, bytes(1 << 20), size)
fails(errno.ENOSPC, h.zero, 512, size)
fails(errno.EINVAL, h.trim, 512, size)
fails(errno.EINVAL, h.cache, 512, size)
fails(errno.EINVAL, h.pread, 512, 0, nbd.CMD_FLAG_NO_HOLE)
fails(errno.EINVAL, h.pwrite, bytes(512), 0, nbd.CMD_FLAG_DF)
fails(errno.EINVAL, h.trim, 512, 0, nbd.CMD_FLAG_FAST_ZERO)
fails(errno.EINVAL, h.flush, nbd.CMD_FLAG_REQ_ONE)
fails(errno.EINVAL, h.pwrite, bytes(512), 0, 1 << 15)
fails(errno.ENOTSUP, h.zero, 512, 0, nbd.CMD_FLAG_FAST_ZERO)
if not h.can_df(): fails(errno.EINVAL, h.pread, 512, 0, nbd.CMD_FLAG_DF)
# a write of more than the maximum is read to its end and refused
fails(errno.EINVAL, h.pwrite, bytes(33 << 20), 0)
fails(errno.${structured ? 'EOVERFLOW' : 'EINVAL'}, h.pread, 33 << 20, 0)
fails(errno.EOVERFLOW, h.cache, 33 << 20, 0)
# FUA is taken on every command
h.pread(512, 0, nbd.CMD_FLAG_FUA); h.flush(nbd.CMD_FLAG_FUA); h.cache(512, 0, nbd.CMD_FLAG_FUA)
assert h.pread(4096, 0) == kept
h.shutdown()

h = connect('${serving.uri('readOnly')}', structured=${structured ? 'True' : 'False'})
assert h.is_read_only() and not h.can_trim() and not h.can_zero() and h.can_multi_conn()
fails(errno.EPERM, h.pwrite, bytes(100000), 0)
fails(errno.EPERM, h.pwrite, b'x', 1 << 30)
fails(errno.EPERM, h.trim, 512, 0)
fails(errno.EPERM, h.zero, 512, 0)
h.flush()
assert h.pread(512, 0) == bytes(512)
h.shutdown()

h = connect('${serving.uri('broken')}', structured=${structured ? 'True' : 'False'})
fails(errno.EIO, h.pread, 512, 4096)
fails(errno.EIO, h.pread, 16384, 65536)
fails(errno.EIO, h.pwrite, bytes(512), 4096)
fails(errno.ENOSPC, h.pwrite, bytes(512), 8192)
fails(errno.EIO, h.trim, 512, 4096)
fails(errno.EIO, h.zero, 512, 4096)
fails(errno.EIO, h.cache, 512, 4096)
fails(errno.EIO, h.flush)
assert h.pread(4096, 0) == bytes(4096)
h.shutdown()
`)
    assert.equal((await serving.server.metrics()).connectionsCut, 0)
  })
}

test('libnbd: block status is that of the device, whole or one extent at a time', async () => {
  const disk = new TestDisk(4 * MiB)
  await disk.write(Buffer.alloc(10_000, 7), 65_536)
  await disk.writeZeroes(MiB, 65_536, { noHole: true })
  await using serving = await serve({ disk })
  const expected = disk.extents(0, disk.sizeBytes).map(({ length, type }) => [length, { data: 0, zero: 2, hole: 3 }[type]]).flat()
  await python(`
h = connect('${serving.uri('disk')}')
assert h.can_meta_context('base:allocation')
found = []
def extent(context, at, entries, error):
    assert context == 'base:allocation'
    found.append((at, list(entries)))
h.block_status(h.get_size(), 0, extent)
assert found == [(0, ${JSON.stringify(expected)})], found
found.clear()
h.block_status(h.get_size(), 0, extent, nbd.CMD_FLAG_REQ_ONE)
assert found == [(0, ${JSON.stringify(expected.slice(0, 2))})], found
found.clear()
h.block_status(10, 65530, extent)
assert found == [(65530, [6, 3, 4, 0])], found
fails(errno.EINVAL, h.block_status, 512, h.get_size(), extent)
h.shutdown()
h = connect('${serving.uri('disk')}', contexts=False)
fails(errno.EINVAL, h.block_status, 512, 0, extent)
h.shutdown()
`)
})

test('libnbd: several contexts are selected and answered together', async () => {
  const disk = new TestDisk(4 * MiB)
  await disk.write(Buffer.alloc(4096, 7), MiB)
  await using serving = await serve({ disk }, { contexts: [{ name: 'varve:dirty', extents: (offset, length) => [{ length: Math.min(length, 2 * MiB), flags: offset === 0 ? 1 : 0 }] }] })
  await python(`
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri('${serving.uri('disk')}')
names = []
h.add_meta_context('varve:')
h.opt_list_meta_context(lambda name: names.append(name))
assert names == ['varve:dirty'], names
h.clear_meta_contexts()
for name in ['base:allocation', 'varve:dirty', 'varve:other']: h.add_meta_context(name)
h.opt_go()
assert h.can_meta_context('varve:dirty') and h.can_meta_context('base:allocation') and not h.can_meta_context('varve:other')
found = {}
def extent(context, at, entries, error): found[context] = (at, list(entries))
h.block_status(4 << 20, 0, extent)
assert found == {'base:allocation': (0, [1 << 20, 3, 4096, 0, (3 << 20) - 4096, 3]), 'varve:dirty': (0, [2 << 20, 1])}, found
h.block_status(1 << 20, 2 << 20, extent, nbd.CMD_FLAG_REQ_ONE)
assert found == {'base:allocation': (2 << 20, [1 << 20, 3]), 'varve:dirty': (2 << 20, [1 << 20, 0])}, found
h.shutdown()
`)
  const { stdout } = await run('nbdinfo', ['--json', '--map=varve:dirty', serving.uri('disk')])
  assert.deepEqual((JSON.parse(stdout) as { offset: number; length: number; type: number }[]).map(({ offset, length, type }) => [offset, length, type]), [[0, 2 * MiB, 1], [2 * MiB, 2 * MiB, 0]])
})

test('libnbd: an export of blocks tells their size, and odd requests are EINVAL', async () => {
  await using serving = await serve({ disk: new TestDisk(MiB) }, { minimumBlockBytes: 4096 })
  await python(`
h = connect('${serving.uri('disk')}')
assert h.get_block_size(nbd.SIZE_MINIMUM) == 4096
fails(errno.EINVAL, h.pread, 512, 0)
fails(errno.EINVAL, h.pwrite, bytes(4096), 512)
fails(errno.EINVAL, h.zero, 4097, 0)
h.pwrite(b'x' * 4096, 8192)
assert h.pread(8192, 8192) == b'x' * 4096 + bytes(4096)
h.shutdown()
`)
  await run('qemu-io', ['-f', 'raw', '-c', 'write -P 7 512 1024', '-c', 'read -P 7 512 1024', serving.uri('disk')])
  assert.equal((await serving.server.metrics()).errors, 3)
})

test('libnbd: options are answered one by one before GO', async () => {
  await using serving = await serve({ first: new TestDisk(MiB), second: new TestDisk(2 * MiB, { readOnly: true }) })
  await python(`
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri('${serving.uri('')}')
found = []
assert h.opt_list(lambda name, about: found.append((name, about))) == 2
assert found == [('first', 'the disk first'), ('second', 'the disk second')]
h.set_export_name('missing')
fails(errno.ENOENT, h.opt_info)
fails(errno.ENOENT, h.opt_go)
h.set_full_info(True)
h.set_export_name('')
h.opt_info()
assert h.get_canonical_export_name() == 'first' and h.get_export_description() == 'the disk first' and h.get_size() == ${MiB}
found = []
h.opt_list_meta_context(lambda name: found.append(name))
assert found == ['base:allocation'], found
found.clear()
h.add_meta_context('base:'); h.add_meta_context('other:thing')
h.opt_list_meta_context(lambda name: found.append(name))
assert found == ['base:allocation'], found
h.clear_meta_contexts()
h.add_meta_context('base:allocation')
h.set_export_name('second')
h.opt_go()
assert h.is_read_only() and h.get_size() == ${2 * MiB} and h.can_meta_context('base:allocation')
assert h.get_block_size(nbd.SIZE_MINIMUM) == 1 and h.get_block_size(nbd.SIZE_PREFERRED) == 4096 and h.get_block_size(nbd.SIZE_MAXIMUM) == ${32 * MiB}
h.shutdown()
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri('${serving.uri('second')}')
h.opt_abort()
`)
  assert.equal((await serving.server.metrics()).handshakesFailed, 0)
})

test('libnbd: hundreds of requests in flight complete in any order', async () => {
  const disk = new TestDisk(8 * MiB, { delay: () => Math.random() < 0.5 ? undefined : new Promise((resolve) => setTimeout(resolve, Math.random() * 5)) })
  await using serving = await serve({ disk })
  await python(`
h = connect('${serving.uri('disk')}')
model = bytearray(os.urandom(8 << 20))
step = 8192
def wait(cookies):
    while cookies:
        h.poll(-1)
        cookies[:] = [c for c in cookies if not h.aio_command_completed(c)]
wait([h.aio_pwrite(nbd.Buffer.from_bytearray(model[at:at+step]), at) for at in range(0, 8 << 20, step)])
buffers = [nbd.Buffer(step) for _ in range(0, 8 << 20, step)]
wait([h.aio_pread(buffer, index * step) for index, buffer in enumerate(buffers)])
for index, buffer in enumerate(buffers): assert buffer.to_bytearray() == model[index * step:(index + 1) * step]
h.shutdown()
`)
  assert.ok(disk.runningMost > 50, `${disk.runningMost} requests at once`)
})
