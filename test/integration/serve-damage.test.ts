/**
 * A pack that is damaged under a running server: its client gets an error where the damage is, the right bytes everywhere else, and the right bytes
 * there too once the pack is whole again. The clients are not ours.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { closeSync, mkdirSync, openSync, readdirSync, readFileSync, writeFileSync, writeSync } from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { Random, testSeed } from '../random.ts'
import { ScratchDirectory, varve, VarveServer } from '../varve-command.ts'

const BLOCK_BYTES = 4096
const FILE_BYTES = 3 << 20
const seed = testSeed()

/** Where some bytes that are not compressible lie in a pack. */
function findInPacks(home: string, bytes: Buffer): { file: string; offset: number } {
  for (const name of readdirSync(path.join(home, 'packs'))) {
    const file = path.join(home, 'packs', name)
    if (!name.endsWith('.pack')) continue
    const offset = readFileSync(file).indexOf(bytes)
    if (offset >= 0) return { file, offset }
  }
  throw new Error('no pack holds the bytes')
}

function overwrite({ file, offset }: { file: string; offset: number }, bytes: Uint8Array): void {
  const fd = openSync(file, 'r+')
  writeSync(fd, bytes, 0, bytes.length, offset)
  closeSync(fd)
}

/** What qemu-io says of reading a block. */
function readBlock(uri: string, offset: number): string {
  const { stdout, stderr } = spawnSync('qemu-io', ['-r', '-f', 'raw', '-c', `read -v ${offset} ${BLOCK_BYTES}`, uri], { encoding: 'utf8' })
  return stdout + stderr
}

/** As `read -v` prints the first bytes. */
function assertShows(output: string, bytes: Buffer): void {
  assert.match(output, /^read 4096\/4096/m)
  assert.ok(output.includes(bytes.subarray(0, 16).toString('hex').replace(/(..)(?=.)/g, '$1 ')), output.slice(0, 200))
}

test(`a pack that is damaged under a server is an I/O error to its client, there and nowhere else, until it is whole again (seed ${seed})`, async () => {
  using scratch = new ScratchDirectory('serve-damage')
  const home = scratch.join('home')
  const source = scratch.join('source')
  const content = new Random(seed).bytes(FILE_BYTES)
  mkdirSync(source)
  writeFileSync(path.join(source, 'file'), content)
  varve(home, ['layer', 'import', 'files', `dir:${source}`, '--kind', 'base'])
  varve(home, ['cvd', 'create', 'desk', '--layer', 'files', '--boot', 'none'])
  const address = scratch.join('nbd.sock')
  const uri = `nbd+unix:///desk?socket=${address}`
  let diskOffset: number
  {
    // Another server than the one under test, so that that one has nothing in memory.
    await using server = await VarveServer.start(home, `unix:${address}`)
    const copy = scratch.join('copy.img')
    assert.equal(spawnSync('nbdcopy', [uri, copy]).status, 0)
    diskOffset = readFileSync(copy).indexOf(content.subarray(0, BLOCK_BYTES))
    assert.ok(diskOffset > 0)
    assert.equal(await server.stop(), 0)
  }
  await using server = await VarveServer.start(home, `unix:${address}`)
  const damagedAt = (FILE_BYTES >> 1) & -BLOCK_BYTES
  const good = content.subarray(damagedAt, damagedAt + 64)
  const place = findInPacks(home, good)
  overwrite(place, good.map((byte) => byte ^ 0xff))
  assert.match(readBlock(uri, diskOffset + damagedAt), /read failed: Input\/output error/)
  assert.match(readBlock(uri, diskOffset + damagedAt), /read failed: Input\/output error/, 'nor the second time')
  // A chunk is larger than a block: one of its neighbours is in it too.
  const neighbour = [damagedAt - BLOCK_BYTES, damagedAt + BLOCK_BYTES].find((at) => readBlock(uri, diskOffset + at).includes('read failed: Input/output error'))
  assert.ok(neighbour !== undefined)
  assertShows(readBlock(uri, diskOffset), content)
  assertShows(readBlock(uri, diskOffset + FILE_BYTES - BLOCK_BYTES), content.subarray(FILE_BYTES - BLOCK_BYTES))
  // What is written there is the guest's, and needs nothing of the pack.
  const wrote = spawnSync('qemu-io', ['-f', 'raw', '-c', `write -P 0x5a ${diskOffset + damagedAt} ${BLOCK_BYTES}`, '-c', 'flush', uri], { encoding: 'utf8' })
  assert.match(wrote.stdout, /^wrote 4096/m)
  assertShows(readBlock(uri, diskOffset + damagedAt), Buffer.alloc(16, 0x5a))
  assert.match(readBlock(uri, diskOffset + neighbour), /read failed: Input\/output error/, 'the rest of the chunk')
  overwrite(place, good)
  assertShows(readBlock(uri, diskOffset + neighbour), content.subarray(neighbour))
  assert.equal(await server.stop(), 0)
})
