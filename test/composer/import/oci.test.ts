import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { gzipSync } from 'node:zlib'
import test, { describe } from 'node:test'
import { VarveError } from '@varve/images/errors.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import type { Tree } from '@varve/images/tree/tree.ts'
import { Random, testSeed } from '../../random.ts'
import { LAYER_TYPE, OciFiles } from '../../images/formats/oci-files.ts'
import { TarWriter } from '../../images/formats/tar-writer.ts'
import { ImportHome, treeDigest } from './import-home.ts'
import { assertSameLines, listDirectory, listTree } from './listing.ts'
import { makeRandomTree } from './sample-tree.ts'

const seed = testSeed()

function umoci(...options: string[]): void {
  execFileSync('umoci', options, { stdio: ['ignore', 'ignore', 'pipe'] })
}

/** An image of three layers, made by umoci from what changed on disk. @returns the root filesystem as umoci unpacks it */
function makeImage(home: ImportHome): string {
  const image = `${home.path('image')}:test`
  umoci('init', '--layout', home.path('image'))
  umoci('new', '--image', image)
  const change = (script: string) => {
    execFileSync('rm', ['-rf', home.path('bundle')])
    umoci('unpack', '--image', image, home.path('bundle'))
    execFileSync('bash', ['-ec', script], { cwd: home.path('bundle', 'rootfs') })
    umoci('repack', '--image', image, home.path('bundle'))
  }
  execFileSync('rm', ['-rf', home.path('bundle')])
  umoci('unpack', '--image', image, home.path('bundle'))
  mkdirSync(home.path('bundle', 'rootfs', 'random'))
  makeRandomTree(home.path('bundle', 'rootfs', 'random'), new Random(seed), { entries: 100, holes: false, xattrs: true })
  execFileSync('bash', ['-ec', 'mkdir -p keep/deep gone replaced filled; echo 1 > keep/a; ln keep/a keep/b; echo 2 > gone/x; echo 3 > replaced/x; echo 4 > filled/x; ln -s keep link; touch -d @1500000000 keep/deep keep'], { cwd: home.path('bundle', 'rootfs') })
  umoci('repack', '--image', image, home.path('bundle'))
  change('rm -r gone keep/b; rm -r replaced; echo now-a-file > replaced; echo changed >> keep/a; mkdir added; echo 5 > added/file; setfattr -n user.layer -v two added/file; mknod added/null c 1 3')
  change('rm -r filled; mkdir filled; echo new > filled/y; rm link; mkdir link; echo in > link/side; rm -r random')
  execFileSync('rm', ['-rf', home.path('bundle')])
  umoci('unpack', '--image', image, home.path('bundle'))
  return home.path('bundle', 'rootfs')
}

/** Directories get times of their own when umoci removes a name from them. */
function withoutDirectoryTimes(lines: string[]): string[] {
  return lines.map((line) => line.replace(/^([^|]* \| directory \| \d+ \| \d+:\d+ \|) -?\d+/, '$1'))
}

