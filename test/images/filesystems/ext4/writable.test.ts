import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { appendFileSync, chmodSync, linkSync, lstatSync, mkdirSync, readFileSync, renameSync, rmSync, rmdirSync, symlinkSync, truncateSync, unlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { Random, testSeed } from '../../../random.ts'
import { compareTree } from '../compare-tree.ts'
import { tortureTree } from '../torture-tree.ts'
import { Ext4Image } from './ext4-image.ts'

const SMALL = { crowd: 20_000, subdirectories: 2000, entries: 30_000, holes: 3000, sparseBytes: 2 ** 30 }

test('a guest can write to everything that was laid out, and what it leaves alone stays', () => {
  const seed = testSeed()
  const random = new Random(seed)
  const built = tortureTree(seed, SMALL)
  try {
    using image = new Ext4Image(built, { sizeBytes: 2 ** 30 })
    const root = image.mount('rw')
    const crowd = join(root, 'crowd')
    const names = built.tree.names.slice(built.tree.firstChild[built.tree.find('crowd')]).slice(0, SMALL.crowd)

    // A large index: names go, come, and are renamed, until blocks of it have been split.
    for (const name of names.slice(0, 3000)) unlinkSync(join(crowd, name))
    for (let index = 0; index < 8000; index++) writeFileSync(join(crowd, `new ${index} ${'y'.repeat(index % 50)}`), `${index}`)
    for (const name of names.slice(3000, 4000)) renameSync(join(crowd, name), join(crowd, `renamed ${name}`))
    for (let index = 0; index < 8000; index += 7) assert.equal(readFileSync(join(crowd, `new ${index} ${'y'.repeat(index % 50)}`), 'utf8'), `${index}`)
    for (const name of names.slice(4000)) lstatSync(join(crowd, name))

    // Files: deep extent trees grow and shrink, holes are filled.
    const holes = join(root, 'files', 'holes')
    execFileSync('dd', ['if=/dev/urandom', `of=${holes}`, 'bs=4096', 'count=600', 'seek=500', 'conv=notrunc', 'status=none'])
    truncateSync(join(root, 'files', 'holes that are not whole blocks'), 12_345)
    truncateSync(join(root, 'files', 'sparse'), 100)
    appendFileSync(join(root, 'files', 'of 4095'), random.bytes(100_000))
    unlinkSync(join(root, 'files', 'many pieces'))
    execFileSync('fallocate', ['-l', '64M', join(root, 'files', 'only a hole')])
    appendFileSync(join(root, 'links', 'first'), 'more')

    // Shared and large attributes, ACLs, symlinks, link counts.
    execFileSync('setfattr', ['-n', 'user.shared', '-v', 'no more', join(root, 'xattrs', 'shared 1')])
    execFileSync('setfattr', ['-x', 'user.shared', join(root, 'xattrs', 'shared 2')])
    execFileSync('setfattr', ['-x', 'user.v', join(root, 'xattrs', 'value of 65536')])
    execFileSync('setfattr', ['-n', 'user.large.1', '-v', 'small', join(root, 'xattrs', 'many large')])
    execFileSync('setfacl', ['-m', 'u:12345:r', join(root, 'xattrs', 'acl 1')])
    unlinkSync(join(root, 'symlinks', 'target-4095'))
    symlinkSync('s'.repeat(4000), join(root, 'symlinks', 'new'))
    linkSync(join(root, 'links', 'first'), join(root, 'links', 'yet another'))
    chmodSync(join(root, 'special', 'fifo'), 0o644)
    for (let index = 0; index < 500; index++) rmdirSync(join(root, 'crowd of directories', `directory-${index}`))
    mkdirSync(join(root, 'crowd of directories', 'new'))
    rmSync(join(root, 'ordinary'), { recursive: true })

    image.unmount()
    // The kernel itself leaves trees of extents that e2fsck would pack tighter.
    image.check(/extent tree \(at level \d\) could be (narrower|shorter)/)
    image.mount('ro')
    const changed = /"(crowd|files|links|symlinks|special|xattrs|ordinary)|"crowd of directories/
    assert.deepEqual(compareTree(root, built, { extraNames: ['lost+found'] }).filter((difference) => !changed.test(difference) && !difference.startsWith('""')), [])
  } catch (error) {
    throw new Error(`VARVE_TEST_SEED=${seed}: ${(error as Error).message}`, { cause: error })
  }
})
