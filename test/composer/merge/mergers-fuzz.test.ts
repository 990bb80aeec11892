/** Mergers on bytes of any kind: they answer with bytes or a VarveError, the same each time, and no larger than what they were given. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { isVarveError } from '@varve/images/errors.ts'
import { MERGERS } from '@varve/composer/merge/mergers/mergers.ts'
import { MERGE_LINES_MAX } from '@varve/composer/merge/mergers/merger.ts'
import type { Merger, MergerContext, MergerInput } from '@varve/composer/merge/mergers/merger.ts'
import { Random, testSeed } from '../../random.ts'

const SEEDS: Record<string, string[]> = {
  passwd: ['root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1::/:/bin/sh\n+::::::\n', 'a:x:1000:1000:,,,:/home/a:/bin/zsh\nb:x:1:5::/:\n#c\n'],
  group: ['root:x:0:\nsudo:x:27:a,b,c\n', 'sudo:x:28:d\nusers:x:27:\n+\n'],
  shadow: ['root:*:19000:0:99999:7:::\n', 'root:$y$j9T$x$y:19001:0:99999:7:::\na:!:1::::::\n'],
  gshadow: ['root:*::\nsudo:!:root:a,b\n', 'sudo:*:a:c\n'],
  subid: ['a:100000:65536\nb:165536:65536\n', 'c:100000:65536\na:5:5\na:4294967295:4294967295\n'],
  'dpkg-status': [
    'Package: dpkg\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n\nPackage: a\nStatus: install ok installed\nArchitecture: all\nVersion: 1\nDescription: x\n y\n\n',
    'Package: a\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 2\n\nPackage: b\nStatus: install ok unpacked\nVersion: 1\n\n',
  ],
}

function mutated(random: Random, text: string): Buffer {
  let bytes = Buffer.from(text.repeat(random.between(1, 3)), 'latin1')
  for (let change = random.below(8); change > 0; change--) {
    const at = random.below(bytes.length + 1)
    const cut = random.chance(0.3) ? random.below(bytes.length - at + 1) : 0
    const piece = random.pick([random.bytes(random.below(9)), Buffer.from(random.pick(['\n', '\n\n', ':', '::', ',', '+', '-', '0', '4294967296', '\0', '\r', 'Package: ', 'Version: '])), bytes.subarray(0, random.below(40))])
    bytes = Buffer.concat([bytes.subarray(0, at), piece, bytes.subarray(at + cut)])
  }
  return random.chance(0.05) ? random.bytes(random.below(300)) : bytes
}

function contextFrom(random: Random): MergerContext {
  const answers = new Map<string, number>()
  const remembered = (key: string, answer: () => number) => {
    if (!answers.has(key)) answers.set(key, answer())
    return answers.get(key)!
  }
  return {
    decided: (subject, layers) => remembered(`decided ${subject} ${layers.join()}`, () => (random.chance(0.5) ? random.pick(layers) : -1)),
    layerName: (layer) => `layer@${layer}`,
    provider: (path, name) => remembered(`${path}/${name}`, () => random.between(-2, 4)),
  }
}

for (const merger of MERGERS) {
  test(`${merger.name}: any bytes give bytes`, () => {
    const seed = testSeed()
    const random = new Random(seed)
    for (let round = 0; round < 3000; round++) {
      const inputs: MergerInput[] = Array.from({ length: random.between(2, 5) }, (_, layer) => ({ layer, bytes: mutated(random, random.pick(SEEDS[merger.name])) }))
      const context = contextFrom(random)
      const given = inputs.reduce((sum, { bytes }) => sum + bytes.length, 0)
      const first = merger.merge(inputs, context)
      const second = merger.merge(inputs, context)
      const at = `seed ${seed}, round ${round}`
      assert.deepEqual(second, first, at)
      assert.ok(first.bytes.length <= 2 * given + 2, at)
      assert.equal(new Set(first.conflicts.map(({ subject }) => subject)).size, first.conflicts.length, `${at}: a key stands for one conflict`)
      for (const { layers } of first.conflicts) assert.deepEqual(layers, [...new Set(layers)].sort((a, b) => a - b), at)
    }
  })
}

const byName = (name: string): Merger => MERGERS.find((merger) => merger.name === name)!
const UNDECIDED: MergerContext = { decided: () => -1, layerName: String, provider: () => 0 }

test('files made to be expensive are joined or refused', () => {
  const two = (low: string, high: string): MergerInput[] => [
    { layer: 0, bytes: Buffer.from(low) },
    { layer: 1, bytes: Buffer.from(high) },
  ]
  const many = (count: number, line: (index: number) => string) => Array.from({ length: count }, (_, index) => line(index)).join('')
  const refused = (error: unknown) => isVarveError(error, 'LIMIT_EXCEEDED')
  assert.throws(() => byName('passwd').merge(two('\n'.repeat(MERGE_LINES_MAX), '\n'), UNDECIDED), refused)
  assert.throws(() => byName('group').merge(two(`g:x:1:${many(MERGE_LINES_MAX, (index) => `${index},`)}\n`, 'g:x:1:a\n'), UNDECIDED), refused)
  assert.throws(() => byName('dpkg-status').merge(two('a\n\n'.repeat(MERGE_LINES_MAX), 'a\n\nb\n\n'), UNDECIDED), refused)
  // one uid for all; one name with all ranges, each under those of another name
  const users = byName('passwd').merge(two(many(20_000, (index) => `a${index}:x:0:0::/:\n`), many(20_000, (index) => `b${index}:x:0:0::/:\n`)), UNDECIDED)
  assert.equal(users.conflicts.length, 1)
  assert.ok(users.conflicts[0].detail.length < 1000)
  const decide: MergerContext = { ...UNDECIDED, decided: (subject) => (subject === 'b1+a' || subject === 'a+b1' ? 1 : -1) }
  const ranges = byName('subid').merge(two(many(20_000, (index) => `a:${index * 10}:10\n`), many(20_000, (index) => `b${index}:${index * 10}:10\n`)), decide)
  assert.equal(ranges.conflicts.length, 20_000)
  byName('passwd').merge(two(':'.repeat(1 << 22), 'a'.repeat(1 << 22)), UNDECIDED)
})
