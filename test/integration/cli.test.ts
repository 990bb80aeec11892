/**
 * The command as a user meets it: exit statuses, what is printed where, and the care of the store. Serving: cli-serve.test.ts.
 */
import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { closeSync, mkdirSync, openSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync, writeSync } from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { Random } from '../random.ts'
import { ScratchDirectory, varve } from '../varve-command.ts'

const launcher = path.resolve(import.meta.dirname, '../../tools/varve')
/** Files that changed so shortly before an import are read again by the next, ms. */
const RACY_MS = 3000

/** As a user types it, without --json. */
function run(home: string, ...args: string[]): { status: number | null; stdout: string; stderr: string } {
  return spawnSync(launcher, [...args, '--home', home], { encoding: 'utf8' })
}

/** A directory of a few files, one of them large enough for chunks of its own. */
function makeSource(directory: string, seed = 1): string {
  const random = new Random(seed)
  mkdirSync(path.join(directory, 'etc'), { recursive: true })
  for (let file = 0; file < 10; file++) writeFileSync(path.join(directory, `file ${file}`), random.bytes(random.between(1, 5000)))
  writeFileSync(path.join(directory, 'large'), random.bytes(1_000_000))
  return directory
}

function makeUserSource(directory: string, uid: number): string {
  mkdirSync(path.join(directory, 'etc'), { recursive: true })
  writeFileSync(path.join(directory, 'etc/passwd'), `alice:x:${uid}:${uid}:Alice:/home/alice:/bin/sh\n`)
  return directory
}

function packs(home: string): string[] {
  const directory = path.join(home, 'packs')
  return readdirSync(directory).filter((name) => name.endsWith('.pack')).map((name) => path.join(directory, name))
}

function packBytes(home: string): number {
  return packs(home).reduce((sum, file) => sum + statSync(file).size, 0)
}

/** Changes one byte in the middle of the largest of `files`. */
function damage(files: string[]): void {
  const [largest] = files.sort((a, b) => statSync(b).size - statSync(a).size)
  const offset = Math.floor(statSync(largest).size / 2)
  const byte = readFileSync(largest)[offset]
  const fd = openSync(largest, 'r+')
  writeSync(fd, Buffer.from([byte ^ 0xff]), 0, 1, offset)
  closeSync(fd)
}

test('what is not a command ends with 2 and says how it is used, help ends with 0', () => {
  using scratch = new ScratchDirectory('cli')
  const home = scratch.join('home')
  for (const args of [
    [],
    ['nonsense'],
    ['layer'],
    ['layer', 'nonsense'],
    ['layer', 'import', 'x'],
    ['layer', 'import', 'x', 'dir:/etc'],
    ['layer', 'import', 'x', 'dir:/etc', '--kind', 'wrong'],
    ['layer', 'import', 'x', 'dir:/etc', '--kind', 'base', '--workers', 'many'],
    ['cvd', 'create', 'desk'],
    ['cvd', 'create', 'desk', '--layer', 'x', '--boot', 'wrong'],
    ['serve', '--log-level', 'wrong'],
    ['layer', 'list', '--nonsense'],
  ]) {
    const { status, stdout, stderr } = run(home, ...args)
    assert.equal(status, 2, `varve ${args.join(' ')}: ${status} ${stdout} ${stderr}`)
    assert.equal(stdout, '')
    assert.match(stderr, /error:|Usage:/)
  }
  const { version } = JSON.parse(readFileSync(path.resolve(import.meta.dirname, '../../package.json'), 'utf8'))
  assert.deepEqual([run(home, '--version').status, run(home, '--version').stdout], [0, `${version}\n`])
  // Only commands of the nouns on the line are loaded: names that are nouns do no harm, and help has them all.
  assert.match(run(home, 'layer', 'show', 'serve').stderr, /NOT_FOUND/)
  for (const args of [['--help'], ['help'], ['--help', 'layer']]) {
    const listed = run(home, ...args).stdout
    for (const noun of ['layer', 'cvd', 'compose', 'serve', 'snapshot', 'bootset', 'gc', 'verify', 'doctor']) assert.match(listed, new RegExp(`^  ${noun}\\b`, 'm'), `varve ${args.join(' ')}`)
  }
  const help = run(home, '--help')
  assert.equal(help.status, 0)
  assert.match(help.stdout, /layer.*\n[^]*serve/)
})

