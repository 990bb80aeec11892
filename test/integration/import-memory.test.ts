/**
 * What an import takes of memory. It may take 512 MiB. 200 MiB of them are for the columns of the tree, which are counted: they end with an error, not
 * with the process (images/tree/workspace.ts; bytes for each file: test/images/tree/tree-builder.test.ts). So all else must fit the other 312 MiB,
 * whatever the source holds; what the columns of a test take of its own is below 50.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, ftruncateSync, linkSync, mkdirSync, openSync, readFileSync, writeFileSync, writeSync } from 'node:fs'
import path from 'node:path'
import test, { describe } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { TarWriter } from '../images/formats/tar-writer.ts'
import { Random, testSeed } from '../random.ts'
import { ScratchDirectory } from '../varve-command.ts'

const seed = testSeed()
const LIMIT_MIB = 512
const COLUMNS_MIB = 200
const PEAK_MIB = LIMIT_MIB - COLUMNS_MIB
const launcher = path.resolve(import.meta.dirname, '../../tools/varve')

interface Imported {
  peakMiB: number
  entries: number
  contentBytes: number
  filesUnchanged: number
}

/** Runs `varve layer import` with the memory of its process measured. @param input its standard input */
async function imported(scratch: ScratchDirectory, source: string, input: Iterable<Uint8Array> = [], args: string[] = ['--workers', '2']): Promise<Imported> {
  const peakFile = scratch.join('peak')
  const env = { ...process.env, VARVE_TEST_PEAK_FILE: peakFile, NODE_OPTIONS: `--import=${path.join(import.meta.dirname, 'peak-memory.ts')}` }
  const child = spawn(launcher, ['layer', 'import', 'many', source, '--kind', 'app', '--json', '--home', scratch.join('home'), ...args], { stdio: ['pipe', 'pipe', 'inherit'], env })
  let output = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => (output += text))
  const closed = once(child, 'close') as Promise<[number | null]>
  // That it ended early is told by its status.
  child.stdin.on('error', () => undefined)
  for (const bytes of input) if (!child.stdin.write(bytes)) await Promise.race([once(child.stdin, 'drain'), closed])
  child.stdin.end()
  assert.equal((await closed)[0], 0, output)
  const { layers, filesUnchanged } = JSON.parse(output) as { layers: { entries: number; contentBytes: number }[]; filesUnchanged: number }
  return { peakMiB: Number(readFileSync(peakFile, 'latin1')) / 1024, entries: layers[0].entries, contentBytes: layers[0].contentBytes, filesUnchanged }
}

/** An archive, a thousand members at a time. */
function* archive(count: number, add: (writer: TarWriter, member: number) => void): Generator<Buffer> {
  for (let from = 0; from < count; from += 1000) {
    const writer = new TarWriter()
    for (let member = from; member < Math.min(from + 1000, count); member++) add(writer, member)
    if (from + 1000 >= count) writer.end()
    yield writer.bytes()
  }
}

function assertPeak(test: test.TestContext, { peakMiB }: Imported): void {
  test.diagnostic(`${Math.round(peakMiB)} MiB`)
  assert.ok(peakMiB < PEAK_MIB, `${peakMiB} MiB, at most ${PEAK_MIB}; VARVE_TEST_SEED=${seed}`)
}

