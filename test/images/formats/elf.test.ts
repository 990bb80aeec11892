import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { readFileSync, realpathSync } from 'node:fs'
import { test } from 'node:test'
import { readElf } from '@varve/images/formats/elf.ts'
import { Random, testSeed } from '../../random.ts'

const reader = (bytes: Uint8Array) => async (offset: number, length: number): Promise<Uint8Array> => bytes.subarray(offset, offset + length)

test('a program needs what readelf says', async () => {
  for (const program of ['/bin/bash', '/usr/bin/qemu-system-x86_64', process.execPath]) {
    const needs = (await readElf(reader(readFileSync(realpathSync(program)))))!
    const said = execFileSync('readelf', ['-dlW', realpathSync(program)], { encoding: 'utf8', maxBuffer: 1 << 26 })
    assert.deepEqual(needs.needed, [...said.matchAll(/\(NEEDED\).*\[(.*)\]/g)].map((match) => match[1]), program)
    assert.equal(needs.interpreter, /interpreter: (.*)\]/.exec(said)?.[1], program)
  }
})

test('a script, and bytes that are no program, need nothing', async () => {
  assert.equal(await readElf(reader(Buffer.from('#!/bin/sh\n'))), undefined)
  assert.equal(await readElf(reader(Buffer.alloc(0))), undefined)
})

test('damaged programs need something or nothing, and read no more than they may', async () => {
  const seed = testSeed()
  const random = new Random(seed)
  const program = readFileSync('/bin/bash')
  const dynamic = program.indexOf('libtinfo')
  for (let round = 0; round < 500; round++) {
    const bytes = Buffer.from(program)
    for (let change = random.between(1, 10); change > 0; change--) bytes[random.chance(0.7) ? random.below(1000) : Math.max(0, dynamic - random.below(5000))] = random.below(256)
    const read = reader(bytes)
    await readElf((offset, length) => {
      assert.ok(length >= 0 && length <= 8 << 20, `seed ${seed}, round ${round}: ${length} bytes`)
      return read(offset, length)
    })
  }
})
