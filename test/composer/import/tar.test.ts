import assert from 'node:assert/strict'
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import test, { describe } from 'node:test'
import { getObject } from '@varve/images/store/object.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import type { Tree } from '@varve/images/tree/tree.ts'
import { decodeTree } from '@varve/images/tree/tree-format.ts'
import { Random, testSeed } from '../../random.ts'
import { TarWriter } from '../../images/formats/tar-writer.ts'
import { ImportHome, treeDigest } from './import-home.ts'
import { assertSameLines, listDirectory, listTree } from './listing.ts'
import { makeHardTree, makeRandomTree } from './sample-tree.ts'
import type { SampleOptions } from './sample-tree.ts'

const seed = testSeed()

function tar(directory: string, ...options: string[]): void {
  execFileSync('tar', ['-C', directory, ...options, '.'], { stdio: ['ignore', 'ignore', 'pipe'] })
}

/** What each format of GNU tar can hold. */
const FORMATS: { format: string; options: Partial<SampleOptions>; arguments: string[] }[] = [
  { format: 'ustar', options: { shortNames: true }, arguments: [] },
  { format: 'gnu', options: { largeIds: true, farTimes: true }, arguments: [] },
  { format: 'oldgnu', options: { largeIds: true, farTimes: true, holes: true }, arguments: ['--sparse'] },
  { format: 'gnu', options: { holes: true, rawNames: true }, arguments: ['--sparse'] },
  { format: 'posix', options: { nanoseconds: true, farTimes: true, largeIds: true, xattrs: true, rawNames: true }, arguments: ['--xattrs'] },
  ...['0.0', '0.1', '1.0'].map((version) => ({ format: 'posix', options: { nanoseconds: true, holes: true, xattrs: true }, arguments: ['--xattrs', '--sparse', `--sparse-version=${version}`] })),
]

