import assert from 'node:assert/strict'
import { test } from 'node:test'
import { parseUnitFile } from '@varve/composer/bootset/unit-file.ts'
import { Random, testSeed } from '../../random.ts'

test('a unit says what it pulls in and starts, in all ways of writing it', () => {
  const unit = parseUnitFile(['[Unit]', 'Description=Wants=none', '# Requires=comment.service', ' Requires = a.service  b.socket ', 'Wants=', 'BindsTo=c@x.mount \\', '  d.target', 'After=e.service', '[Service]', 'ExecStart=-/usr/bin/x -y', 'ExecStartPre=!!"/opt/y z"', 'ExecStop=/bin/stop', 'ExecStart=', 'ExecCondition=@name arg', ''].join('\r\n'))
  assert.deepEqual(unit, { units: ['a.service', 'b.socket', 'c@x.mount', 'd.target'], programs: ['/usr/bin/x', '/opt/y', 'name'] })
})

test('any text is a unit, however long its lines, and what comes of it is bounded', () => {
  const seed = testSeed()
  const random = new Random(seed)
  for (let round = 0; round < 300; round++) parseUnitFile(Array.from({ length: 200 }, () => random.pick(['Wants', 'ExecStart', '=', ' ', '\\\n', '\n', '"', '@', 'a.service', '\0'])).join(''))
  for (const part of [' ', 'Wants=', '\\\n', '@', 'Wants= a', 'ExecStart=-@-', '\nWants=x']) {
    const { units, programs } = parseUnitFile(`Wants=${part.repeat(200_000)}`)
    assert.ok(units.length <= 1024 && programs.length <= 1024, `seed ${seed}`)
  }
})
