/** passwd, group, shadow, gshadow, subuid, subgid: one test per rule of docs/merge.md. */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { contentOf, mergeSpecs } from './layers.ts'
import type { EntrySpec, LayerSpec } from './layers.ts'

async function join(path: string, versions: EntrySpec[], decisions: Record<string, string> = {}) {
  const merged = await mergeSpecs(versions.map((version) => ({ [path]: version })), { decisions: new Map(Object.entries(decisions)) })
  return { merged, text: contentOf(merged, path), report: merged.report }
}

const ROOT = 'root:x:0:0:root:/root:/bin/bash\n'

describe('etc/passwd', () => {
  test('is joined by name: lower names first, then new ones, in their order', async () => {
    const { text, report } = await join('etc/passwd', [`${ROOT}a:x:1:1::/:\n`, `c:x:3:3::/:\n${ROOT}`, `${ROOT}b:x:2:2::/:\n`])
    assert.equal(text, `${ROOT}a:x:1:1::/:\nc:x:3:3::/:\nb:x:2:2::/:\n`)
    assert.equal(report.conflicts.length, 0)
  })

  test('takes password, gecos, home and shell from the last layer', async () => {
    const { text, report } = await join('etc/passwd', ['a:x:1:1:Old:/old:/bin/sh\n', 'a:*:1:1:New:/new:/bin/zsh\n', 'b:x:2:2::/:\n'])
    assert.equal(text, 'a:*:1:1:New:/new:/bin/zsh\nb:x:2:2::/:\n')
    assert.equal(report.open, 0)
  })

  test('has the metadata of the top layer, and a report of who had a say', async () => {
    const merged = await mergeSpecs([{ 'etc/passwd': { content: 'a:x:1:1::/:\n', mode: 0o644 } }, { 'etc/passwd': { content: 'b:x:2:2::/:\n', mode: 0o600, mtimeSeconds: 77 } }], { report: 'all' })
    const inode = merged.tree.inode[merged.tree.find('etc/passwd')]
    assert.deepEqual([merged.tree.mode[inode], merged.tree.mtimeSeconds[inode], merged.tree.sizeBytes[inode]], [0o600, 77, 24])
    assert.deepEqual(merged.report.paths, [{ path: 'etc/passwd', owner: 'layer@0', winner: 'layer@1', losers: ['layer@0'], why: 'merged by passwd' }])
  })

  test('another id for the same name is a conflict; a decision takes the ids of its layer and leaves the rest', async () => {
    const versions = ['alice:x:1000:1000:A:/home/alice:/bin/sh\n', 'alice:x:1001:1001:A:/home/alice:/bin/zsh\n']
    const { text, report } = await join('etc/passwd', versions)
    assert.equal(text, versions[1])
    assert.equal(report.open, 1)
    assert.deepEqual(report.conflicts[0], {
      key: 'etc/passwd#alice',
      path: 'etc/passwd',
      detail: 'alice has uid 1000, gid 1000 in layer@0; uid 1001, gid 1001 in layer@1',
      choices: ['layer@0', 'layer@1'],
      needsDecision: true,
      decision: null,
    })
    assert.deepEqual(report.paths[0].conflicts, report.conflicts)
    const decided = await join('etc/passwd', versions, { 'etc/passwd#alice': 'layer@0' })
    assert.equal(decided.text, 'alice:x:1000:1000:A:/home/alice:/bin/zsh\n')
    assert.deepEqual([decided.report.open, decided.report.conflicts[0].decision, decided.report.conflicts[0].needsDecision], [0, 'layer@0', false])
  })

  test('a decision for a layer that does not have the name decides nothing', async () => {
    const { report } = await join('etc/passwd', ['a:x:1:1::/:\n', 'a:x:2:2::/:\n', 'b:x:3:3::/:\n'], { 'etc/passwd#a': 'layer@2' })
    assert.equal(report.open, 1)
    assert.deepEqual(report.unusedDecisions, ['etc/passwd#a'])
  })

  test('two names of different layers with one uid are a conflict; a decision puts the names of its layer first', async () => {
    const versions = [`${ROOT}a:x:101:101::/:\n`, `${ROOT}b:x:101:101::/:\n`]
    const { text, report } = await join('etc/passwd', versions)
    assert.equal(text, `${ROOT}a:x:101:101::/:\nb:x:101:101::/:\n`)
    assert.deepEqual(report.conflicts.map(({ key, needsDecision }) => [key, needsDecision]), [['etc/passwd#uid:101', true]])
    const decided = await join('etc/passwd', versions, { 'etc/passwd#uid:101': 'layer@1' })
    assert.equal(decided.text, `${ROOT}b:x:101:101::/:\na:x:101:101::/:\n`)
    assert.equal(decided.report.open, 0)
  })

  test('two names with one uid that stand in one layer already are no conflict', async () => {
    const { report } = await join('etc/passwd', [`${ROOT}toor:x:0:0::/root:/bin/sh\n`, `${ROOT}a:x:1:1::/:\n`])
    assert.equal(report.conflicts.length, 0)
  })

  test('two names with one gid are no conflict', async () => {
    const { report } = await join('etc/passwd', ['a:x:1:9::/:\n', 'b:x:2:9::/:\n'])
    assert.equal(report.conflicts.length, 0)
  })

  test('comments, malformed lines and bytes of any kind are kept once, and lines for NIS stay at the end', async () => {
    const { text } = await join('etc/passwd', ['# local\na:x:1:1:\xff\xfe:/:\nbroken\n+@admins::::::\n+::::::', '# local\nbroken\nb:x:2:2::/:\nbroken\n\n+::::::\n'])
    assert.equal(text, '# local\na:x:1:1:\xff\xfe:/:\nbroken\nb:x:2:2::/:\nbroken\n\n+@admins::::::\n+::::::\n')
  })

  test('is not joined across a whiteout, an opaque directory, or something that is not a file', async () => {
    const low = { 'etc/passwd': 'a:x:1:1::/:\n' }
    const top = { 'etc/passwd': 'b:x:2:2::/:\n' }
    const between: LayerSpec[] = [{ 'etc/passwd': { whiteout: true } }, { etc: { dir: true, opaque: true } }, { etc: { whiteout: true } }, { 'etc/passwd': { symlink: 'x' } }]
    for (const middle of between) {
      assert.equal(contentOf(await mergeSpecs([low, middle, top]), 'etc/passwd'), top['etc/passwd'])
    }
  })

  test('that is the same in all layers is not touched, and its copies beside it are not joined', async () => {
    const { merged } = await join('etc/passwd', ['x', 'x'])
    assert.equal(merged.report.paths.length, 0)
    const backup = await join('etc/passwd-', ['a:x:1:1::/:\n', 'b:x:2:2::/:\n'])
    assert.equal(backup.text, 'b:x:2:2::/:\n')
  })

  test('leaves another name of its inode as it was', async () => {
    const merged = await mergeSpecs([{ 'etc/passwd': 'a:x:1:1::/:\n' }, { 'etc/passwd': 'b:x:2:2::/:\n', 'etc/kept': { same: 'etc/passwd' } }])
    assert.equal(contentOf(merged, 'etc/kept'), 'b:x:2:2::/:\n')
    assert.equal(contentOf(merged, 'etc/passwd'), 'a:x:1:1::/:\nb:x:2:2::/:\n')
  })

  test('reads a layer that has it as a hard link to the file below', async () => {
    const merged = await mergeSpecs([{ 'etc/old': 'a:x:1:1::/:\n', 'etc/passwd': 'b:x:2:2::/:\n' }, { 'etc/passwd': { link: 'etc/old' } }])
    assert.equal(contentOf(merged, 'etc/passwd'), 'b:x:2:2::/:\na:x:1:1::/:\n')
  })

  test('that becomes empty has no chunks', async () => {
    const { merged, text } = await join('etc/passwd', ['', ''])
    assert.equal(text, '')
    assert.equal(merged.tree.pieceCount[merged.tree.inode[merged.tree.find('etc/passwd')]], 0)
  })
})

