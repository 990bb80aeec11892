import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import Database from 'better-sqlite3'
import { digestOf, digestToHex } from '@varve/images/chunk/digest.ts'
import { Catalog } from '@varve/images/store/catalog.ts'
import type { LayerInit } from '@varve/images/store/catalog.ts'
import { CATALOG_VERSION } from '@varve/images/store/migrations.ts'

const digest = (text: string) => digestOf(Buffer.from(text))

function layer(name: string, more: Partial<LayerInit> = {}): LayerInit {
  return { name, kind: 'app', content: 'tree', digest: digest(name), entries: 3, contentBytes: 2 ** 40, source: `dir:/srv/${name}`, ...more }
}

describe('catalog', () => {
  let directory: string
  let count = 0
  before(async () => {
    directory = await mkdtemp(join(tmpdir(), 'varve-catalog-'))
  })
  after(() => rm(directory, { recursive: true }))
  const newFile = () => join(directory, `catalog-${count++}.db`)
  const open = (file = newFile()) => Catalog.open(file)

  describe('layers', () => {
    test('versions count from 1, and NAME means the latest', async () => {
      await using catalog = await open()
      const first = await catalog.addLayer(layer('app', { labels: { os: 'debian' } }))
      const second = await catalog.addLayer(layer('app', { digest: digest('second'), content: 'block map' }))
      assert.deepEqual([first.version, second.version], [1, 2])
      assert.deepEqual(await catalog.layer('app'), second)
      assert.deepEqual(await catalog.layer('app@1'), first)
      assert.deepEqual(first.labels, { os: 'debian' })
      assert.equal(Buffer.compare(first.digest, digest('app')), 0)
      assert.equal(first.contentBytes, 2 ** 40)
    })

    test('all are listed by name and version', async () => {
      await using catalog = await open()
      for (const name of ['b', 'a', 'b']) await catalog.addLayer(layer(name))
      assert.deepEqual((await catalog.layers()).map(({ name, version }) => `${name}@${version}`), ['a@1', 'b@1', 'b@2'])
      assert.deepEqual((await catalog.layers('b')).map(({ version }) => version), [1, 2])
    })

    test('the number of a removed version is not used again', async () => {
      await using catalog = await open()
      await catalog.addLayer(layer('app'))
      await catalog.removeLayer('app')
      await assert.rejects(catalog.layer('app'), { code: 'NOT_FOUND' })
      assert.equal((await catalog.addLayer(layer('app'))).version, 2)
    })

    test('what does not exist or is no name is refused', async () => {
      await using catalog = await open()
      await catalog.addLayer(layer('app'))
      for (const reference of ['other', 'app@2']) await assert.rejects(catalog.layer(reference), { code: 'NOT_FOUND' })
      for (const reference of ['', '-app', 'a b', 'app@', 'app@0', 'app@01', 'app@x', 'app@99999999999', '../app', 'a'.repeat(101)]) {
        await assert.rejects(catalog.layer(reference), { code: 'NAME_INVALID' })
      }
      await assert.rejects(catalog.addLayer(layer('app@1')), { code: 'NAME_INVALID' })
    })

    test('a layer that a CVD or a snapshot stands on cannot be removed', async () => {
      await using catalog = await open()
      await catalog.addLayer(layer('base'))
      await catalog.addLayer(layer('app'))
      await catalog.createCvd({ name: 'desk', layers: ['base', 'app'] })
      await assert.rejects(catalog.removeLayer('app'), { code: 'IN_USE', message: /CVD desk/ })
      await catalog.startCvd('desk', { recipe: digest('r'), map: digest('m') })
      await catalog.addSnapshot({ cvd: 'desk', name: 'monday', generation: 1 })
      await catalog.setCvdLayers('desk', ['base'], { discardWrites: true })
      await assert.rejects(catalog.removeLayer('app'), { code: 'IN_USE', message: /snapshot desk@monday/ })
      await catalog.removeSnapshot('desk', 'monday')
      assert.equal((await catalog.removeLayer('app')).name, 'app')
    })
  })

  describe('CVDs', () => {
    test('one is shown as it was at one moment, whatever another process changes meanwhile', async () => {
      const file = newFile()
      await using catalog = await open(file)
      await using other = await open(file)
      for (const name of ['one', 'two']) await catalog.addLayer(layer(name))
      await catalog.createCvd({ name: 'desk', layers: ['one'], policy: { stack: 'one' } })
      let changing = true
      const change = async (): Promise<void> => {
        for (let round = 0; round < 50; round++) {
          const stack = round % 2 === 0 ? 'two' : 'one'
          await other.setCvdLayers('desk', [stack], { policy: { stack } })
        }
        changing = false
      }
      const look = async (): Promise<void> => {
        while (changing) {
          for (const cvd of [await catalog.cvd('desk'), ...(await catalog.cvds())]) assert.equal(cvd.policy.stack, cvd.layers[0].name)
          await new Promise<void>((resolve) => { setImmediate(resolve) })
        }
      }
      await Promise.all([change(), look()])
    })

    test('layers are pinned, bottom first, to the versions of the moment', async () => {
      await using catalog = await open()
      for (const name of ['base', 'app', 'app']) await catalog.addLayer(layer(name))
      const cvd = await catalog.createCvd({ name: 'desk', layers: ['base', 'app@1', 'app'], policy: { owner: { '/etc': 'base' } } })
      await catalog.addLayer(layer('app'))
      assert.deepEqual(await catalog.cvd('desk'), cvd)
      assert.deepEqual(cvd.layers.map(({ name, version }) => `${name}@${version}`), ['base@1', 'app@1', 'app@2'])
      assert.deepEqual(cvd.policy, { owner: { '/etc': 'base' } })
      assert.deepEqual([cvd.recipe, cvd.baseMap, cvd.overlay, cvd.device], [null, null, null, null])
    })

    test('a name stands once; what fails leaves nothing', async () => {
      await using catalog = await open()
      await catalog.addLayer(layer('base'))
      await assert.rejects(catalog.createCvd({ name: 'desk', layers: ['base', 'missing'] }), { code: 'NOT_FOUND' })
      assert.deepEqual(await catalog.cvds(), [])
      await catalog.createCvd({ name: 'desk', layers: ['base'] })
      await assert.rejects(catalog.createCvd({ name: 'desk', layers: [] }), { code: 'ALREADY_EXISTS' })
      await assert.rejects(catalog.cvd('other'), { code: 'NOT_FOUND' })
    })

    test('a start gives a base and an overlay once', async () => {
      await using catalog = await open()
      await catalog.createCvd({ name: 'desk', layers: [] })
      const started = await catalog.startCvd('desk', { recipe: digest('r'), map: digest('m') })
      const again = await catalog.startCvd('desk', { recipe: digest('r2'), map: digest('m2') })
      assert.deepEqual(again, started)
      assert.equal(started.overlay, 1)
      assert.equal(digestToHex(started.baseMap!), digestToHex(digest('m')))
    })

    test('layers under an overlay change only if its writes may be discarded, and the next overlay is a new one', async () => {
      await using catalog = await open()
      for (const name of ['base', 'app']) await catalog.addLayer(layer(name))
      await catalog.createCvd({ name: 'desk', layers: ['base'] })
      await catalog.setCvdLayers('desk', ['base', 'app'])
      const started = await catalog.startCvd('desk', { recipe: digest('r'), map: digest('m') })
      assert.deepEqual(await catalog.setCvdLayers('desk', ['base@1', 'app']), started, 'the same layers change nothing')
      await assert.rejects(catalog.setCvdLayers('desk', ['app']), { code: 'IN_USE' })
      await assert.rejects(catalog.setCvdLayers('desk', ['base', 'app'], { policy: { x: 1 } }), { code: 'IN_USE' })
      assert.deepEqual(await catalog.cvd('desk'), started)
      const changed = await catalog.setCvdLayers('desk', ['app', 'base'], { discardWrites: true })
      assert.deepEqual([changed.recipe, changed.baseMap, changed.overlay], [null, null, null])
      assert.equal((await catalog.startCvd('desk', { recipe: digest('r2'), map: digest('m2') })).overlay, 2)
    })

    test('a CVD with snapshots is removed only with them', async () => {
      await using catalog = await open()
      await catalog.createCvd({ name: 'desk', layers: [] })
      await catalog.startCvd('desk', { recipe: digest('r'), map: digest('m') })
      await catalog.addSnapshot({ cvd: 'desk', name: 's', generation: 1 })
      await assert.rejects(catalog.removeCvd('desk'), { code: 'IN_USE' })
      await catalog.removeCvd('desk', { snapshots: true })
      assert.deepEqual(await catalog.roots(), [])
      assert.equal((await catalog.overlays()).size, 0)
    })
  })

  describe('snapshots', () => {
    test('a snapshot names a frozen generation over the base of that moment', async () => {
      await using catalog = await open()
      await catalog.addLayer(layer('base'))
      await catalog.createCvd({ name: 'desk', layers: ['base'] })
      await assert.rejects(catalog.addSnapshot({ cvd: 'desk', name: 'early', generation: 1 }), RangeError)
      await catalog.startCvd('desk', { recipe: digest('r'), map: digest('m') })
      const snapshot = await catalog.addSnapshot({ cvd: 'desk', name: 'monday', generation: 1 })
      assert.deepEqual([snapshot.overlay, snapshot.generation, snapshot.map, Buffer.from(snapshot.baseMap!)], [1, 1, null, Buffer.from(digest('m'))])
      assert.deepEqual(snapshot.layers.map(({ name }) => name), ['base'])
      assert.deepEqual(await catalog.snapshot('desk', 'monday'), snapshot)
      await assert.rejects(catalog.addSnapshot({ cvd: 'desk', name: 'monday', generation: 2 }), { code: 'ALREADY_EXISTS' })
      await assert.rejects(catalog.addSnapshot({ cvd: 'desk', name: 'a/b', generation: 2 }), { code: 'NAME_INVALID' })
      await assert.rejects(catalog.snapshot('desk', 'tuesday'), { code: 'NOT_FOUND' })
    })

    test('settling moves the CVD and the snapshots of later generations onto the map', async () => {
      await using catalog = await open()
      await catalog.createCvd({ name: 'desk', layers: [] })
      await catalog.startCvd('desk', { recipe: digest('r'), map: digest('m') })
      for (const [index, name] of ['a', 'b', 'c'].entries()) await catalog.addSnapshot({ cvd: 'desk', name, generation: index + 1 })
      await catalog.settle('desk', { overlay: 1, generation: 1, map: digest('map a') })
      await catalog.settle('desk', { overlay: 1, generation: 2, map: digest('map b') })
      const [a, b, c] = await catalog.snapshots('desk')
      assert.deepEqual([digestToHex(a.map!), a.baseMap, a.overlay, a.generation], [digestToHex(digest('map a')), null, null, null])
      assert.deepEqual(digestToHex(b.map!), digestToHex(digest('map b')))
      assert.deepEqual([c.map, digestToHex(c.baseMap!), c.overlay, c.generation], [null, digestToHex(digest('map b')), 1, 3])
      const cvd = await catalog.cvd('desk')
      assert.deepEqual([digestToHex(cvd.baseMap!), cvd.overlay], [digestToHex(digest('map b')), 1])
      await catalog.addSnapshot({ cvd: 'desk', name: 'd', generation: 4 })
      assert.equal(digestToHex((await catalog.snapshot('desk', 'd')).baseMap!), digestToHex(digest('map b')))
      await catalog.removeSnapshot('desk', 'a')
      await assert.rejects(catalog.removeSnapshot('desk', 'a'), { code: 'NOT_FOUND' })
    })

    test('a frozen snapshot survives new layers of its CVD, and keeps its overlay', async () => {
      await using catalog = await open()
      await catalog.addLayer(layer('base'))
      await catalog.createCvd({ name: 'desk', layers: [] })
      await catalog.startCvd('desk', { recipe: digest('r'), map: digest('m') })
      await catalog.addSnapshot({ cvd: 'desk', name: 'a', generation: 1 })
      await catalog.setCvdLayers('desk', ['base'], { discardWrites: true })
      await catalog.startCvd('desk', { recipe: digest('r2'), map: digest('m2') })
      assert.deepEqual([...(await catalog.overlays()).values()], [new Set([1, 2])])
      await catalog.settle('desk', { overlay: 1, generation: 1, map: digest('map a') })
      const cvd = await catalog.cvd('desk')
      assert.deepEqual([digestToHex(cvd.baseMap!), cvd.overlay], [digestToHex(digest('m2')), 2])
      assert.deepEqual([...(await catalog.overlays()).values()], [new Set([2])])
    })
  })

  describe('composed maps and objects', () => {
    test('a composed map is remembered by its recipe; the first stays', async () => {
      await using catalog = await open()
      assert.equal(await catalog.composedMap(digest('r')), undefined)
      await catalog.rememberComposedMap({ recipe: digest('r'), map: digest('m'), layers: [], figures: { files: 7 } })
      await catalog.rememberComposedMap({ recipe: digest('r'), map: digest('other'), layers: [], figures: {} })
      const composed = await catalog.composedMap(digest('r'))
      assert.deepEqual([digestToHex(composed!.map), composed!.figures], [digestToHex(digest('m')), { files: 7 }])
    })

    test('composed maps are forgotten when a layer of theirs is gone, or when they are old', async () => {
      await using catalog = await open()
      for (const name of ['base', 'app']) await catalog.addLayer(layer(name))
      await catalog.rememberComposedMap({ recipe: digest('1'), map: digest('m1'), layers: [digest('base')], figures: {} })
      await catalog.rememberComposedMap({ recipe: digest('2'), map: digest('m2'), layers: [digest('base'), digest('app')], figures: {} })
      assert.equal(await catalog.forgetComposedMaps(), 0)
      await catalog.removeLayer('app')
      assert.equal(await catalog.forgetComposedMaps(), 1)
      assert.equal(await catalog.composedMap(digest('2')), undefined)
      assert.equal(await catalog.forgetComposedMaps({ unusedMs: 60_000 }), 0)
      assert.equal(await catalog.forgetComposedMaps({ unusedMs: 0 }), 1)
    })

    test('an object is kept under its key until it is replaced or forgotten', async () => {
      await using catalog = await open()
      await catalog.setObject('boot kit', 'grub-efi', digest('1'))
      await catalog.setObject('boot kit', 'grub-efi', digest('2'))
      assert.equal(digestToHex((await catalog.object('boot kit', 'grub-efi'))!), digestToHex(digest('2')))
      assert.equal(await catalog.object('boot kit', 'other'), undefined)
      assert.equal(await catalog.forgetObjects(digest('2')), 1)
      assert.equal(await catalog.object('boot kit', 'grub-efi'), undefined)
      assert.equal(await catalog.forgetObjects(digest('2')), 0)
    })

    test('an object is replaced only by who has seen the present one; objects of a kind are listed, and removed one by one', async () => {
      await using catalog = await open()
      assert.equal(await catalog.replaceObject('boot-set', 'layer a', { before: digest('1'), digest: digest('2') }), false)
      assert.equal(await catalog.replaceObject('boot-set', 'layer a', { before: undefined, digest: digest('1') }), true)
      assert.equal(await catalog.replaceObject('boot-set', 'layer a', { before: undefined, digest: digest('2') }), false)
      assert.equal(await catalog.replaceObject('boot-set', 'layer a', { before: digest('1'), digest: digest('2') }), true)
      await catalog.setObject('boot-set', 'cvd b', digest('3'))
      await catalog.setObject('heat', 'fleet', digest('4'))
      assert.deepEqual((await catalog.objects('boot-set')).map(({ key, digest: found }) => [key, digestToHex(found)]), [['cvd b', digestToHex(digest('3'))], ['layer a', digestToHex(digest('2'))]])
      await catalog.removeObject('boot-set', 'layer a')
      assert.deepEqual([(await catalog.objects('boot-set')).length, (await catalog.objects('heat')).length], [1, 1])
    })

    test('what a disk was stacked from is known of CVDs, snapshots and composed disks; its CVD if it is one alone', async () => {
      await using catalog = await open()
      for (const name of ['base', 'app']) await catalog.addLayer(layer(name))
      const stackOf = async (map: string) => {
        const stack = await catalog.stackOfMap(digest(map))
        return stack === undefined ? undefined : [stack.cvd?.name, ...stack.layers.map(({ name }) => name)]
      }
      await catalog.rememberComposedMap({ recipe: digest('r'), map: digest('m'), layers: [digest('app'), digest('base')], figures: {} })
      assert.deepEqual(await stackOf('m'), [undefined, 'app', 'base'])
      await catalog.createCvd({ name: 'desk', layers: ['base', 'app'] })
      await catalog.startCvd('desk', { recipe: digest('r'), map: digest('m') })
      assert.deepEqual(await stackOf('m'), ['desk', 'base', 'app'])
      await catalog.createCvd({ name: 'other', layers: ['base', 'app'] })
      await catalog.startCvd('other', { recipe: digest('r'), map: digest('m') })
      assert.deepEqual(await stackOf('m'), [undefined, 'base', 'app'])
      await catalog.addSnapshot({ cvd: 'desk', name: 'a', generation: 1 })
      await catalog.settle('desk', { overlay: 1, generation: 1, map: digest('settled') })
      assert.deepEqual(await stackOf('settled'), ['desk', 'base', 'app'])
      await catalog.setCvdLayers('desk', ['base'], { discardWrites: true })
      assert.deepEqual(await stackOf('settled'), ['desk', 'base', 'app'], 'of the snapshot')
      assert.equal(await stackOf('nobody'), undefined)
    })

    test('roots are what anything stands on, each once, with its type', async () => {
      await using catalog = await open()
      await catalog.addLayer(layer('base'))
      await catalog.addLayer(layer('again', { digest: digest('base') }))
      await catalog.addLayer(layer('disk', { content: 'block map' }))
      await catalog.setObject('boot kit', 'grub', digest('kit'))
      await catalog.rememberComposedMap({ recipe: digest('r'), map: digest('m'), layers: [], figures: {} })
      await catalog.createCvd({ name: 'desk', layers: ['base'] })
      await catalog.startCvd('desk', { recipe: digest('r'), map: digest('m') })
      await catalog.addSnapshot({ cvd: 'desk', name: 'a', generation: 1 })
      await catalog.addSnapshot({ cvd: 'desk', name: 'b', generation: 2 })
      await catalog.settle('desk', { overlay: 1, generation: 1, map: digest('settled') })
      const roots = (await catalog.roots()).map((root) => `${root.type} ${digestToHex(root.digest)}`).sort()
      const expected = ['tree base', 'block map disk', 'block map m', 'block map settled', 'object kit'].map((text) => {
        const [, type, name] = /^(.*) (\w+)$/.exec(text)!
        return `${type} ${digestToHex(digest(name))}`
      })
      assert.deepEqual(roots, expected.sort())
    })
  })

  describe('the file', () => {
    test('what was added is there after opening it again', async () => {
      const file = newFile()
      let added
      {
        await using catalog = await open(file)
        added = await catalog.addLayer(layer('base'))
      }
      await using catalog = await open(file)
      assert.deepEqual(await catalog.layers(), [added])
      assert.deepEqual(catalog.damage(), [])
    })

    test('two catalogs in one process wait for each other', async () => {
      const file = newFile()
      await using first = await open(file)
      await using second = await open(file)
      const added = await Promise.all(Array.from({ length: 40 }, (_, index) => (index % 2 === 0 ? first : second).addLayer(layer('app'))))
      assert.deepEqual(added.map(({ version }) => version).sort((a, b) => a - b), Array.from({ length: 40 }, (_, index) => index + 1))
    })

    test('a newer version is refused, and stays as it is', async () => {
      const file = newFile()
      await (await open(file))[Symbol.asyncDispose]()
      const database = new Database(file)
      database.pragma(`user_version = ${CATALOG_VERSION + 1}`)
      await assert.rejects(open(file), { code: 'HOME_INVALID', message: /newer/ })
      assert.equal(database.pragma('user_version', { simple: true }), CATALOG_VERSION + 1)
      database.close()
    })

    test('a file that is no database is refused', async () => {
      const file = newFile()
      const { writeFile } = await import('node:fs/promises')
      await writeFile(file, 'this is not a database, and longer than a header of one would have to be, so that it is read as one'.repeat(10))
      await assert.rejects(open(file), { code: 'HOME_INVALID' })
    })

    test('rows that refer to nothing are reported as damage', async () => {
      const file = newFile()
      await (await open(file))[Symbol.asyncDispose]()
      const database = new Database(file)
      database.pragma('foreign_keys = OFF')
      database.exec("insert into cvd_layers values ('no cvd', 0, 'no layer', 1)")
      database.close()
      await using catalog = await open(file)
      assert.match(catalog.damage().join(), /cvd_layers/)
    })
  })
})
