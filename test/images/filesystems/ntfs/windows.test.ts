/** What Windows makes and users of POSIX do not: links by reparse points, short names, streams, files compressed by Windows, encryption, hibernation. */
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { FileDevice } from '@varve/images/device/file-device.ts'
import { MemoryDevice } from '@varve/images/device/memory-device.ts'
import { openNtfs } from '@varve/images/filesystems/ntfs/filesystem.ts'
import type { NtfsFilesystem } from '@varve/images/filesystems/ntfs/filesystem.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import { Random, testSeed } from '../../../random.ts'
import { checkFilesystem } from '../conformance.ts'
import { setAttributes } from './aging.ts'
import { NtfsImage } from './ntfs-image.ts'

const seed = testSeed()

async function idOf(filesystem: NtfsFilesystem, path: string): Promise<number> {
  let id = filesystem.root
  for (const name of path.split('/')) {
    const found = await filesystem.child(id, Buffer.from(name).toString('latin1'))
    assert.ok(found !== undefined, path)
    id = found
  }
  return id
}

async function contentOf(filesystem: NtfsFilesystem, path: string): Promise<Buffer> {
  const id = await idOf(filesystem, path)
  const content = Buffer.alloc((await filesystem.node(id)).sizeBytes)
  await filesystem.read(id, content, 0)
  return content
}

async function xattrOf(filesystem: NtfsFilesystem, path: string, name: string): Promise<Buffer | undefined> {
  const found = (await filesystem.xattrs(await idOf(filesystem, path))).find((xattr) => xattr.name === name)
  return found === undefined ? undefined : Buffer.from(found.value)
}

/** Opens the image, the whole of it in memory. */
async function opened(image: NtfsImage, change: (bytes: Buffer) => void = () => undefined): Promise<NtfsFilesystem> {
  const bytes = fs.readFileSync(image.path)
  change(bytes)
  return openNtfs(MemoryDevice.of(bytes, { readOnly: true }))
}

const utf16 = (text: string): Buffer => Buffer.from(text, 'utf16le')

function uint(bytes: number, ...values: number[]): Buffer {
  const buffer = Buffer.alloc(bytes * values.length)
  for (const [index, value] of values.entries()) buffer.writeUIntLE(value, index * bytes, bytes)
  return buffer
}

/** [MS-FSCC] 2.1.2.4 and 2.1.2.5 */
function linkData(tag: 'symlink' | 'junction', target: string, flags = 0): Buffer {
  const name = utf16(target)
  const head = Buffer.concat([uint(2, 0, name.length, name.length, 0), tag === 'symlink' ? uint(4, flags) : Buffer.alloc(0)])
  return reparseData(tag === 'symlink' ? 0xa000000c : 0xa0000003, Buffer.concat([head, name]))
}

function reparseData(tag: number, data: Buffer): Buffer {
  return Buffer.concat([uint(4, tag), uint(2, data.length, 0), data])
}

function setReparse(path: string, data: Buffer): void {
  execFileSync('setfattr', ['-h', '-n', 'system.ntfs_reparse_data', '-v', `0x${data.toString('hex')}`, path])
}

test('links lead where ntfs-3g says, in the case that directories have', async () => {
  await using image = new NtfsImage()
  const file = (path: string, data: Buffer) => {
    fs.writeFileSync(path, '')
    setReparse(path, data)
  }
  const directory = (path: string, data: Buffer) => {
    fs.mkdirSync(path)
    setReparse(path, data)
  }
  await image.mounted((root) => {
    fs.mkdirSync(join(root, 'Users/Über mich'), { recursive: true })
    fs.mkdirSync(join(root, 'a/b/c'), { recursive: true })
    fs.writeFileSync(join(root, 'Users/Über mich/Datei.txt'), 'content')
    file(join(root, 'a/relative'), linkData('symlink', '..\\users\\ÜBER MICH\\datei.TXT', 1))
    file(join(root, 'a/b/missing'), linkData('symlink', 'C:\\not\\there', 1))
    file(join(root, 'a/b/absolute'), linkData('symlink', '\\??\\c:\\users\\ÜBER mich\\DATEI.txt'))
    file(join(root, 'a/b/rooted'), linkData('symlink', '\\users\\über mich\\datei.txt', 1))
    directory(join(root, 'a/b/c/junction'), linkData('junction', '\\??\\C:\\USERS'))
    directory(join(root, 'elsewhere'), linkData('junction', '\\??\\d:\\data\\x'))
    directory(join(root, 'volume'), linkData('junction', '\\??\\Volume{01234567-89ab-cdef-0123-456789abcdef}\\'))
    file(join(root, 'wsl'), reparseData(0xa000001d, Buffer.concat([uint(4, 2), Buffer.from('/etc/ünix')])))
    fs.symlinkSync('Users/interix', join(root, 'interix'))
  })
  await image.mounted((root) => {
    execFileSync('mkfifo', [join(root, 'fifo')])
    execFileSync('mknod', [join(root, 'device'), 'c', '10', '229'])
  }, ['special_files=wsl'])
  await using subject = await image.subject()
  await checkFilesystem(subject, seed)
  const targets = new Map(subject.model.filter(({ kind }) => kind === Kind.symlink).map(({ path, target }) => [path, Buffer.from(target!, 'latin1').toString()]))
  assert.deepEqual(Object.fromEntries(targets), {
    'a/relative': '../Users/Über mich/Datei.txt',
    'a/b/missing': '../../.NTFS-3G/C:/not/there',
    'a/b/absolute': '../../Users/Über mich/Datei.txt',
    'a/b/rooted': '../../Users/Über mich/Datei.txt',
    'a/b/c/junction': '../../../Users',
    elsewhere: '.NTFS-3G/D:/data/x',
    volume: '.NTFS-3G/Volume{01234567-89ab-cdef-0123-456789abcdef}',
    wsl: '/etc/ünix',
    interix: 'Users/interix',
  })
})

