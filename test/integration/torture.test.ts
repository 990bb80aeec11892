/**
 * The torture tree, the whole way: a directory with everything that a tree can hold, in the numbers that break things, is imported,
 * composed, served, checked by e2fsck, mounted by the kernel, and compared entry by entry with the source.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import test from 'node:test'
import { TORTURE, tortureTree } from '../images/filesystems/torture-tree.ts'
import { testSeed } from '../random.ts'
import { ScratchDirectory, varve } from '../varve-command.ts'
import { judge, remarksOfFsck } from './torture-judge.ts'
import { ServedPartition } from './torture-mount.ts'
import { SourceFilesystem, writeDirectory } from './torture-source.ts'

/** More than 200,000 of them are files; directories in one directory are left to the test of the ext4 writer. */
const OPTIONS = { ...TORTURE, subdirectories: 2000, entries: 212_000 }

/** What people and packages set with the tools that are made for it. */
function addByTools(source: string): void {
  const tools = `${source}/tools`
  execFileSync('mkdir', ['-p', `${tools}/shared`])
  execFileSync('cp', ['/bin/true', `${tools}/capable`])
  execFileSync('setcap', ['cap_net_raw,cap_net_bind_service+ep', `${tools}/capable`])
  execFileSync('setfacl', ['-m', 'u:1000:rwx,g:70000:r-x', '-m', 'd:u:1000:rwx,d:g:70000:r-x,d:o::-', `${tools}/shared`])
  execFileSync('touch', [`${tools}/shared/inherits`])
  execFileSync('setfacl', ['-m', 'u:4294967294:r--', `${tools}/shared/inherits`])
}

test('the torture tree is served as the disk that it was imported from, in every entry', async () => {
  const seed = testSeed()
  using scratch = new ScratchDirectory('torture')
  const home = scratch.join('home')
  try {
    using filesystem = new SourceFilesystem(scratch.join('filesystem'))
    const source = `${filesystem.directory}/source`
    const built = tortureTree(seed, OPTIONS)
    const written = writeDirectory(built, source)
    assert.equal(written.entries, OPTIONS.entries + 1)
    assert.equal(written.xattrsRefused, 0)
    addByTools(source)

    const imported = varve(home, ['layer', 'import', 'torture', `dir:${source}`, '--kind', 'base']).json
    assert.ok(imported.files >= 200_000, `${imported.files} files`)
    varve(home, ['cvd', 'create', 'desk', '--layer', 'torture', '--boot', 'none'])
    const composed = varve(home, ['compose', 'desk']).json
    const [root] = composed.partitions

    await using served = await ServedPartition.open(home, 'desk', root, scratch)
    assert.deepEqual(remarksOfFsck(served.partition.device), [])
    const judgement = judge(source, served.partition.mount())
    assert.deepEqual(judgement.differences, [])
    assert.equal(judgement.entries, imported.entries)
    assert.deepEqual(Object.keys(judgement.kinds).sort(), ['-', 'b', 'c', 'd', 'l', 'p', 's'])
    assert.ok(judgement.dataRuns > OPTIONS.holes)
    assert.equal(varve(home, ['verify']).json.damageCount, 0)
  } catch (error) {
    throw new Error(`VARVE_TEST_SEED=${seed}: ${(error as Error).message}`, { cause: error })
  }
})
