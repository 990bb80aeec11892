import assert from 'node:assert/strict'
import { test } from 'node:test'
import { printPath } from '@varve/composer/merge/print-path.ts'
import { Random, testSeed } from '../../random.ts'

const bytes = (text: string) => Buffer.from(text, 'utf8').toString('latin1')

test('a path is printed as UTF-8 where it is UTF-8, every other byte escaped', () => {
  assert.equal(printPath('etc/passwd'), 'etc/passwd')
  assert.equal(printPath(bytes('home/zoë/日本/😀')), 'home/zoë/日本/😀')
  assert.equal(printPath('a\xffb\xc3/\xed\xa0\x80'), 'a\\xffb\\xc3/\\xed\\xa0\\x80')
  assert.equal(printPath('tab\there\\x41\n'), 'tab\\x09here\\\\x41\\x0a')
  assert.equal(printPath(bytes('\u202eevil')), '\\xe2\\x80\\xaeevil')
  assert.equal(printPath('cut \xe2\x82'), 'cut \\xe2\\x82')
})

test('a printed path can be read back to the same bytes', () => {
  const seed = testSeed()
  const random = new Random(seed)
  for (let round = 0; round < 5000; round++) {
    const path = random.chance(0.5) ? random.bytes(random.below(12)).toString('latin1') : bytes(String.fromCodePoint(...Array.from({ length: 4 }, () => random.pick([65, 92, 0xe9, 0x20ac, 0x1f600, 120]))))
    const read = Buffer.from(printPath(path).replace(/\\(?:\\|x([0-9a-f]{2}))/g, (_, hex: string | undefined) => (hex === undefined ? '\\\\' : `\\${hex}`)), 'utf8').toString('latin1')
    const back = read.replace(/\\(\\|[0-9a-f]{2})/g, (_, hex: string) => (hex === '\\' ? '\\' : String.fromCharCode(parseInt(hex, 16))))
    assert.equal(back, path, `seed ${seed}, round ${round}`)
  }
})