describe('import of a tar archive', () => {
  for (const { format, options, arguments: extra } of FORMATS) {
    test(`${format} ${extra.join(' ')}: the same tree as of the directory (seed ${seed})`, async () => {
      await using home = new ImportHome()
      const root = home.makeDirectory('source')
      makeRandomTree(root, new Random(seed), { entries: 200, ...options })
      const directory = await home.tree(`dir:${root}`)
      tar(root, `--format=${format}`, ...extra, '-cf', home.path('a.tar'))
      const archive = await home.tree(`tar:${home.path('a.tar')}`)
      assertSameLines(listTree(archive, home.store, { holes: true }), listDirectory(root, { holes: true }), `seed ${seed}`)
      assert.equal(treeDigest(archive), treeDigest(directory), `seed ${seed}`)
    })
  }

  test('v7: short names, files, directories and links', async () => {
    await using home = new ImportHome()
    const root = home.makeDirectory('source')
    execFileSync('bash', ['-ec', `mkdir -p a/b; echo 1 > a/one; ln a/one a/b/two; ln -s one a/s; touch -hd @1600000000 a a/b a/one a/s .`], { cwd: root })
    tar(root, '--format=v7', '-cf', home.path('a.tar'))
    assert.equal(treeDigest(await home.tree(`tar:${home.path('a.tar')}`)), treeDigest(await home.tree(`dir:${root}`)))
  })

  test('everything that is hard, with attributes and ACLs, but for sockets and linked fifos', async () => {
    await using home = new ImportHome()
    const root = home.makeDirectory('source')
    await makeHardTree(root)
    // GNU tar writes hard links to files and symlinks only.
    for (const name of ['socket', 'fifo-too']) rmSync(`${root}/${name}`)
    execFileSync('rm', ['-rf', `${root}/${'p'.repeat(200)}`])
    tar(root, '--format=posix', '--xattrs', '--xattrs-include=*', '--acls', '--sparse', '--numeric-owner', '-cf', home.path('a.tar'))
    const archive = await home.tree(`tar:${home.path('a.tar')}`)
    assertSameLines(listTree(archive, home.store, { holes: true }), listDirectory(root, { holes: true }))
    assert.equal(treeDigest(archive), treeDigest(await home.tree(`dir:${root}`)))
  })

  for (const [compression, ...command] of [['gzip', 'gzip', '-1'], ['zstd', 'zstd', '-q', '-1'], ['xz', 'xz', '-0'], ['two gzip members', 'bash', '-c', 'head -c 300000 > h; { gzip -1 < h; gzip -1; }'], ['several zstd frames', 'bash', '-c', 'head -c 300000 > h; { zstd -q < h; printf "\\x5f\\x2a\\x4d\\x18\\x03\\0\\0\\0abc"; zstd -q; }']]) {
    test(`${compression}, from a file and from standard input`, async () => {
      await using home = new ImportHome()
      const root = home.makeDirectory('source')
      makeRandomTree(root, new Random(seed), { entries: 200, nanoseconds: true })
      writeFileSync(`${root}/large`, new Random(seed).bytes(3_000_000))
      tar(root, '--format=posix', '-cf', home.path('a.tar'))
      const compressed = spawnSync(command[0], command.slice(1), { input: readFileSync(home.path('a.tar')), maxBuffer: 1 << 30, cwd: home.directory })
      assert.equal(compressed.status, 0)
      writeFileSync(home.path('a.tar.compressed'), compressed.stdout)
      const expected = treeDigest(await home.tree(`dir:${root}`))
      assert.equal(treeDigest(await home.tree(`tar:${home.path('a.tar.compressed')}`)), expected)
      assert.equal(await importFromStandardInput(home, compressed.stdout), expected)
    })
  }

  test('a compressed stream that is cut short or damaged is refused', async () => {
    await using home = new ImportHome()
    const writer = new TarWriter()
    writer.file('a', new Random(seed).bytes(50_000))
    writer.end()
    for (const [command, ...options] of [['gzip'], ['zstd', '-q', '--check'], ['xz']]) {
      const whole = spawnSync(command, options, { input: writer.bytes() }).stdout
      for (const damage of ['cut', 'flip']) {
        const bytes = damage === 'cut' ? whole.subarray(0, whole.length - 5) : Buffer.from(whole)
        if (damage === 'flip') bytes[whole.length >> 1] ^= 0x55
        writeFileSync(home.path('damaged'), bytes)
        await assert.rejects(home.import(`tar:${home.path('damaged')}`), { code: 'FORMAT_INVALID' }, `${command}, ${damage}`)
      }
    }
  })

  test('compression that is not read is named', async () => {
    await using home = new ImportHome()
    writeFileSync(home.path('a'), 'BZh91AY&SY and so on')
    await assert.rejects(home.import(`tar:${home.path('a')}`), { code: 'FORMAT_UNSUPPORTED', message: /bzip2 -dc/ })
  })

  test('of a name that comes twice, the last one stands', async () => {
    const tree = await treeOf((writer) => {
      writer.file('a', Buffer.from('first'))
      writer.file('d/x', Buffer.from('below'))
      writer.file('a', Buffer.from('second one'))
      writer.member({ path: 'd', type: '0' })
      writer.file('e', Buffer.from('was a file'))
      writer.member({ path: 'e/', type: '5', mode: 0o700 })
      writer.file('e/y', Buffer.from('y'))
      writer.member({ path: 'e', type: '5', mode: 0o711 })
    })
    assert.deepEqual(names(tree), ['', 'a', 'd', 'e', 'e/y'])
    assert.equal(tree.sizeBytes[tree.inode[tree.find('a')]], 10)
    assert.equal(tree.kind[tree.inode[tree.find('d')]], Kind.file)
    assert.equal(tree.mode[tree.inode[tree.find('e')]], 0o711)
  })

  test('a directory that is replaced and comes back is empty', async () => {
    const tree = await treeOf((writer) => {
      writer.file('d/e/old', Buffer.from('x'))
      writer.member({ path: 'd', type: '2', linkName: 'elsewhere' })
      writer.member({ path: 'd', type: '5' })
      writer.member({ path: 'd/e', type: '5' })
    })
    assert.deepEqual(names(tree), ['', 'd', 'd/e'])
  })

  test('directories that are missing are made; leading slashes and dots do not count', async () => {
    const tree = await treeOf((writer) => {
      writer.file('/usr/share/doc/file', Buffer.from('x'))
      writer.file('.//etc/./passwd', Buffer.from('x'))
    })
    assert.deepEqual(names(tree), ['', 'etc', 'etc/passwd', 'usr', 'usr/share', 'usr/share/doc', 'usr/share/doc/file'])
    assert.equal(tree.mode[tree.inode[tree.find('usr/share')]], 0o755)
  })

  test('a path that leads out of the archive is refused', async () => {
    for (const out of ['../x', 'a/../../x', 'a/..']) await assert.rejects(treeOf((writer) => writer.file(out, Buffer.from('x'))), { code: 'SOURCE_INVALID', message: /leads out/ })
  })

  test('members behind a symlink go where it leads, and never out', async () => {
    const tree = await treeOf((writer) => {
      writer.member({ path: 'usr/lib', type: '5' })
      writer.member({ path: 'lib', type: '2', linkName: 'usr/lib' })
      writer.member({ path: 'out', type: '2', linkName: '../../../usr' })
      writer.member({ path: 'absolute', type: '2', linkName: '/usr/lib' })
      writer.file('lib/one', Buffer.from('1'))
      writer.file('out/two', Buffer.from('2'))
      writer.file('absolute/three', Buffer.from('3'))
    })
    assert.deepEqual(names(tree), ['', 'absolute', 'lib', 'out', 'usr', 'usr/lib', 'usr/lib/one', 'usr/lib/three', 'usr/two'])
    await assert.rejects(
      treeOf((writer) => {
        writer.member({ path: 'a', type: '2', linkName: 'b' })
        writer.member({ path: 'b', type: '2', linkName: 'a' })
        writer.file('a/x', Buffer.from('x'))
      }),
      { code: 'SOURCE_INVALID', message: /more than 40 symlinks/ },
    )
  })

  test('a link to what is not in the archive keeps its path', async () => {
    const tree = await treeOf((writer) => {
      writer.file('a', Buffer.from('x'))
      writer.member({ path: 'b', type: '1', linkName: './a' })
      writer.member({ path: 'c', type: '1', linkName: '/usr/./bin/perl' })
    })
    assert.equal(tree.inode[tree.find('a')], tree.inode[tree.find('b')])
    const link = tree.inode[tree.find('c')]
    assert.equal(tree.kind[link], Kind.link)
    assert.equal(Buffer.from(tree.targets.get(link)!).toString(), 'usr/bin/perl')
  })

  test('names that begin like whiteouts are plain names in a plain archive', async () => {
    assert.deepEqual(names(await treeOf((writer) => writer.file('.wh.a', Buffer.from('x')))), ['', '.wh.a'])
  })

  test('an archive that ends early is refused, wherever it ends', async () => {
    const writer = new TarWriter()
    writer.file('a', Buffer.alloc(700, 1))
    writer.file('b', Buffer.alloc(10, 1))
    const bytes = writer.bytes()
    await using home = new ImportHome()
    for (const length of [0, 1, 511, 512, 513, 1100, 1536, 2048, 2100, bytes.length]) {
      writeFileSync(home.path('a.tar'), bytes.subarray(0, length))
      await assert.rejects(home.import(`tar:${home.path('a.tar')}`), { code: 'FORMAT_INVALID' }, `cut at ${length}`)
    }
  })

  test('what does not exist is named', async () => {
    await using home = new ImportHome()
    await assert.rejects(home.import('tar:/nowhere.tar'), { code: 'SOURCE_INVALID', message: /nowhere\.tar cannot be read: ENOENT/ })
    await assert.rejects(home.import(`tar:${home.directory}`), { code: 'SOURCE_INVALID', message: /EISDIR/ })
  })

  test('disks in it are cut at fixed places, as in a directory', async () => {
    await using home = new ImportHome()
    const root = home.makeDirectory('source')
    mkdirSync(`${root}/d`)
    const disk = new Random(seed).bytes(20_000_000)
    disk.write('QFI\xfb', 'latin1')
    writeFileSync(`${root}/d/disk.qcow2`, disk)
    writeFileSync(`${root}/d/small.qcow2`, disk.subarray(0, 1_000_000))
    tar(root, '--format=posix', '-cf', home.path('a.tar'))
    const tree = await home.tree(`tar:${home.path('a.tar')}`)
    assert.equal(treeDigest(tree), treeDigest(await home.tree(`dir:${root}`)))
    const inode = tree.inode[tree.find('d/disk.qcow2')]
    assert.equal(tree.pieceBytes[tree.firstPiece[inode]], 65536)
    assert.equal(tree.pieceCount[inode], Math.ceil(20_000_000 / 65536))
  })
})

async function treeOf(write: (writer: TarWriter) => void): Promise<Tree> {
  await using home = new ImportHome()
  const writer = new TarWriter()
  write(writer)
  writer.end()
  writeFileSync(home.path('a.tar'), writer.bytes())
  return await home.tree(`tar:${home.path('a.tar')}`)
}

function names(tree: Tree): string[] {
  return Array.from({ length: tree.entryCount }, (_, entry) => tree.path(entry)).sort()
}

/** @returns digest of the tree, imported by a process of its own */
async function importFromStandardInput(home: ImportHome, input: Buffer): Promise<string> {
  const child = spawn(process.execPath, [path.join(import.meta.dirname, 'import-process.ts'), home.path('packs'), 'tar:-'], { stdio: ['pipe', 'pipe', 'inherit'] })
  let output = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => (output += text))
  child.stdin.end(input)
  const [status] = (await once(child, 'close')) as [number]
  assert.equal(status, 0)
  const { digest } = JSON.parse(output) as { digest: string }
  return treeDigest(decodeTree(await getObject(home.store, Buffer.from(digest, 'hex'))))
}