test('what is not there ends with 1 and one line', () => {
  using scratch = new ScratchDirectory('cli')
  const home = scratch.join('home')
  for (const [args, code] of [
    [['layer', 'show', 'nothing'], 'NOT_FOUND'],
    [['layer', 'show', '../x'], 'NAME_INVALID'],
    [['layer', 'import', 'x', `dir:${scratch.join('nothing')}`, '--kind', 'base'], 'SOURCE_INVALID'],
    [['layer', 'import', 'x', 'zip:x', '--kind', 'base'], 'SOURCE_INVALID'],
    [['cvd', 'create', 'desk', '--layer', 'nothing'], 'NOT_FOUND'],
    [['compose', 'nothing'], 'NOT_FOUND'],
    [['snapshot', 'create', 'nothing'], 'NOT_FOUND'],
    [['snapshot', 'list', 'nothing'], 'NOT_FOUND'],
    [['serve', '--nbd', 'nonsense'], 'ADDRESS_INVALID'],
  ] as const) {
    const plain = run(home, ...args)
    assert.equal(plain.status, 1, `varve ${args.join(' ')}: ${plain.status} ${plain.stdout} ${plain.stderr}`)
    assert.equal(plain.stdout, '')
    assert.match(plain.stderr, new RegExp(`^varve: [^\\n]+ \\[${code}\\]\\n$`))
  }
  assert.equal(varve(home, ['layer', 'show', 'nothing'], { expect: 1 }).json.error.code, 'NOT_FOUND')
})

test('layers are listed, shown, compared and removed, unless something stands on them', () => {
  using scratch = new ScratchDirectory('cli')
  const home = scratch.join('home')
  const source = makeSource(scratch.join('source'))
  assert.equal(varve(home, ['layer', 'import', 'app', `dir:${source}`, '--kind', 'app']).json.layer, 'app@1')
  writeFileSync(path.join(source, 'file 0'), 'changed')
  writeFileSync(path.join(source, 'new\nline'), '')
  rmSync(path.join(source, 'file 1'))
  assert.equal(varve(home, ['layer', 'import', 'app', `dir:${source}`, '--kind', 'app']).json.layer, 'app@2')

  assert.deepEqual(varve(home, ['layer', 'list']).json.map((layer: any) => layer.layer), ['app@1', 'app@2'])
  const shown = varve(home, ['layer', 'show', 'app@1']).json
  assert.equal(shown.inodes.file, 11)
  assert.equal(shown.inodes.directory, 2)
  assert.equal(varve(home, ['layer', 'show', 'app']).json.layer, 'app@2')
  const changes = varve(home, ['layer', 'diff', 'app@1', 'app@2']).json
  assert.deepEqual(changes.map(({ path: at, change }: any) => [at, change]).filter(([at]: any) => at !== ''), [['file 0', 'changed'], ['file 1', 'removed'], ['new\\x0aline', 'added']])
  assert.match(run(home, 'layer', 'diff', 'app@1', 'app').stdout, /^- \/file 1$/m)

  varve(home, ['cvd', 'create', 'desk', '--layer', 'app@1', '--boot', 'none'])
  assert.equal(varve(home, ['layer', 'remove', 'app@1'], { expect: 1 }).json.error.code, 'IN_USE')
  assert.equal(varve(home, ['layer', 'remove', 'app@2']).json.layer, 'app@2')
  assert.equal(varve(home, ['layer', 'show', 'app@2'], { expect: 1 }).json.error.code, 'NOT_FOUND')
  varve(home, ['cvd', 'remove', 'desk'])
  varve(home, ['layer', 'remove', 'app@1'])
  assert.deepEqual(varve(home, ['layer', 'list']).json, [])
})