test('what ntfs-3g does not resolve leads as far as can be said, and other reparse points are kept', async () => {
  await using image = new NtfsImage()
  const other = reparseData(0x9000001a, Buffer.from('a file in the cloud'))
  await image.mounted((root) => {
    for (const [name, data] of [['share', linkData('symlink', '\\??\\UNC\\server\\share\\x')], ['dangling', linkData('symlink', 'no\\such', 1)], ['root', linkData('symlink', '\\', 1)], ['cloud', other]] as const) {
      fs.writeFileSync(join(root, name), name)
      setReparse(join(root, name), data)
    }
  })
  const filesystem = await opened(image)
  const target = async (name: string) => Buffer.from(await filesystem.target(await idOf(filesystem, name))).toString('latin1')
  assert.equal(await target('share'), '.NTFS-3G/UNC/server/share/x')
  assert.equal(await target('dangling'), 'no/such')
  assert.equal(await target('root'), '.')
  assert.deepEqual(await xattrOf(filesystem, 'cloud', 'user.ntfs.reparse-point'), other)
  assert.equal((await contentOf(filesystem, 'cloud')).toString(), 'cloud')
})

test('short names are left out; of names that differ in case only, each is found', async () => {
  await using image = new NtfsImage()
  await image.mounted((root) => {
    fs.writeFileSync(join(root, 'a long name.text'), 'long')
    execFileSync('setfattr', ['-n', 'system.ntfs_dos_name', '-v', 'ALONGN~1.TEX', join(root, 'a long name.text')])
    for (const name of ['twin', 'Twin', 'TWIN']) fs.writeFileSync(join(root, name), name)
  })
  const filesystem = await opened(image)
  const names = (await filesystem.list(filesystem.root)).map(({ name }) => name).sort()
  assert.deepEqual(names, ['TWIN', 'Twin', 'a long name.text', 'twin'])
  assert.equal(await filesystem.child(filesystem.root, 'ALONGN~1.TEX'), undefined)
  assert.equal((await filesystem.node(await idOf(filesystem, 'a long name.text'))).links, 1)
  for (const name of ['twin', 'Twin', 'TWIN']) assert.equal((await contentOf(filesystem, name)).toString(), name)
  assert.equal(await filesystem.child(filesystem.root, 'tWIN'), await idOf(filesystem, 'TWIN'))
})

test('streams are extended attributes if they are small, and listed if they are not', async () => {
  await using image = new NtfsImage()
  const random = new Random(seed)
  const streams = new Map([['small', random.bytes(100)], ['largest', random.bytes(65_536)], ['too large', random.bytes(65_537)]])
  await image.mounted((root) => {
    fs.writeFileSync(join(root, 'file'), 'main')
    fs.mkdirSync(join(root, 'directory'))
    for (const [name, content] of streams) fs.writeFileSync(join(root, `file:${name}`), content)
    fs.writeFileSync(join(root, 'directory:of a directory'), 'x')
    setAttributes(join(root, 'file'), 0x23)
  }, ['streams_interface=windows'])
  const filesystem = await opened(image)
  assert.deepEqual(await xattrOf(filesystem, 'file', 'user.ntfs.streams.small'), streams.get('small'))
  assert.deepEqual(await xattrOf(filesystem, 'file', 'user.ntfs.streams.largest'), streams.get('largest'))
  assert.equal(await xattrOf(filesystem, 'file', 'user.ntfs.streams.too large'), undefined)
  assert.equal((await xattrOf(filesystem, 'file', 'user.ntfs.other-streams'))!.toString(), '65537 too large\n')
  assert.equal((await xattrOf(filesystem, 'directory', 'user.ntfs.streams.of a directory'))!.toString(), 'x')
  assert.equal((await xattrOf(filesystem, 'file', 'user.ntfs.attributes'))!.toString(), '0x00000023')
  assert.equal((await filesystem.node(await idOf(filesystem, 'file'))).mode, 0o444)
})