describe('import of an OCI layout', () => {
  test('squashed, an image of umoci is what umoci unpacks', async () => {
    await using home = new ImportHome()
    const root = makeImage(home)
    const tree = await home.tree(`oci:${home.path('image')}:test`, { squash: true })
    assertSameLines(withoutDirectoryTimes(listTree(tree, home.store)), withoutDirectoryTimes(listDirectory(root)))
  })

  test('layer by layer, deletions are whiteouts, and what replaces a directory is opaque or no directory', async () => {
    await using home = new ImportHome()
    makeImage(home)
    const { trees } = await home.import(`oci:${home.path('image')}`)
    assert.equal(trees.length, 3)
    const kind = (tree: Tree, path: string) => (tree.find(path) < 0 ? undefined : tree.kind[tree.inode[tree.find(path)]])
    assert.equal(kind(trees[1], 'gone'), Kind.whiteout)
    assert.equal(kind(trees[1], 'keep/b'), Kind.whiteout)
    assert.equal(kind(trees[1], 'replaced'), Kind.file)
    assert.equal(kind(trees[1], 'keep/a'), Kind.file)
    assert.equal(kind(trees[2], 'random'), Kind.whiteout)
    assert.equal(kind(trees[2], 'link'), Kind.directory)
    assert.ok(kind(trees[2], 'filled/x') === Kind.whiteout || trees[2].opaque[trees[2].inode[trees[2].find('filled')]] === 1)
  })

  test('layers in zstd and uncompressed ones, as skopeo writes them, give the same trees', async () => {
    await using home = new ImportHome()
    makeImage(home)
    const gzip = (await home.import(`oci:${home.path('image')}:test`)).trees.map(treeDigest)
    const skopeo = (target: string, ...options: string[]) => execFileSync('skopeo', ['copy', '--insecure-policy', ...options, `oci:${home.path('image')}:test`, target], { stdio: 'pipe' })
    skopeo(`oci:${home.path('zstd')}:test`, '--dest-compress', '--dest-compress-format', 'zstd')
    const blobs = readdirSync(home.path('zstd', 'blobs', 'sha256')).map((name) => readFileSync(home.path('zstd', 'blobs', 'sha256', name)))
    assert.ok(blobs.some((blob) => blob.readUInt32LE(0) === 0xfd2fb528), 'skopeo wrote a layer in zstd')
    assert.deepEqual((await home.import(`oci:${home.path('zstd')}`)).trees.map(treeDigest), gzip)
    skopeo(`oci:${home.path('plain')}:test`, '--dest-decompress')
    assert.deepEqual((await home.import(`oci:${home.path('plain')}:test`)).trees.map(treeDigest), gzip)
  })

  test('whiteouts count for the layers below only, in whatever order they stand', async () => {
    const layers = [
      (writer: TarWriter) => {
        writer.file('a', Buffer.from('1'))
        writer.file('d/below', Buffer.from('1'))
        writer.file('d/sub/below', Buffer.from('1'))
        writer.file('e/below', Buffer.from('1'))
        writer.file('f/below', Buffer.from('1'))
        writer.file('g/below', Buffer.from('1'))
      },
      (writer: TarWriter) => {
        writer.file('a', Buffer.from('2'))
        writer.file('.wh.a', Buffer.alloc(0))
        writer.file('d/new', Buffer.from('2'))
        writer.file('d/.wh..wh..opq', Buffer.alloc(0))
        writer.file('e/.wh..wh..opq', Buffer.alloc(0))
        writer.file('e/sub/new', Buffer.from('2'))
        writer.file('.wh.f', Buffer.alloc(0))
        writer.member({ path: 'f', type: '5' })
        writer.file('f/new', Buffer.from('2'))
        writer.file('.wh.g', Buffer.alloc(0))
        writer.file('.wh..wh.plnk', Buffer.alloc(0))
        writer.file('.wh.never-was', Buffer.alloc(0))
        writer.file('nowhere/.wh.x', Buffer.alloc(0))
      },
    ]
    await using home = new ImportHome()
    writeImage(home, layers)
    const squashed = await home.tree(`oci:${home.path('image')}`, { squash: true })
    assert.deepEqual(names(squashed), ['', 'a', 'd', 'd/new', 'e', 'e/sub', 'e/sub/new', 'f', 'f/new'])
    const { trees } = await home.import(`oci:${home.path('image')}`)
    const upper = trees[1]
    assert.deepEqual(names(upper), ['', 'a', 'd', 'd/new', 'e', 'e/sub', 'e/sub/new', 'f', 'f/new', 'g', 'never-was', 'nowhere', 'nowhere/x'])
    for (const [path, opaque] of [['d', 1], ['e', 1], ['e/sub', 0], ['f', 1]] as const) assert.equal(upper.opaque[upper.inode[upper.find(path)]], opaque, path)
    for (const path of ['g', 'never-was', 'nowhere/x']) assert.equal(upper.kind[upper.inode[upper.find(path)]], Kind.whiteout, path)
    assert.equal(upper.kind[upper.inode[upper.find('a')]], Kind.file)
  })

  test('a directory that a layer does not describe is that of the layers below', async () => {
    await using home = new ImportHome()
    writeImage(home, [
      (writer) => {
        writer.member({ path: './', type: '5', mode: 0o711, uid: 3 })
        writer.member({ path: 'd/', type: '5', mode: 0o700, uid: 7, mtimeSeconds: 1000 })
      },
      (writer) => writer.file('other', Buffer.from('x')),
      (writer) => writer.file('d/new', Buffer.from('x')),
    ])
    const { trees } = await home.import(`oci:${home.path('image')}`)
    const inode = trees[2].inode[trees[2].find('d')]
    assert.deepEqual([trees[2].mode[inode], trees[2].uid[inode], trees[2].mtimeSeconds[inode]], [0o700, 7, 1000])
    assert.deepEqual([trees[2].mode[0], trees[2].uid[0]], [0o711, 3])
  })

  test('a whiteout of nothing is refused', async () => {
    for (const name of ['d/.wh.', 'd/.wh..', '.wh...']) {
      await using home = new ImportHome()
      writeImage(home, [(writer) => writer.file('d/a', Buffer.from('x')), (writer) => writer.file(name, Buffer.alloc(0))])
      for (const squash of [true, false]) await assert.rejects(home.import(`oci:${home.path('image')}`, { squash }), { code: 'SOURCE_INVALID', message: /whiteout of nothing/ })
    }
  })

  test('squashed, a hard link to a layer below is one', async () => {
    await using home = new ImportHome()
    writeImage(home, [(writer) => writer.file('a', Buffer.from('x')), (writer) => writer.member({ path: 'b', type: '1', linkName: 'a' })])
    const tree = await home.tree(`oci:${home.path('image')}`, { squash: true })
    assert.equal(tree.inode[tree.find('a')], tree.inode[tree.find('b')])
    const { trees } = await home.import(`oci:${home.path('image')}`)
    assert.equal(trees[1].kind[trees[1].inode[trees[1].find('b')]], Kind.link)
  })

  test(`damaged layers: an error with a code, nothing else (seed ${seed})`, async () => {
    await using home = new ImportHome()
    const random = new Random(seed)
    const writer = new TarWriter()
    for (let file = 0; file < 10; file++) writer.file(`d${file % 3}/${file}`, random.bytes(random.below(3000)))
    writer.end()
    for (let round = 0; round < 300; round++) {
      const bytes = Buffer.from(random.chance(0.5) ? gzipSync(writer.bytes()) : writer.bytes())
      for (let flips = random.between(1, 5); flips > 0; flips--) bytes[random.below(bytes.length)] = random.below(256)
      const files = new OciFiles(home.path('fuzzed'))
      // Mostly with a digest that fits, so that what is behind it is reached.
      const layer = files.blob(bytes, LAYER_TYPE)
      if (random.chance(0.1)) layer.size -= 1
      files.index([files.manifest([layer])])
      try {
        await home.import(`oci:${home.path('fuzzed')}`, { squash: random.chance(0.5) })
      } catch (error) {
        assert.ok(error instanceof VarveError, `seed ${seed}, round ${round}: ${(error as Error).stack}`)
      }
    }
  })
})

function writeImage(home: ImportHome, layers: readonly ((writer: TarWriter) => void)[]): void {
  const files = new OciFiles(home.path('image'))
  const descriptors = layers.map((write) => {
    const writer = new TarWriter()
    write(writer)
    writer.end()
    return files.blob(gzipSync(writer.bytes()), `${LAYER_TYPE}+gzip`)
  })
  files.index([files.manifest(descriptors)])
  writeFileSync(home.path('image', 'oci-layout'), '{"imageLayoutVersion": "1.0.0"}')
}

function names(tree: Tree): string[] {
  return Array.from({ length: tree.entryCount }, (_, entry) => tree.path(entry)).sort()
}
