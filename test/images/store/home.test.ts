import assert from 'node:assert/strict'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { homedir, tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'
import { digestOf } from '@varve/images/chunk/digest.ts'
import { defaultHomeDirectory, Home, HOME_VERSION, homeVersion } from '@varve/images/store/home.ts'

describe('home', () => {
  const directory = mkdtempSync(join(tmpdir(), 'varve-home-'))
  after(() => rmSync(directory, { recursive: true }))
  let count = 0
  const newPath = () => join(directory, `home-${count++}`, 'below')

  test('is made where there is nothing, for its owner only, and opens again', async () => {
    const path = newPath()
    const content = Buffer.from('kept')
    {
      await using home = await Home.open(path)
      assert.equal(home.directory, path)
      await using writer = home.store.writer()
      writer.put(content)
      await writer.commit()
    }
    assert.equal(statSync(path).mode & 0o777, 0o700)
    assert.equal(readFileSync(join(path, 'varve-home'), 'utf8'), `varve-home ${HOME_VERSION}\n`)
    assert.equal(homeVersion(path), HOME_VERSION)
    await using home = await Home.open(path, { create: false })
    assert.deepEqual(Buffer.from(home.store.get(digestOf(content))), content)
    assert.deepEqual(await home.catalog.layers(), [])
  })

  test('is not made with create: false', async () => {
    const path = newPath()
    await assert.rejects(Home.open(path, { create: false }), { code: 'HOME_INVALID' })
    assert.equal(existsSync(path), false)
  })

  test('a directory of something else is refused and left alone', async () => {
    const path = newPath()
    mkdirSync(path, { recursive: true })
    writeFileSync(join(path, 'letter.txt'), 'dear')
    await assert.rejects(Home.open(path), { code: 'HOME_INVALID', message: /not empty/ })
    assert.deepEqual(readdirSync(path), ['letter.txt'])
  })

  test('a file, and a version file that says nothing, are refused', async () => {
    const path = newPath()
    mkdirSync(join(path, '..'), { recursive: true })
    writeFileSync(path, '')
    await assert.rejects(Home.open(path), { code: 'HOME_INVALID' })
    const other = newPath()
    mkdirSync(other, { recursive: true })
    for (const text of ['', 'varve-home\n', 'varve-home 0\n', 'varve-home 1', 'varve-home 1\nmore', '\xff'.repeat(100)]) {
      writeFileSync(join(other, 'varve-home'), text, 'latin1')
      await assert.rejects(Home.open(other), { code: 'HOME_INVALID' })
    }
  })

  test('a newer version is refused', async () => {
    const path = newPath()
    mkdirSync(path, { recursive: true })
    writeFileSync(join(path, 'varve-home'), `varve-home ${HOME_VERSION + 1}\n`)
    await assert.rejects(Home.open(path), { code: 'HOME_INVALID', message: /newer/ })
    assert.deepEqual(readdirSync(path), ['varve-home'])
  })

  test('what an interrupted creation left does not stand in the way', async () => {
    const path = newPath()
    mkdirSync(path, { recursive: true })
    writeFileSync(join(path, 'varve-home.0123456789ab'), 'varve')
    await using first = await Home.open(path)
    assert.ok(existsSync(join(path, 'varve-home')))
    const bare = newPath()
    mkdirSync(bare, { recursive: true })
    writeFileSync(join(bare, 'varve-home'), `varve-home ${HOME_VERSION}\n`)
    await using second = await Home.open(bare)
    assert.ok(existsSync(second.cacheDirectory) && existsSync(second.runDirectory) && existsSync(first.cacheDirectory))
  })

  test('opened twice at once, also while it is made', async () => {
    const path = newPath()
    const homes = await Promise.all([Home.open(path), Home.open(path), Home.open(path)])
    assert.deepEqual(await Promise.all(homes.map((home) => home.catalog.layers())), [[], [], []])
    for (const home of homes) await home[Symbol.asyncDispose]()
  })

  test('a home whose catalog is lost is refused, and not given an empty one', async () => {
    const path = newPath()
    {
      await using home = await Home.open(path)
      await using writer = home.store.writer()
      writer.put(Buffer.from('content'))
      await writer.commit()
    }
    for (const suffix of ['', '-wal', '-shm']) rmSync(join(path, `catalog.db${suffix}`), { force: true })
    await assert.rejects(Home.open(path), { code: 'HOME_INVALID', message: /catalog.db is missing/ })
    assert.equal(existsSync(join(path, 'catalog.db')), false)
  })

  test('a place where the kernel allows no directory is refused', async () => {
    await assert.rejects(Home.open('/proc/varve-home'), { code: 'HOME_INVALID' })
  })

  test('an overlay has a directory by CVD and number', async () => {
    await using home = await Home.open(newPath())
    assert.equal(home.overlayDirectory('id', 3), join(home.directory, 'overlays', 'id', '3'))
  })

  test('is at $VARVE_HOME if that is set, otherwise among the data of the user', () => {
    assert.equal(defaultHomeDirectory({ VARVE_HOME: '/srv/varve' }), '/srv/varve')
    for (const environment of [{}, { VARVE_HOME: '' }]) assert.equal(defaultHomeDirectory(environment), join(homedir(), '.local/share/varve'))
  })
})
