/** Images that are served: one of each disk and format at a time, and no more than there is room for. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { test } from 'node:test'
import { BlockMapBuilder } from '@varve/images/blockmap/block-map.ts'
import { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { DISK_FORMATS } from '@varve/images/formats/disk-image.ts'
import { Home } from '@varve/images/store/home.ts'
import { putObject } from '@varve/images/store/object.ts'
import { HomeImages } from '@varve/tools/home-images.ts'
import { ScratchDirectory } from '../varve-command.ts'

const MIB = 1 << 20
const OPEN_MAX = 64

test('an image that two ask for at once is computed once, also where others have to be closed for it; with too many in use it is refused', async () => {
  using scratch = new ScratchDirectory('home-images')
  await using home = await Home.open(scratch.join('home'))
  const names: string[] = []
  for (let disk = 0; disk < Math.ceil((OPEN_MAX + 1) / DISK_FORMATS.length); disk++) {
    await using writer = home.store.writer()
    const map = new BlockMapBuilder((disk + 1) * MIB).build()
    const digest = putObject(writer, map.encode())
    await writer.commit()
    await home.catalog.addLayer({ name: `disk-${disk}`, kind: 'base', content: 'block map', digest, entries: 0, contentBytes: map.sizeBytes, source: 'test' })
    for (const format of DISK_FORMATS) names.push(`layer:disk-${disk}@1 ${format}`)
  }
  await using images = new HomeImages(home, ChunkCache.create({ bytesMax: MIB }))
  const hold = (name: string) => images.hold(...(name.split(' ') as [string, string]))
  const held = await Promise.all(names.slice(0, OPEN_MAX).map(hold))
  await assert.rejects(hold(names[OPEN_MAX]), { code: 'LIMIT_EXCEEDED' })
  for (const image of held.slice(1)) await image.release()
  const [one, other] = await Promise.all([hold(names[OPEN_MAX]), hold(names[OPEN_MAX])])
  assert.equal(one.device, other.device)
  await one.release()
  const again = await hold(names[OPEN_MAX])
  assert.equal(again.device, other.device)
  assert.equal((await hold(names[0])).device, held[0].device)
})

test('ending while an image is opened that cannot be is no failure', async () => {
  using scratch = new ScratchDirectory('home-images')
  await using home = await Home.open(scratch.join('home'))
  await home.catalog.addLayer({ name: 'lost', kind: 'base', content: 'block map', digest: randomBytes(32), entries: 0, contentBytes: MIB, source: 'test' })
  for (let turns = 0; turns < 300; turns++) {
    const images = new HomeImages(home, ChunkCache.create({ bytesMax: MIB }))
    const refused = assert.rejects(images.hold('layer:lost@1', 'qcow2'), /is not in|aborted/)
    for (let turn = 0; turn < turns; turn++) await Promise.resolve()
    await images[Symbol.asyncDispose]()
    await refused
  }
})