describe('etc/group', () => {
  test('unites members; another gid for a name and two names with one gid are conflicts', async () => {
    const { text, report } = await join('etc/group', ['sudo:x:27:a,b\ng:x:5:\nh:x:6:\n', 'sudo:x:27:c,a\ng:x:7:\ni:x:6:\n'])
    assert.equal(text, 'sudo:x:27:a,b,c\ng:x:7:\nh:x:6:\ni:x:6:\n')
    assert.deepEqual(report.conflicts.map(({ key }) => key), ['etc/group#g', 'etc/group#gid:6'])
  })
})

describe('etc/shadow and etc/gshadow', () => {
  test('take the line of the last layer; administrators and members of gshadow are united', async () => {
    assert.equal((await join('etc/shadow', ['a:old:1::::::\nb:!:1::::::\n', 'a:new:2::::::\n'])).text, 'a:new:2::::::\nb:!:1::::::\n')
    assert.equal((await join('etc/gshadow', ['g:!:root:a\n', 'g:*:adm:b\n'])).text, 'g:*:root,adm:a,b\n')
  })
})

describe('etc/subuid and etc/subgid', () => {
  test('take all ranges of a name from the last layer that has it', async () => {
    const { text, report } = await join('etc/subuid', ['a:100:10\nb:200:10\na:300:10\n', 'a:400:10\nc:500:10\n'])
    assert.equal(text, 'a:400:10\nb:200:10\nc:500:10\n')
    assert.equal(report.conflicts.length, 0)
  })

  test('ranges of different names that overlap are a conflict; a decision drops the overlapping ranges of the other name', async () => {
    const versions = ['a:100000:65536\na:900000:10\n', 'b:100000:65536\n']
    const { text, report } = await join('etc/subgid', versions)
    assert.equal(text, versions.join(''))
    assert.deepEqual(report.conflicts.map(({ key, needsDecision }) => [key, needsDecision]), [['etc/subgid#a+b', true]])
    assert.equal((await join('etc/subgid', versions, { 'etc/subgid#a+b': 'layer@1' })).text, 'a:900000:10\nb:100000:65536\n')
    assert.equal((await join('etc/subgid', versions, { 'etc/subgid#a+b': 'layer@0' })).text, versions[0])
  })

  test('overlaps that one layer already has, and ranges of one name, are no conflict', async () => {
    const { report } = await join('etc/subuid', ['a:100:50\nb:120:50\na:140:50\n', 'c:1000:5\n'])
    assert.equal(report.conflicts.length, 0)
  })

  test('an overlap behind a range of the same name is found', async () => {
    const { report } = await join('etc/subuid', ['a:0:1000\n', 'b:10:5\nb:100:5\n', 'c:12:1\n'])
    assert.deepEqual(report.conflicts.map(({ key }) => key), ['etc/subuid#a+b', 'etc/subuid#a+c'])
  })
})
