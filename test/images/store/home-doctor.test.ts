import assert from 'node:assert/strict'
import { chmodSync, existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'
import Database from 'better-sqlite3'
import { digestOf } from '@varve/images/chunk/digest.ts'
import { doctor } from '@varve/images/store/doctor.ts'
import { Home } from '@varve/images/store/home.ts'

describe('doctor', () => {
  const directory = mkdtempSync(join(tmpdir(), 'varve-doctor-'))
  after(() => rmSync(directory, { recursive: true }))
  let count = 0

  /** A home with a pack, a CVD and its overlay directory; closed. */
  async function filledHome(): Promise<string> {
    const path = join(directory, `home-${count++}`)
    await using home = await Home.open(path)
    await using writer = home.store.writer()
    writer.put(Buffer.from('content'))
    await writer.commit()
    await home.catalog.createCvd({ name: 'desk', layers: [] })
    const { id } = await home.catalog.startCvd('desk', { recipe: digestOf(Buffer.of(1)), map: digestOf(Buffer.of(2)) })
    mkdirSync(home.overlayDirectory(id, 1), { recursive: true })
    return path
  }

  async function problems(path: string): Promise<string[]> {
    return (await doctor(path)).filter(({ state }) => state !== 'ok').map(({ what, state, advice }) => `${state} ${what.split(':')[0]}${advice === '' ? ' without advice' : ''}`)
  }

  /** Free space is the machine's affair, not the test's. */
  const besidesDisk = async (path: string) => (await problems(path)).filter((problem) => !problem.endsWith('disk'))

  test('a sound home has no findings but good ones', async () => {
    assert.deepEqual(await besidesDisk(await filledHome()), [])
  })

  test('looking changes nothing: a home that is not there is not made', async () => {
    const path = join(directory, 'nothing')
    assert.deepEqual(await problems(path), ['warning home'])
    assert.equal(existsSync(path), false)
  })

  test('a directory of something else is told', async () => {
    const path = join(directory, 'other')
    mkdirSync(path)
    writeFileSync(join(path, 'file'), '')
    assert.deepEqual(await problems(path), ['damage home'])
  })

  test('a home that others can enter is told', async () => {
    const path = await filledHome()
    chmodSync(path, 0o755)
    assert.deepEqual(await besidesDisk(path), ['warning home'])
  })

  test('a catalog that is missing, or damaged, is told', async () => {
    const path = await filledHome()
    const file = join(path, 'catalog.db')
    const database = new Database(file)
    database.pragma('foreign_keys = OFF')
    database.exec("insert into cvd_layers values ('no cvd', 0, 'no layer', 1)")
    database.close()
    assert.deepEqual(new Set(await besidesDisk(path)), new Set(['damage catalog']))
    writeFileSync(file, Buffer.alloc(8192, 0x55))
    assert.deepEqual(await besidesDisk(path), ['damage catalog'])
    rmSync(file)
    assert.deepEqual(await besidesDisk(path), ['damage catalog'])
    assert.equal(existsSync(file), false)
  })

  test('a missing index is told, with the command that makes it again', async () => {
    const path = await filledHome()
    for (const suffix of ['', '-wal', '-shm']) rmSync(join(path, 'packs', `index.db${suffix}`), { force: true })
    const found = (await doctor(path)).filter(({ what }) => what.startsWith('packs'))
    assert.equal(found.length, 1)
    assert.equal(found[0].state, 'damage')
    assert.match(found[0].advice, /varve verify --repair/)
  })

  test('overlays that nothing needs are told', async () => {
    const path = await filledHome()
    mkdirSync(join(path, 'overlays', 'left-over', '1'), { recursive: true })
    const findings = (await doctor(path)).filter(({ what }) => what.startsWith('overlays'))
    assert.deepEqual(findings.map(({ state }) => state), ['warning'])
    assert.match(findings[0].what, /left-over$/)
  })
})