test('files that Windows compresses itself are read', async () => {
  await using image = new NtfsImage()
  const random = new Random(seed)
  // Code of x86, whose calls LZX translates, text, zeroes, and what cannot be compressed.
  const content = Buffer.concat([fs.readFileSync(process.execPath).subarray(5_000_000, 5_300_000), random.bytes(70_000), Buffer.alloc(50_000, 'text '), Buffer.alloc(random.below(50_000))])
  const kinds = [['XPRESS', 4096, 0], ['LZX', 32_768, 1], ['XPRESS', 8192, 2], ['XPRESS', 16_384, 3]] as const
  const archives = join(image.directory, 'archives')
  fs.mkdirSync(join(archives, 'source'), { recursive: true })
  fs.writeFileSync(join(archives, 'source/file'), content)
  await image.mounted((root) => {
    for (const [algorithm, chunkBytes, code] of kinds) {
      const path = join(root, `${algorithm} ${chunkBytes}`)
      fs.writeFileSync(path, '')
      fs.truncateSync(path, content.length)
      fs.writeFileSync(`${path}:WofCompressedData`, wimResource(archives, { algorithm, chunkBytes, sizeBytes: content.length }))
      setReparse(path, reparseData(0x80000017, uint(4, 1, 2, 1, code)))
    }
    fs.writeFileSync(join(root, 'in a WIM file'), '')
    setReparse(join(root, 'in a WIM file'), reparseData(0x80000017, uint(4, 1, 1, 0, 0)))
  }, ['streams_interface=windows'])
  const filesystem = await opened(image)
  for (const [algorithm, chunkBytes] of kinds) {
    const id = await idOf(filesystem, `${algorithm} ${chunkBytes}`)
    assert.equal((await filesystem.node(id)).sizeBytes, content.length)
    assert.ok((await contentOf(filesystem, `${algorithm} ${chunkBytes}`)).equals(content), `${algorithm} ${chunkBytes}, seed ${seed}`)
    for (let round = 0; round < 20; round++) {
      const offset = random.below(content.length)
      const part = Buffer.alloc(random.below(Math.min(100_000, content.length - offset)))
      await filesystem.read(id, part, offset)
      assert.ok(part.equals(content.subarray(offset, offset + part.length)), `${algorithm} ${chunkBytes} at ${offset}, seed ${seed}`)
    }
    assert.deepEqual(await filesystem.extents(id), [{ fileOffset: 0, length: content.length }])
    assert.deepEqual((await filesystem.xattrs(id)).map(({ name }) => name), ['user.ntfs.attributes', 'user.ntfs.security'])
  }
  await assert.rejects(async () => filesystem.extents(await idOf(filesystem, 'in a WIM file')), { code: 'FORMAT_UNSUPPORTED' })
})

/** A file as WIM archives hold it, compressed, which is as WOF does. */
function wimResource(archives: string, { algorithm, chunkBytes, sizeBytes }: { algorithm: string; chunkBytes: number; sizeBytes: number }): Buffer {
  const archive = join(archives, `${algorithm}-${chunkBytes}.wim`)
  execFileSync('wimcapture', [join(archives, 'source'), archive, `--compress=${algorithm}`, `--chunk-size=${chunkBytes}`, '--no-acls'], { stdio: 'ignore' })
  const facts = execFileSync('wiminfo', [archive, '--blobs'], { encoding: 'utf8' })
  const [, length, offset] = new RegExp(`Uncompressed size = ${sizeBytes} bytes\\nCompressed size\\s+= (\\d+) bytes\\nOffset in WIM\\s+= (\\d+)`).exec(facts)!
  return fs.readFileSync(archive).subarray(Number(offset), Number(offset) + Number(length))
}

test('a file that is encrypted is listed, and its content refused', async () => {
  await using image = new NtfsImage()
  await image.mounted((root) => fs.writeFileSync(join(root, 'secret'), Buffer.alloc(10_000, 'x')))
  // The flag in the head of its $DATA, which is known by its size.
  const filesystem = await opened(image, (bytes) => {
    const at = bytes.indexOf(uint(4, 12_288, 0, 10_000, 0, 10_000, 0))
    bytes.writeUInt16LE(0x4000, at - 0x28 + 0x0c)
  })
  const id = await idOf(filesystem, 'secret')
  assert.equal((await filesystem.node(id)).sizeBytes, 10_000)
  await assert.rejects(async () => filesystem.extents(id), { code: 'FORMAT_UNSUPPORTED' })
  await assert.rejects(async () => filesystem.read(id, Buffer.alloc(1), 0), { code: 'FORMAT_UNSUPPORTED' })
})

