import assert from 'node:assert/strict'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { describe, test } from 'node:test'
import { Column, ScratchColumn } from '@varve/images/tree/column.ts'
import { KeyTable } from '@varve/images/tree/key-table.ts'
import { Workspace } from '@varve/images/tree/workspace.ts'
import { Random, testSeed } from '../../random.ts'

const seed = testSeed()
/** More than a block of a scratch column. */
const ROWS = 200_000

/** Runs `work` with memory alone, and with a scratch file, which must not be seen in its directory. */
async function inBoth(work: (space: Workspace) => void): Promise<void> {
  const directory = mkdtempSync(path.join(tmpdir(), 'varve-columns-'))
  try {
    for (const space of [new Workspace(), new Workspace({ directory })]) {
      using used = space
      work(used)
      assert.deepEqual(readdirSync(directory), [])
    }
  } catch (cause) {
    throw new Error(`VARVE_TEST_SEED=${seed}`, { cause })
  } finally {
    rmSync(directory, { recursive: true })
  }
}

/** Rows of pieces, each of which is valid until the next one. */
function rowsOf(pieces: Iterable<Uint32Array>): number[] {
  const rows: number[] = []
  for (const piece of pieces) for (const row of piece) rows.push(row)
  return rows
}

describe('columns', () => {
  test('a scratch column holds what an array holds, through any pushes, changes and truncations', () =>
    inBoth((space) => {
      const random = new Random(seed)
      const column = new ScratchColumn(space, new Uint32Array())
      let model: number[] = []
      while (model.length < ROWS) {
        const rows = Uint32Array.from({ length: random.below(3000) }, () => random.uint32())
        if (random.chance(0.5)) column.append(rows)
        else for (const row of rows) column.push(row)
        for (const row of rows) model.push(row)
        for (let change = random.below(20); change > 0 && model.length > 0; change--) {
          const row = random.below(model.length)
          model[row] = random.uint32()
          column.set(row, model[row])
          const read = random.below(model.length)
          assert.equal(column.get(read), model[read])
        }
        if (random.chance(0.02)) {
          // Back over the start of a block now and then, but less than is added.
          model = model.slice(0, Math.max(0, model.length - random.below(70_000)))
          column.truncate(model.length)
        }
      }
      assert.equal(column.length, model.length)
      assert.deepEqual(rowsOf(column.pieces()), model)
      for (let round = 0; round < 200; round++) {
        const target = new Uint32Array(random.below(1000))
        const row = random.below(model.length - target.length)
        column.read(row, target)
        assert.deepEqual([...target], model.slice(row, row + target.length))
      }
      const order = Uint32Array.from({ length: 50_000 }, () => random.below(Math.floor(model.length / 8)))
      assert.deepEqual(rowsOf(column.gathered([order.subarray(0, 7), order.subarray(7)], 8)), [...order].flatMap((item) => model.slice(item * 8, item * 8 + 8)))
    }))

  test('a column keeps its rows while it grows, and gives back what it took', () => {
    const space = new Workspace({ bytesMax: 8 << 20 })
    const column = new Column(space, new Float64Array())
    for (let row = 0; row < ROWS; row++) column.push(row / 2)
    for (let row = 0; row < ROWS; row++) if (column.values[row] !== row / 2) assert.fail(`row ${row}`)
    assert.ok(space.bytes >= ROWS * 8 && space.bytes < ROWS * 8 * 1.5)
    assert.throws(() => { for (;;) column.push(1) }, { code: 'LIMIT_EXCEEDED' })
    column.clear()
    assert.equal(space.bytes, 0)
  })

  test('a key has one number, also after later ones were forgotten', () =>
    inBoth((space) => {
      const random = new Random(seed)
      const table = new KeyTable(space, 4)
      const model = new Map<string, number>()
      while (model.size < ROWS / 8) {
        // Of few different words, so that keys come again.
        const key = Uint32Array.from({ length: 4 }, () => random.below(16))
        const name = key.join()
        assert.equal(table.find(key), model.get(name) ?? -1)
        if (!model.has(name)) model.set(name, model.size)
        assert.equal(table.add(key), model.get(name))
        if (!random.chance(0.001)) continue
        const kept = Math.max(0, model.size - random.below(500))
        for (const [forgotten, number] of model) if (number >= kept) model.delete(forgotten)
        table.truncate(kept)
      }
      assert.equal(table.count, model.size)
    }))
})
