/** Files of the volume of a disk, and which chunks hold them. Debian packages: e2fsprogs. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { test } from 'node:test'
import { BlockMapBuilder } from '@varve/images/blockmap/block-map.ts'
import { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { MapDevice } from '@varve/images/device/map-device.ts'
import { resolvePath } from '@varve/images/filesystems/file-paths.ts'
import { MemoryStore } from '@varve/images/store/memory-store.ts'
import { openVolume } from '@varve/tools/files/disk-volumes.ts'
import { Random, testSeed } from '../../random.ts'
import { ScratchDirectory } from '../../varve-command.ts'

const BLOCK_BYTES = 4096
const VOLUME_BYTES = 40 << 20
/** More blocks than parts of a file that are compared by their chunks. */
const FILE_BYTES = 5000 * BLOCK_BYTES

/** A disk of which each block is a chunk. */
async function diskOf(image: Buffer, store: MemoryStore): Promise<MapDevice> {
  await using writer = store.writer()
  const map = new BlockMapBuilder(image.length)
  for (let at = 0; at < image.length; at += BLOCK_BYTES) {
    const block = image.subarray(at, at + BLOCK_BYTES)
    if (block.every((byte) => byte === 0)) map.zero(at, BLOCK_BYTES)
    else map.data(at, BLOCK_BYTES, map.addChunk(writer.put(block), BLOCK_BYTES), 0)
  }
  await writer.commit()
  return new MapDevice(map.build(), store, ChunkCache.create({ bytesMax: 1 << 20 }))
}

test('files have the same key only if all of them lies in the same chunks, or none if that is long to say', async () => {
  using scratch = new ScratchDirectory('disk-volumes')
  const source = scratch.join('source')
  mkdirSync(source)
  const content = new Random(testSeed()).bytes(FILE_BYTES)
  writeFileSync(`${source}/long`, content)
  writeFileSync(`${source}/short`, content.subarray(0, 10_000))
  const file = scratch.join('volume')
  writeFileSync(file, '')
  execFileSync('mke2fs', ['-q', '-t', 'ext4', '-b', `${BLOCK_BYTES}`, '-d', source, file, `${VOLUME_BYTES >> 10}k`])
  const image = readFileSync(file)
  const end = image.indexOf(content.subarray(-BLOCK_BYTES))
  assert.ok(end > 0)
  const changed = Buffer.from(image)
  changed.fill('changed', end, end + BLOCK_BYTES)
  await using store = new MemoryStore()
  const [before, after] = [await openVolume(await diskOf(image, store), undefined), await openVolume(await diskOf(changed, store), undefined)]
  const keys = async (path: string): Promise<(string | undefined)[]> => Promise.all([before, after].map(async (volume) => volume.contentKey!(await resolvePath(volume.files, path))))
  const [long, longAfter] = await keys('long')
  assert.ok(long === undefined || long !== longAfter, 'the last block differs')
  const [short, shortAfter] = await keys('short')
  assert.ok(short !== undefined && short === shortAfter)
})
