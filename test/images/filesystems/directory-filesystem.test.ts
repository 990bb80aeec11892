/** A directory of this machine as a Filesystem: what the kernel shows of it. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { DirectoryFilesystem } from '@varve/images/filesystems/directory-filesystem.ts'
import { Random, testSeed } from '../../random.ts'
import { filesystemConformance } from './conformance.ts'
import { modelOf } from './model.ts'

const directory = fs.mkdtempSync(join(tmpdir(), 'varve-directory-'))
after(() => fs.rmSync(directory, { recursive: true }))
const at = (name: string): string => join(directory, name)

fs.mkdirSync(at('some'))
fs.writeFileSync(at('some/file'), new Random(testSeed()).bytes(300_000))
fs.linkSync(at('some/file'), at('some/again'))
fs.writeFileSync(at('empty'), '')
fs.writeFileSync(Buffer.from(`${directory}/\xe9`, 'latin1'), 'a name that is not UTF-8')
fs.symlinkSync('some/nothing', at('link'))
fs.writeFileSync(at('holes'), 'start')
fs.truncateSync(at('holes'), 10 << 20)
fs.chmodSync(at('holes'), 0o4711)
execFileSync('mkfifo', [at('fifo')])

filesystemConformance('directory', async () => ({
  filesystem: new DirectoryFilesystem(directory),
  model: modelOf(directory, { data: true }),
  [Symbol.asyncDispose]: async () => {},
}))

test('a name is looked up without a look at its neighbours', () => {
  const files = new DirectoryFilesystem(directory)
  const id = files.child(files.root, 'empty')
  // Ids are given in order: nothing else has one.
  assert.equal(id, files.root + 1)
  assert.equal(files.child(files.root, 'no such name'), undefined)
  assert.throws(() => files.node(id + 1), RangeError)
})
