/** Directories of very many names, and files of very many runs; also an MFT in pieces, which has an attribute list of its own. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { Random, testSeed } from '../../../random.ts'
import { checkFilesystem } from '../conformance.ts'
import { NtfsImage } from './ntfs-image.ts'

/** Names in one directory, and runs of one file; 100,000 are a thorough run. */
const COUNT = Number(process.env.VARVE_NTFS_LARGE ?? 4000)
/** Of the volume in pieces, each of four clusters: blocks of indexes, and what the driver adds to the MFT at once, fit in one. */
const CLUSTER_BYTES = 1024
const PIECE_BYTES = 4 * CLUSTER_BYTES

test(`a directory of ${COUNT} names`, async () => {
  const seed = testSeed()
  const random = new Random(seed)
  await using image = new NtfsImage({ sizeBytes: (64 << 20) + COUNT * 4096 })
  const names = new Set<string>()
  await image.mounted((root) => {
    for (let index = 0; index < COUNT; index++) {
      const name = `${random.pick(['Datei', 'файл', 'x'])} ${index} ${'n'.repeat(random.below(40))}`
      names.add(name)
      fs.writeFileSync(join(root, name), '')
    }
    for (const name of names) {
      if (!random.chance(0.2)) continue
      names.delete(name)
      fs.unlinkSync(join(root, name))
    }
  })
  await using subject = await image.subject()
  const { filesystem } = subject
  const listed = await filesystem.list(filesystem.root)
  assert.deepEqual(listed.map(({ name }) => Buffer.from(name, 'latin1').toString()).sort(), [...names].sort(), `seed ${seed}`)
  for (const { name, id } of listed) assert.equal(await filesystem.child(filesystem.root, name), id, `seed ${seed}: ${name}`)
  await checkFilesystem(subject, seed)
})

test(`a file of ${COUNT} runs, and an MFT in pieces`, async () => {
  const seed = testSeed()
  const random = new Random(seed)
  await using image = new NtfsImage({ clusterBytes: CLUSTER_BYTES, sizeBytes: (16 << 20) + COUNT * 3 * PIECE_BYTES })
  // The driver finds no more than four free clusters beside one another.
  occupyEverySecondPiece(image.path)
  const content = random.bytes(COUNT * PIECE_BYTES)
  await image.mounted((root) => {
    for (let index = 0; index < 200; index++) fs.writeFileSync(join(root, `in the MFT ${index}`), `${index}`)
    fs.writeFileSync(join(root, 'pieces'), content)
    for (let index = 0; index < 200; index++) fs.writeFileSync(join(root, `in the MFT, later ${index}`), `${index}`)
  })
  await using subject = await image.subject()
  const { filesystem } = subject
  const pieces = (await filesystem.child(filesystem.root, 'pieces'))!
  const extents = await filesystem.extents(pieces)
  assert.ok(extents.length > COUNT * 0.9, `${extents.length} runs`)
  const read = Buffer.alloc(content.length)
  await filesystem.read(pieces, read, 0)
  assert.ok(read.equals(content), `seed ${seed}`)
  await checkFilesystem(subject, seed)
})

/** Marks clusters as used in $Bitmap, which nothing but the driver's own check notices. */
function occupyEverySecondPiece(path: string): void {
  const facts = execFileSync('ntfsinfo', ['-i', '6', '-v', path], { encoding: 'utf8' })
  const [, cluster, count] = /Runlist:\s+VCN\s+LCN\s+Length\s+0x0\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)/.exec(facts)!
  const bytes = Buffer.alloc(parseInt(count, 16) * CLUSTER_BYTES)
  const fd = fs.openSync(path, 'r+')
  try {
    fs.readSync(fd, bytes, 0, bytes.length, parseInt(cluster, 16) * CLUSTER_BYTES)
    for (const [at, byte] of bytes.entries()) bytes[at] = byte | 0x0f
    fs.writeSync(fd, bytes, 0, bytes.length, parseInt(cluster, 16) * CLUSTER_BYTES)
  } finally {
    fs.closeSync(fd)
  }
}