test('an open conflict ends a dry run and a composition with 3; decided, both end with 0', () => {
  using scratch = new ScratchDirectory('cli')
  const home = scratch.join('home')
  for (const [name, uid] of [['work', 1000], ['play', 2000]] as const) {
    varve(home, ['layer', 'import', name, `dir:${makeUserSource(scratch.join(name), uid)}`, '--kind', 'user'])
  }
  varve(home, ['cvd', 'create', 'desk', '--layer', 'work', '--layer', 'play', '--boot', 'none'])
  const [conflict] = varve(home, ['compose', 'desk', '--dry-run'], { expect: 3 }).json.conflicts
  assert.equal(conflict.key, 'etc/passwd#alice')
  assert.deepEqual(conflict.choices, ['work@1', 'play@1'])
  assert.equal(varve(home, ['compose', 'desk'], { expect: 3 }).json.error.code, 'COMPOSE_CONFLICT')
  const plain = run(home, 'compose', 'desk')
  assert.equal(plain.status, 3)
  assert.equal(plain.stdout, '')
  assert.match(plain.stderr, /--decide 'etc\/passwd#alice=LAYER'/)

  varve(home, ['cvd', 'layers', 'desk', '--set', 'work', '--set', 'play', '--decide', 'etc/passwd#alice=work'])
  assert.equal(varve(home, ['compose', 'desk', '--dry-run']).json.conflicts[0].decision, 'work@1')
  const { conflicts } = varve(home, ['compose', 'desk']).json
  assert.deepEqual(conflicts.map(({ needsDecision }: any) => needsDecision), [false])
})

test('a second import of an unchanged directory reads no file and stores nothing', async () => {
  using scratch = new ScratchDirectory('cli')
  const home = scratch.join('home')
  const source = makeSource(scratch.join('source'))
  await delay(RACY_MS)
  const first = varve(home, ['layer', 'import', 'app', `dir:${source}`, '--kind', 'app']).json
  assert.equal(first.files, 11)
  assert.equal(first.filesUnchanged, 0)
  const before = packBytes(home)
  const second = varve(home, ['layer', 'import', 'app', `dir:${source}`, '--kind', 'app']).json
  assert.equal(second.filesUnchanged, second.files)
  assert.equal(second.digest, first.digest)
  assert.deepEqual([second.chunksNew, second.bytesNew, second.storedBytes], [0, 0, 0])
  assert.equal(packBytes(home), before)
})

test('an interrupted import leaves nothing visible, and can be run again', async () => {
  using scratch = new ScratchDirectory('cli')
  const home = scratch.join('home')
  const source = makeSource(scratch.join('source'))
  const archive = spawnSync('tar', ['-C', source, '-cf', '-', '.'], { maxBuffer: 1 << 26 }).stdout
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    const child = spawn(launcher, ['layer', 'import', 'app', 'tar:-', '--kind', 'app', '--home', home], { stdio: ['pipe', 'pipe', 'pipe'] })
    let stderr = ''
    child.stderr.on('data', (bytes: Buffer) => (stderr += bytes.toString()))
    const exited = new Promise<number | NodeJS.Signals | null>((resolve) => child.on('exit', (status, by) => resolve(status ?? by)))
    child.stdin.on('error', () => {})
    // Most of the archive, and then nothing more: the command waits for the rest.
    await new Promise((resolve) => child.stdin.write(archive.subarray(0, archive.length - 300_000), resolve))
    await delay(1000)
    child.kill(signal)
    assert.equal(await exited, 1, stderr)
    assert.equal(stderr, `varve: ended by ${signal}\n`)
    assert.deepEqual(varve(home, ['layer', 'list']).json, [])
  }
  assert.equal(varve(home, ['layer', 'import', 'app', 'tar:-', '--kind', 'app'], { input: archive }).json.layer, 'app@1')
  assert.equal(varve(home, ['verify']).json.damageCount, 0)
})