describe('memory of an import', () => {
  test('many small files in an archive, with long names, links and attributes among them', async (t) => {
    using scratch = new ScratchDirectory('many')
    const files = 150_000
    const result = await imported(scratch, 'tar:-', archive(files, (writer, file) => {
      const name = `directory-${Math.floor(file / 100)}/file-${file}`
      if (file % 50 === 1) return writer.member({ path: name, type: '1', linkName: `directory-${Math.floor(file / 100)}/file-${file - 1}` })
      if (file % 50 === 2) writer.pax([['path', `${name}-${'x'.repeat(150)}`]])
      if (file % 50 === 3) writer.pax([['SCHILY.xattr.user.number', `${file}`]])
      writer.file(name, Buffer.from(`content of file ${file}`))
    }))
    assert.equal(result.entries, 1 + files + files / 100)
    assertPeak(t, result)
  })

  test('long names in no order, in one directory', async (t) => {
    using scratch = new ScratchDirectory('names')
    const files = 100_000
    const random = new Random(seed)
    const result = await imported(scratch, 'tar:-', archive(files, (writer, file) => {
      writer.pax([['path', `${random.uint32()}-${file}-`.padEnd(250, 'n')]])
      writer.file('file', new Uint8Array())
    }))
    assert.equal(result.entries, 1 + files)
    assertPeak(t, result)
  })

  test('a file of an archive in the most parts that it may have, and others as large as the memory of all batches', async (t) => {
    using scratch = new ScratchDirectory('parts')
    const parts = 1_000_000
    const random = new Random(seed)
    const map = Buffer.alloc(Math.ceil((8 + parts * 13) / 512) * 512)
    let mapAt = map.write(`${parts}\n`)
    for (let part = 0; part < parts; part++) mapAt += map.write(`${part * 4096}\n1\n`, mapAt)
    const block = random.bytes(1 << 20)
    const result = await imported(scratch, 'tar:-', archive(9, (writer, member) => {
      if (member < 8) return writer.file(`large-${member}`, Buffer.concat(Array.from({ length: 20 }, (_, at) => Buffer.concat([Buffer.from([member, at]), block]))))
      writer.pax([['GNU.sparse.major', '1'], ['GNU.sparse.minor', '0'], ['GNU.sparse.name', 'sparse'], ['GNU.sparse.realsize', `${parts * 4096}`]])
      writer.file('sparse', Buffer.concat([map.subarray(0, Math.ceil(mapAt / 512) * 512), Buffer.alloc(parts, 'x')]))
    }))
    assert.equal(result.contentBytes, 8 * 20 * (block.length + 2) + parts * 4096)
    assertPeak(t, result)
  })

  test('a directory: large files, sparse ones, one with very many holes, names of one inode; and again when nothing has changed', async (t) => {
    using scratch = new ScratchDirectory('directory')
    const source = scratch.join('source')
    mkdirSync(source)
    const block = new Random(seed).bytes(1 << 20)
    const full = openSync(`${source}/full`, 'w')
    for (let at = 0; at < 200; at++) {
      block.writeUInt32LE(at)
      writeSync(full, block)
    }
    closeSync(full)
    const sparse = openSync(`${source}/sparse`, 'w')
    ftruncateSync(sparse, 200 * 2 ** 30)
    writeSync(sparse, block, 0, 100, 150 * 2 ** 30)
    closeSync(sparse)
    const holes = openSync(`${source}/holes`, 'w')
    const parts = 25_000
    for (let at = 0; at < parts; at++) writeSync(holes, block, 0, 4096, at * 65_536)
    closeSync(holes)
    writeFileSync(`${source}/first`, 'first')
    for (let at = 0; at < 30_000; at++) linkSync(`${source}/first`, `${source}/link-${at}`)
    // Files that have just changed are not kept in the cache.
    await sleep(3100)
    const contentBytes = 200 * 2 ** 20 + 200 * 2 ** 30 + (parts - 1) * 65_536 + 4096 + 5
    const first = await imported(scratch, `dir:${source}`)
    assert.equal(first.contentBytes, contentBytes)
    assertPeak(t, first)
    const again = await imported(scratch, `dir:${source}`)
    assert.equal(again.contentBytes, contentBytes)
    assert.equal(again.filesUnchanged, 4)
    assertPeak(t, again)
  })

  test('eight workers: what they take is taken from the columns', async (t) => {
    using scratch = new ScratchDirectory('workers')
    const block = new Random(seed).bytes(1 << 20)
    const result = await imported(scratch, 'tar:-', archive(30_020, (writer, file) => {
      if (file < 20) writer.file(`large-${file}`, Buffer.concat(Array.from({ length: 20 }, (_, at) => Buffer.concat([Buffer.from([file, at]), block]))))
      else writer.file(`directory-${Math.floor(file / 500)}/file-${file}`, Buffer.from(`content of file ${file}`))
    }), ['--workers', '8'])
    t.diagnostic(`${Math.round(result.peakMiB)} MiB`)
    const columnsMiB = COLUMNS_MIB - 6 * 24
    assert.ok(result.peakMiB < LIMIT_MIB - columnsMiB, `${result.peakMiB} MiB; VARVE_TEST_SEED=${seed}`)
  })
})
