/**
 * Real boots: what one Debian's boot reads, a boot set learned from another one's, installed independently from the same packages, knows.
 * Debian packages: mmdebstrap, qemu-system-x86, grub-common, grub-pc-bin, grub-efi-amd64-bin.
 */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import path from 'node:path'
import test from 'node:test'
import { promisify } from 'node:util'
import { BootSet } from '@varve/composer/bootset/boot-set.ts'
import { DiskView } from '@varve/composer/bootset/disk-view.ts'
import { placeChunks } from '@varve/composer/bootset/place-chunks.ts'
import { guessBootSet } from '@varve/composer/bootset/static-guess.ts'
import { translateBootSet } from '@varve/composer/bootset/translate.ts'
import { importLayer } from '@varve/composer/import/import-layer.ts'
import { decodeChunkList } from '@varve/images/chunk/chunk-list.ts'
import { digestToHex } from '@varve/images/chunk/digest.ts'
import type { Digest } from '@varve/images/chunk/digest.ts'
import { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { RecordingDevice } from '@varve/images/device/recording-device.ts'
import { Home } from '@varve/images/store/home.ts'
import { getObject } from '@varve/images/store/object.ts'
import { CvdDisk } from '@varve/tools/cvd-disk.ts'
import { Guest } from '@varve/tools/demo/guest.ts'
import { bootListsOf, recordBoot } from '@varve/tools/streaming/boot-lists.ts'
import { serve } from '../blockserver/nbd/serving.ts'
import { ScratchDirectory } from '../varve-command.ts'

/** Far above what a slow machine needs. */
const BOOT_MS_MAX = 300_000
/** Of all chunks that a boot uses. */
const COVERED_MIN = 0.9

interface Boot {
  map: Digest
  view: DiskView
  chunks: Uint32Array
}

/** Boots a CVD to its prompt, and on until nothing new is read. */
async function boot(home: Home, name: string, firmware: 'bios' | 'uefi'): Promise<Boot> {
  let recording: RecordingDevice | undefined
  const lowerOf = (device: ConstructorParameters<typeof RecordingDevice>[0]): RecordingDevice => (recording = new RecordingDevice(device))
  await using disk = await CvdDisk.open(name, { home, cache: ChunkCache.create({ bytesMax: 256 << 20 }), lowerOf })
  recording!.recorder.beginBoot()
  await using server = await serve({ [name]: disk.device })
  await using guest = new Guest({ disk: server.uri(name), firmware })
  await guest.waitFor(/root@varve-test:~# /, { timeoutMs: BOOT_MS_MAX })
  for (let count = -1; count !== recording!.recorder.boot!.chunks.length; ) {
    count = recording!.recorder.boot!.chunks.length
    await new Promise((resolve) => setTimeout(resolve, 3000))
  }
  await guest.kill()
  return { map: disk.cvd.baseMap!, view: await DiskView.open(recording!.map, home.store), chunks: recording!.recorder.endBoot()!.chunks }
}

function covered(chunks: Iterable<number>, { view, chunks: used }: Boot): { chunks: number; bytes: number } {
  const known = new Set(chunks)
  const bytesOf = (list: Uint32Array): number => list.reduce((sum, chunk) => sum + view.map.chunkBytes[chunk], 0)
  const hit = used.filter((chunk) => known.has(chunk))
  return { chunks: hit.length / used.length, bytes: bytesOf(hit) / bytesOf(used) }
}

test('a boot set learned on one Debian covers nine tenths of what another reads, which was installed independently', async (context) => {
  using scratch = new ScratchDirectory('bootset')
  const builder = path.resolve(import.meta.dirname, 'debian-process.ts')
  const roots = [scratch.join('one'), scratch.join('two')]
  await Promise.all(roots.map((root) => promisify(execFile)(process.execPath, [builder, root])))
  await using home = await Home.open(scratch.join('home'))
  for (const root of roots) await importLayer({ home, name: 'debian', kind: 'base', source: `dir:${root}` })
  await home.catalog.createCvd({ name: 'one', layers: ['debian@1'] })
  await home.catalog.createCvd({ name: 'two', layers: ['debian@2'] })
  const [one, two] = await Promise.all([boot(home, 'one', 'bios'), boot(home, 'two', 'bios')])
  const report = (what: string, { chunks, bytes }: { chunks: number; bytes: number }): void => context.diagnostic(`${what}: ${(chunks * 100).toFixed(1)}% of the chunks, ${(bytes * 100).toFixed(1)}% of the bytes`)

  // Never booted: the guess.
  report('static guess', covered(await translateBootSet(await guessBootSet(one.view), one.view), one))
  // The other is a new version of the layer, and inherits.
  assert.equal(await recordBoot(home, one.map, one.chunks), true)
  const list = decodeChunkList(await getObject(home.store, (await bootListsOf(home, two.map, 'two')).bootSet!))
  const numbers = new Map(Array.from(two.view.map.chunkBytes, (_, chunk) => [digestToHex(two.view.map.chunkDigest(chunk)), chunk]))
  const chunks = Array.from({ length: list.length / 32 }, (_, index) => numbers.get(digestToHex(list.subarray(index * 32, index * 32 + 32)))!)
  const forward = covered(chunks, two)
  const backward = covered(await translateBootSet(BootSet.empty.with((await placeChunks(two.view, two.chunks)).map((placed, rank) => ({ ...placed, rank }))), one.view), one)
  report('learned on one, for two', forward)
  report('learned on two, for one', backward)
  context.diagnostic(`a boot used ${two.chunks.length} chunks, the list has ${chunks.length}`)
  for (const share of [forward, backward]) assert.ok(share.chunks >= COVERED_MIN && share.bytes >= COVERED_MIN)
  // Not by listing everything.
  assert.ok(chunks.length < two.chunks.length * 1.3)
})