test('a volume is unclean if it is marked so, if its log is open, or if Windows is hibernated', async () => {
  await using image = new NtfsImage()
  assert.equal((await opened(image)).unclean, false)
  await image.mounted((root) => fs.writeFileSync(join(root, 'hiberfil.sys'), Buffer.alloc(20_000)))
  assert.equal((await opened(image)).unclean, false)
  await image.mounted((root) => fs.writeFileSync(join(root, 'hiberfil.sys'), Buffer.concat([Buffer.from('HIBR'), Buffer.alloc(20_000)])))
  assert.equal((await opened(image)).unclean, true)
  await using other = new NtfsImage()
  // ntfsfix marks a volume, so that Windows checks it.
  execFileSync('ntfsfix', [other.path], { stdio: 'ignore' })
  assert.equal((await opened(other)).unclean, true)
  execFileSync('ntfsfix', ['-d', other.path], { stdio: 'ignore' })
  assert.equal((await opened(other)).unclean, false)
})

test('a log of Windows says whether it was closed, as ntfs-3g.probe says', async () => {
  await using image = new NtfsImage()
  const emptied = fs.readFileSync(image.path)
  const at = emptied.indexOf(Buffer.alloc(4 * 4096, 0xff))
  assert.equal(at % 4096, 0)
  const pages = {
    closed: [restartPage({ client: 0xffff, flags: 0, sequenceNumber: 5 })],
    clean: [restartPage({ client: 0, flags: 2, sequenceNumber: 5 })],
    open: [restartPage({ client: 0, flags: 0, sequenceNumber: 5 })],
    'first later, open': [restartPage({ client: 0, flags: 0, sequenceNumber: 7 }), restartPage({ client: 0, flags: 2, sequenceNumber: 6 })],
    'second later, open': [restartPage({ client: 0, flags: 2, sequenceNumber: 5 }), restartPage({ client: 0, flags: 0, sequenceNumber: 6 })],
    'second later, clean': [restartPage({ client: 0, flags: 0, sequenceNumber: 5 }), restartPage({ client: 0, flags: 2, sequenceNumber: 6 })],
  }
  for (const [name, [first, second = first]] of Object.entries(pages)) {
    const bytes = Buffer.from(emptied)
    Buffer.concat([first, second]).copy(bytes, at)
    fs.writeFileSync(image.path, bytes)
    const isUnclean = /open$/.test(name)
    assert.equal(exitStatus('ntfs-3g.probe', ['--readwrite', image.path]), isUnclean ? 15 : 0, name)
    assert.equal((await openNtfs(MemoryDevice.of(bytes, { readOnly: true }))).unclean, isUnclean, name)
  }
})

function restartPage({ client, flags, sequenceNumber }: { client: number; flags: number; sequenceNumber: number }): Buffer {
  const page = Buffer.alloc(4096)
  page.write('RSTR')
  uint(2, 0x1e, 9).copy(page, 4)
  uint(4, 4096, 4096).copy(page, 0x10)
  uint(2, 0x30, 1, 1).copy(page, 0x18)
  const area = 0x30
  page.writeUInt32LE(sequenceNumber, area)
  uint(2, 1, 0xffff, client, flags).copy(page, area + 8)
  // 67 less the bits of the size of the log.
  page.writeUInt32LE(67 - 22, area + 0x10)
  uint(2, 0xe0, 0x40).copy(page, area + 0x14)
  page.writeUInt32LE(2 << 20, area + 0x18)
  uint(2, 0, 0x30, 0x40).copy(page, area + 0x24)
  uint(2, 0xffff, 0xffff).copy(page, area + 0x40 + 0x10)
  page.writeUInt32LE(8, area + 0x40 + 0x1c)
  utf16('NTFS').copy(page, area + 0x40 + 0x20)
  // Update sequence: number 1, the ends of eight sectors, which are zero.
  page.writeUInt16LE(1, 0x1e)
  for (let end = 510; end < page.length; end += 512) page.writeUInt16LE(1, end)
  return page
}

function exitStatus(command: string, options: string[]): number | null {
  return spawnSync(command, options, { stdio: 'ignore' }).status
}

test('a volume on a device is read as its image', async () => {
  await using image = new NtfsImage()
  await image.mounted((root) => fs.writeFileSync(join(root, 'file'), 'content'))
  await using volume = FileDevice.open({ path: image.path, readOnly: true })
  assert.equal((await contentOf(await openNtfs(volume), 'FILE')).toString(), 'content')
})
