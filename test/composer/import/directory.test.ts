import assert from 'node:assert/strict'
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, chownSync, existsSync, mkdirSync, readdirSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import test, { describe } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Kind } from '@varve/images/tree/tree.ts'
import { PackStore } from '@varve/images/store/pack-store.ts'
import { importTrees } from '@varve/composer/import/import-layer.ts'
import { Random, testSeed } from '../../random.ts'
import { ImportHome, treeDigest } from './import-home.ts'
import { assertSameLines, listDirectory, listTree } from './listing.ts'
import { makeHardTree, makeRandomTree } from './sample-tree.ts'

const seed = testSeed()

const LOG_BYTES = 96 << 20

/** A ctime so near is not trusted: what was made just now is older than this then. */
const RACY_MS = 3100

describe('import of a directory', () => {
  test('everything that a tree can hold comes over', async () => {
    await using home = new ImportHome()
    const root = home.makeDirectory('source')
    await makeHardTree(root)
    const tree = await home.tree(`dir:${root}`)
    // Beyond PATH_MAX, Node itself cannot look: that part is taken away, which changes the root.
    execFileSync('rm', ['-rf', `${root}/${'p'.repeat(200)}`])
    const isCompared = (line: string) => !line.startsWith('pppp') && !line.startsWith(' | ')
    assertSameLines(listTree(tree, home.store, { holes: true }).filter(isCompared), listDirectory(root, { holes: true }).filter(isCompared))
    const deep = Array.from({ length: 30 }, () => 'p'.repeat(200)).join('/')
    const file = tree.find(`${deep}/file`)
    assert.ok(file > 0)
    assert.equal(Buffer.from(home.store.get(tree.chunkDigest(tree.pieceChunk[tree.firstPiece[tree.inode[file]]]))).toString(), 'deep\n')
    assert.deepEqual(tree.xattrSets[tree.xattrSet[tree.inode[file]]].map(({ name, value }) => [name, Buffer.from(value).toString()]), [['user.deep', 'yes']])
    assert.equal(Buffer.from(tree.targets.get(tree.inode[tree.find(`${deep}/link`)])!).toString(), 'deep')
  })

  test(`random trees come over (seed ${seed})`, async () => {
    const random = new Random(seed)
    for (let round = 0; round < 3; round++) {
      await using home = new ImportHome()
      const root = home.makeDirectory('source')
      makeRandomTree(root, random, { entries: 150, xattrs: true, holes: true, nanoseconds: true, rawNames: false, farTimes: true, largeIds: true })
      const tree = await home.tree(`dir:${root}`)
      assertSameLines(listTree(tree, home.store, { holes: true }), listDirectory(root, { holes: true }), `seed ${seed}, round ${round}`)
    }
  })

  test('the tree does not depend on the number of workers', async () => {
    await using home = new ImportHome()
    const root = home.makeDirectory('source')
    makeRandomTree(root, new Random(seed), { entries: 300 })
    for (let file = 0; file < 4; file++) writeFileSync(`${root}/large-${file}`, new Random(file).bytes(5_000_000))
    const digests = new Set<string>()
    for (const workers of [1, 2, 3]) digests.add(treeDigest(await home.tree(`dir:${root}`, { workers, cacheDirectory: undefined })))
    assert.equal(digests.size, 1)
  })

  test('a mount point is an empty directory', async () => {
    await using home = new ImportHome()
    const root = home.makeDirectory('source')
    mkdirSync(`${root}/mounted`)
    mkdirSync(`${root}/bound`)
    mkdirSync(`${root}/other`)
    writeFileSync(`${root}/other/file`, 'x')
    execFileSync('mount', ['-t', 'tmpfs', 'tmpfs', `${root}/mounted`])
    execFileSync('mount', ['--bind', `${root}/other`, `${root}/bound`])
    try {
      writeFileSync(`${root}/mounted/file`, 'x')
      const tree = await home.tree(`dir:${root}`)
      for (const name of ['mounted', 'bound']) {
        assert.equal(tree.kind[tree.inode[tree.find(name)]], Kind.directory)
        assert.equal(tree.childCount[tree.find(name)], 0)
      }
      assert.ok(tree.find('other/file') > 0)
      // The directory that is asked for may be one.
      assert.ok((await home.tree(`dir:${root}/mounted`)).find('file') > 0)
    } finally {
      execFileSync('umount', [`${root}/mounted`, `${root}/bound`])
    }
  })

  test('unchanged files are not read again, changed ones are', async () => {
    await using home = new ImportHome()
    const root = home.makeDirectory('source')
    makeRandomTree(root, new Random(seed), { entries: 200, xattrs: true, holes: true })
    writeFileSync(`${root}/a`, 'aaaa')
    writeFileSync(`${root}/b`, 'bbbb')
    execFileSync('setfattr', ['-n', 'user.kept', '-v', 'yes', `${root}/b`])
    await sleep(RACY_MS)
    const first = await home.import(`dir:${root}`)
    assert.equal(first.figures.filesUnchanged, 0)
    const second = await home.import(`dir:${root}`)
    assert.equal(second.figures.filesUnchanged, second.figures.files)
    assert.equal(second.figures.written.chunks, 0)
    assert.equal(treeDigest(second.trees[0]), treeDigest(first.trees[0]))
    // As long and of the same time as before: the ctime tells it.
    const { atime, mtime } = statSync(`${root}/a`)
    writeFileSync(`${root}/a`, 'AAAA')
    utimesSync(`${root}/a`, atime, mtime)
    execFileSync('setfattr', ['-n', 'user.kept', '-v', 'no', `${root}/b`])
    const third = await home.import(`dir:${root}`)
    assert.equal(third.figures.filesUnchanged, third.figures.files - 2)
    assertSameLines(listTree(third.trees[0], home.store, { holes: true }), listDirectory(root, { holes: true }))
  })

  test('a file that changed just before the scan is read again', async () => {
    await using home = new ImportHome()
    const root = home.makeDirectory('source')
    writeFileSync(`${root}/a`, 'aaaa')
    await home.import(`dir:${root}`)
    assert.equal((await home.import(`dir:${root}`)).figures.filesUnchanged, 0)
  })

  test('files are read again when the store has lost their chunks, or the cache is damaged', async () => {
    await using home = new ImportHome()
    const root = home.makeDirectory('source')
    makeRandomTree(root, new Random(seed), { entries: 100 })
    await sleep(RACY_MS)
    const { trees } = await home.import(`dir:${root}`)
    await using other = new ImportHome()
    const elsewhere = await other.import(`dir:${root}`, { cacheDirectory: home.cacheDirectory })
    // Empty files need no chunks.
    assert.ok(elsewhere.figures.written.chunksNew > 0)
    assertSameLines(listTree(elsewhere.trees[0], other.store), listDirectory(root))
    const [cache] = readdirSync(home.cacheDirectory)
    const file = path.join(home.cacheDirectory, cache)
    const whole = execFileSync('cat', [file])
    const random = new Random(seed)
    for (let round = 0; round < 30; round++) {
      const damaged = Buffer.from(whole.subarray(0, random.chance(0.5) ? whole.length : random.below(whole.length)))
      if (damaged.length > 0) damaged[random.below(damaged.length)] ^= 1 + random.below(255)
      writeFileSync(file, damaged)
      const again = await home.import(`dir:${root}`)
      assert.equal(again.figures.filesUnchanged, 0)
      assert.equal(treeDigest(again.trees[0]), treeDigest(trees[0]))
    }
  })

  test('a file that changes between scan and reading is read as it is then', async () => {
    await using home = new ImportHome()
    const root = home.makeDirectory('source')
    writeFileSync(`${root}/a`, '')
    writeFileSync(`${root}/b`, 'before')
    let isChanged = false
    // The first report comes when the empty file is found, in the middle of the scan.
    const onProgress = () => {
      if (isChanged) return
      isChanged = true
      writeFileSync(`${root}/b`, 'after it was found')
      chmodSync(`${root}/b`, 0o640)
    }
    const tree = await home.tree(`dir:${root}`, { onProgress })
    assert.ok(isChanged)
    assertSameLines(listTree(tree, home.store), listDirectory(root))
  })

  test('a file that never stops changing is refused by name', async () => {
    await using home = new ImportHome()
    const root = home.makeDirectory('source')
    // Large, so that the writer has its turn while it is read, whatever else the machine does.
    writeFileSync(`${root}/log`, Buffer.alloc(LOG_BYTES))
    const writer = spawn('nice', ['-n', '-10', 'bash', '-c', 'while :; do echo x >> log; done'], { cwd: root })
    try {
      while (statSync(`${root}/log`).size === LOG_BYTES) await sleep(5)
      await assert.rejects(home.import(`dir:${root}`), { code: 'SOURCE_CHANGED', message: /\/source\/log changed/ })
    } finally {
      writer.kill('SIGKILL')
      await once(writer, 'exit')
    }
  })

  test('a directory that never stops changing is refused by name', async () => {
    await using home = new ImportHome()
    const root = home.makeDirectory('source')
    mkdirSync(`${root}/spool`)
    for (let file = 0; file < 5000; file++) writeFileSync(`${root}/spool/${file}`, '')
    const writer = spawn(process.execPath, ['-e', "const { renameSync } = require('fs'); for (;;) { renameSync('0', 'new-0'); renameSync('new-0', '0') }"], { cwd: `${root}/spool` })
    try {
      while (existsSync(`${root}/spool/0`)) await sleep(1)
      await assert.rejects(home.import(`dir:${root}`), { code: 'SOURCE_CHANGED', message: /\/source\/spool\/ changed/ })
    } finally {
      writer.kill('SIGKILL')
      await once(writer, 'exit')
    }
  })

  test('what cannot be read is named', async () => {
    await using home = new ImportHome()
    const root = home.makeDirectory('source')
    mkdirSync(`${root}/open`)
    mkdirSync(`${root}/closed`, { mode: 0 })
    writeFileSync(`${root}/open/secret`, 'x', { mode: 0 })
    await assert.rejects(home.import('dir:/nowhere/at/all'), { code: 'SOURCE_INVALID', message: /\/nowhere\/at\/all cannot be read: ENOENT/ })
    await assert.rejects(home.import(`dir:${root}/open/secret`), { code: 'SOURCE_INVALID', message: /is not a directory/ })
    // As somebody who is not root.
    const nobody = 65534
    chmodSync(home.directory, 0o755)
    const packs = home.makeDirectory('nobody')
    chownSync(packs, nobody, nobody)
    process.seteuid!(nobody)
    try {
      await using store = PackStore.open(packs)
      await assert.rejects(importTrees({ store, source: `dir:${root}/open` }), { code: 'SOURCE_INVALID', message: /open\/secret cannot be read: EACCES/ })
      await assert.rejects(importTrees({ store, source: `dir:${root}` }), { code: 'SOURCE_INVALID', message: /closed\/ cannot be read: EACCES/ })
    } finally {
      process.seteuid!(0)
    }
  })

  test('an abort ends the import, and the store can be used on', async () => {
    await using home = new ImportHome()
    const root = home.makeDirectory('source')
    for (let file = 0; file < 40; file++) writeFileSync(`${root}/${file}`, new Random(file).bytes(2_000_000))
    const controller = new AbortController()
    const reason = new Error('enough')
    let reports = 0
    const aborted = home.import(`dir:${root}`, {
      signal: controller.signal,
      onProgress: ({ bytes }) => {
        reports++
        if (bytes > 0) controller.abort(reason)
      },
    })
    await assert.rejects(aborted, (error) => error === reason)
    assert.ok(reports > 0)
    await assert.rejects(home.import(`dir:${root}`, { signal: AbortSignal.abort(reason) }), (error) => error === reason)
    assertSameLines(listTree(await home.tree(`dir:${root}`), home.store), listDirectory(root))
  })

  test('progress counts up to all files and bytes', async () => {
    await using home = new ImportHome()
    const root = home.makeDirectory('source')
    makeRandomTree(root, new Random(seed), { entries: 200, holes: true })
    const reports: { files: number; bytes: number; filesTotal?: number; bytesTotal?: number }[] = []
    const { figures } = await home.import(`dir:${root}`, { onProgress: (progress) => reports.push(progress) })
    const last = reports.at(-1)!
    assert.equal(last.files, figures.files)
    assert.equal(last.filesTotal, figures.files)
    assert.ok(last.bytes <= last.bytesTotal!)
    assert.equal(last.bytesTotal, figures.contentBytes)
    for (let at = 1; at < reports.length; at++) assert.ok(reports[at].files >= reports[at - 1].files && reports[at].bytes >= reports[at - 1].bytes)
  })
})
