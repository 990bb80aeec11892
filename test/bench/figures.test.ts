/**
 * Figures of benchmarks: medians, ratios and goals, and how they are printed.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { figure, machine, printResult } from '../../bench/figures.ts'

const peers = { slow: [10, 12, 11], middle: [20], fast: [40] }

test('ratios are above 1 where we are better, and goals are for the peers that they name', () => {
  const rate = figure({ name: 'rate', unit: 'MB/s', ours: [30, 22, 21], peers, moreIsBetter: true, ratioMinTo: { slow: 2, middle: 1.1, absent: 100 } })
  assert.deepEqual(rate.ours, { median: 22, min: 21, max: 30 })
  assert.deepEqual(rate.ratios, { slow: 2, middle: 1.1, fast: 0.55 })
  assert.equal(rate.ratio, 0.55)
  assert.equal(rate.goal, '2 x slow, 1.1 x middle')
  assert.equal(rate.met, true)
  assert.equal(figure({ name: 'rate', unit: 'MB/s', ours: [22], peers, moreIsBetter: true, ratioMinTo: { slow: 2, fast: 0.56 } }).met, false)
  const time = figure({ name: 'time', unit: 's', ours: [22], peers, moreIsBetter: false })
  assert.deepEqual(time.ratios, { slow: 0.5, middle: 20 / 22, fast: 40 / 22 })
  assert.equal(time.ratio, 0.5)
  assert.equal(time.met, null)
})

test('figures with many peers are one table, with a column for each', () => {
  const figures = [
    figure({ name: 'rate', unit: 'MB/s', ours: [22], peers, moreIsBetter: true, ratioMinTo: { slow: 3 } }),
    figure({ name: 'alone', unit: 's', ours: [1.5], moreIsBetter: false, oursMax: 2 }),
    figure({ name: 'other rate', unit: 'MB/s', ours: [44], peers, moreIsBetter: true }),
  ]
  const lines = printResult({ bench: 'some', machine: machine(), versions: {}, seed: 7, figures, notes: ['a note'] }).split('\n')
  const head = lines.findIndex((line) => line.includes('fast'))
  assert.deepEqual(lines.slice(head, head + 3).map((line) => line.split(/ {2,}/).filter((cell) => cell !== '')), [
    ['unit', 'ours', 'fast', 'middle', 'slow', 'goal'],
    ['MISSED', 'rate', 'MB/s', '22.00', '40.00 (0.55x)', '20.00 (1.10x)', '11.00 (2.00x)', '3 x slow'],
    ['other rate', 'MB/s', '44.00', '40.00 (1.10x)', '20.00 (2.20x)', '11.00 (4.00x)'],
  ])
  assert.ok(lines.includes('met    alone: 1.50 s; goal <= 2 s'))
  assert.equal(lines.at(-1), '- a note')
})
