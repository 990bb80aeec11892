/** Lists of what has changed on a disk: our text, and the JSON of qemu-img and nbdinfo. Debian packages: qemu-utils, libnbd-bin. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import test, { describe } from 'node:test'
import { isVarveError } from '@varve/images/errors.ts'
import { parseChangedList } from '@varve/images/formats/changed-list.ts'
import { Random, testSeed } from '../../random.ts'
import { ScratchDirectory } from '../../varve-command.ts'

const seed = testSeed()
const parsed = (text: string): number[] => [...parseChangedList(Buffer.from(text))]

describe('changed lists', () => {
  test('lines of offset and length, in any order, with comments', () => {
    assert.deepEqual(parsed('# from the backup of Monday\n4096 512\n\n0 10 # head\r\n10 6\n'), [0, 16, 4096, 4608])
    assert.deepEqual(parsed(''), [])
  })

  test('of a dirty bitmap as nbdinfo prints it, what is dirty', () => {
    assert.deepEqual(parsed('[{"offset":0,"length":65536,"type":0,"description":"clean"},{"offset":65536,"length":10,"type":1,"description":"dirty"}]'), [65536, 65546])
  })

  test('of a chain as qemu-img map prints it, what the topmost image has', () => {
    using scratch = new ScratchDirectory('changed')
    const [base, top] = [scratch.join('base.qcow2'), scratch.join('top.qcow2')]
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', base, '1M'])
    execFileSync('qemu-io', ['-c', 'write 0 512k', base], { stdio: 'ignore' })
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', base, '-F', 'qcow2', top])
    execFileSync('qemu-io', ['-c', 'write 128k 64k', '-c', 'write -z 256k 64k', top], { stdio: 'ignore' })
    assert.deepEqual(parsed(execFileSync('qemu-img', ['map', '--output=json', top], { encoding: 'utf8' })), [128 << 10, 192 << 10, 256 << 10, 320 << 10])
  })

  test('a map of what is allocated is refused', () => {
    assert.throws(() => parsed('[{"offset":0,"length":65536,"type":3,"description":"hole,zero"}]'), { code: 'FORMAT_INVALID' })
  })

  test('what is no range is refused', () => {
    for (const text of ['1', '1 2 3', '-1 5', '1e3 5', 'x y', '[1]', '[{"offset":-1,"length":5}]', '[{"offset":1}]', '[{"offset":9007199254740991,"length":2}]', '[{]']) {
      assert.throws(() => parsed(text), { code: 'FORMAT_INVALID' }, text)
    }
  })

  test(`whatever is there, it is a list or a clear error (seed ${seed})`, () => {
    const random = new Random(seed)
    const pieces = ['[', ']', '{', '}', '"offset":', '"length":', '"depth":0', '"type":1', '"start":', ',', '\n', ' ', '0', '512', '1e99', '-', 'null', '#', '"present":false']
    for (let round = 0; round < 3000; round++) {
      const text = random.chance(0.3) ? random.bytes(random.below(60)).toString('latin1') : Array.from({ length: random.below(20) }, () => random.pick(pieces)).join('')
      try {
        parsed(text)
      } catch (error) {
        assert.ok(isVarveError(error, 'FORMAT_INVALID'), `${JSON.stringify(text)}: ${String(error)}`)
      }
    }
  })
})