test('damage is found with 4, repaired, and healed by the next import', () => {
  using scratch = new ScratchDirectory('cli')
  const home = scratch.join('home')
  const source = makeSource(scratch.join('source'))
  varve(home, ['layer', 'import', 'app', `dir:${source}`, '--kind', 'app'])
  assert.equal(varve(home, ['verify']).json.damageCount, 0)
  damage(packs(home))
  const found = varve(home, ['verify'], { expect: 4 }).json
  assert.equal(found.damageCount, 1)
  assert.match(found.damage[0].file, /\.pack$/)
  assert.match(run(home, 'verify').stdout, /damaged$/m)
  // What cannot be read is given up, and the layer that needs it is named.
  const repaired = varve(home, ['verify', '--repair'], { expect: 4 }).json
  assert.equal(repaired.chunksDropped, 1)
  assert.equal(repaired.broken.length, 1)
  varve(home, ['layer', 'import', 'app', `dir:${source}`, '--kind', 'app'])
  const healed = varve(home, ['verify']).json
  assert.equal(healed.damageCount, 0)
  assert.deepEqual(healed.broken, [])
})

test('a composed disk that lost a chunk is forgotten by a repair, and composed again to the same bytes', () => {
  using scratch = new ScratchDirectory('cli')
  const home = scratch.join('home')
  varve(home, ['layer', 'import', 'app', `dir:${makeSource(scratch.join('source'))}`, '--kind', 'app'])
  varve(home, ['cvd', 'create', 'desk', '--layer', 'app', '--boot', 'none'])
  const before = new Set(packs(home))
  const { diskDigest } = varve(home, ['compose', 'desk']).json
  damage(packs(home).filter((file) => !before.has(file)))
  const repaired = varve(home, ['verify', '--repair']).json
  assert.equal(repaired.damageCount, 1)
  assert.deepEqual(repaired.broken, [])
  const again = varve(home, ['compose', 'desk']).json
  assert.deepEqual([again.cached, again.diskDigest], [false, diskDigest])
  assert.equal(varve(home, ['verify']).json.damageCount, 0)
})

test('without its index a store says so everywhere, and verify --repair makes the index again', () => {
  using scratch = new ScratchDirectory('cli')
  const home = scratch.join('home')
  const source = makeSource(scratch.join('source'))
  varve(home, ['layer', 'import', 'app', `dir:${source}`, '--kind', 'app'])
  for (const name of readdirSync(path.join(home, 'packs'))) {
    if (name.startsWith('index.db')) rmSync(path.join(home, 'packs', name))
  }
  for (const args of [['layer', 'list'], ['layer', 'import', 'app', `dir:${source}`, '--kind', 'app'], ['verify'], ['gc'], ['serve']]) {
    assert.equal(varve(home, args, { expect: 1 }).json.error.code, 'INDEX_INVALID', args.join(' '))
  }
  const findings = varve(home, ['doctor'], { expect: 4 }).json
  assert.match(findings.find(({ state }: any) => state === 'damage').advice, /varve verify --repair/)
  varve(home, ['verify', '--repair'])
  assert.equal(varve(home, ['doctor']).json.every(({ state }: any) => state !== 'damage'), true)
  assert.equal(varve(home, ['verify']).json.damageCount, 0)
  assert.equal(varve(home, ['layer', 'list']).json.length, 1)
})

test('collection frees what a removed layer alone held, and verify is clean after it', () => {
  using scratch = new ScratchDirectory('cli')
  const home = scratch.join('home')
  varve(home, ['layer', 'import', 'keep', `dir:${makeSource(scratch.join('keep'), 1)}`, '--kind', 'app'])
  varve(home, ['layer', 'import', 'drop', `dir:${makeSource(scratch.join('drop'), 2)}`, '--kind', 'app'])
  assert.equal(varve(home, ['gc']).json.unreachable.chunks, 0)
  varve(home, ['layer', 'remove', 'drop@1'])
  const before = packBytes(home)
  assert.ok(varve(home, ['gc', '--dry-run'], { expect: 3 }).json.unreachable.bytesStored > 900_000)
  assert.equal(packBytes(home), before)
  assert.ok(varve(home, ['gc']).json.bytesFreed > 900_000)
  assert.ok(packBytes(home) < before - 900_000)
  const verified = varve(home, ['verify']).json
  assert.equal(verified.damageCount, 0)
  assert.deepEqual(verified.broken, [])
  varve(home, ['gc', '--dry-run'])
  varve(home, ['layer', 'show', 'keep'])
})
