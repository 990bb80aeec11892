/**
 * Files of a CVD as they are mounted, listed, copied and compared, against the directory that they were imported from and against the kernel's own view.
 * Debian packages: attr, acl, rsync, tar, util-linux, mount, e2fsprogs.
 */
import assert from 'node:assert/strict'
import { execFileSync, spawn } from 'node:child_process'
import { closeSync, mkdirSync, openSync, readSync, statSync } from 'node:fs'
import { after, before, describe, test } from 'node:test'
import { LoopPartition } from '../composer/compose/raw-disk.ts'
import { tortureTree } from '../images/filesystems/torture-tree.ts'
import { Random, testSeed } from '../random.ts'
import { ScratchDirectory, varve } from '../varve-command.ts'
import { judge, remarksOfFsck } from './torture-judge.ts'
import type { Judgement } from './torture-judge.ts'
import { SourceFilesystem, writeDirectory } from './torture-source.ts'
import { VarveMount } from './varve-mount.ts'

const OPTIONS = { crowd: 3000, subdirectories: 300, entries: 9000, holes: 500, sparseBytes: 2 ** 26 }
const RANGES = Number(process.env.VARVE_MOUNT_RANGES ?? 10_000)
const READERS = 16

const seed = testSeed()

function same(judgement: Judgement): void {
  assert.deepEqual(judgement.differences, [])
  assert.deepEqual(Object.keys(judgement.kinds).sort(), ['-', 'b', 'c', 'd', 'l', 'p', 's'])
  assert.ok(judgement.dataRuns > OPTIONS.holes && judgement.xattrs > 0)
}

describe(`a tree with everything in it (VARVE_TEST_SEED=${seed})`, () => {
  const stack = new AsyncDisposableStack()
  let scratch: ScratchDirectory
  let home: string
  let source: string

  before(() => {
    scratch = stack.use(new ScratchDirectory('mount'))
    home = scratch.join('home')
    const filesystem = stack.use(new SourceFilesystem(scratch.join('filesystem')))
    source = `${filesystem.directory}/source`
    writeDirectory(tortureTree(seed, OPTIONS), source)
    execFileSync('setfacl', ['-m', 'u:1000:rwx,g:70000:r-x', '-m', 'd:u:1000:rwx', `${source}/names`])
    varve(home, ['layer', 'import', 'torture', `dir:${source}`, '--kind', 'base'])
    varve(home, ['cvd', 'create', 'desk', '--layer', 'torture', '--boot', 'none'])
    varve(home, ['compose', 'desk'])
  })
  after(() => stack[Symbol.asyncDispose]())

  test('is mounted as a layer as it was imported', async () => {
    await using mounted = await VarveMount.open(home, 'layer:torture', scratch.join('layer'))
    same(judge(source, mounted.directory))
    assert.equal(await mounted.unmount(), 0)
    assert.equal(mounted.log, '')
  })

  test('is mounted from the disk of a CVD as it was imported, and as programs see it', async () => {
    await using mounted = await VarveMount.open(home, 'desk', scratch.join('cvd'))
    same(judge(source, mounted.directory))
    // Exclusion by tar takes time that grows with the square of the depth; the order of attributes, which it keeps, is that of each filesystem.
    const names = `cd "$0" && find . -mindepth 1 -maxdepth 1 ! -name lost+found ! -name xattrs -print0 | sort -z`
    const tar = (directory: string): string => execFileSync('sh', ['-c', `${names} | tar -c --xattrs --acls --format=pax --sort=name --pax-option=delete=atime,delete=ctime --null -T - | sha256sum`, directory], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] })
    assert.equal(tar(mounted.directory), tar(source))
    const found = (directory: string): string => execFileSync('sh', ['-c', `${names} | xargs -0 -I@ find @ -print0 | sort -z | sha256sum`, directory], { encoding: 'utf8' })
    assert.equal(found(mounted.directory), found(source))
    // It takes no paths that are longer than a call does.
    assert.equal(execFileSync('rsync', ['-aHAXn', '--delete', '--exclude=/lost+found', '--exclude=/deep', '--exclude=/long', '--itemize-changes', `${source}/`, `${mounted.directory}/`], { encoding: 'utf8', maxBuffer: 1 << 26 }), '')
    const matching = (directory: string): string => execFileSync('sh', ['-c', 'cd "$0" && grep -rlaZ -D skip nnn names | sort -z | sha256sum', directory], { encoding: 'utf8' })
    assert.equal(matching(mounted.directory), matching(source))
  })

  test('is read alike by ranges, by memory maps and by many at once', async () => {
    await using mounted = await VarveMount.open(home, 'desk', scratch.join('ranges'))
    const files = execFileSync('find', [mounted.directory, '-type', 'f', '-size', '+8k', '-size', '-64M', '-print0'], { encoding: 'latin1', maxBuffer: 1 << 26 }).split('\0').filter((name) => name !== '').sort()
    assert.ok(files.length > 0)
    const random = new Random(seed)
    const pairs = files.map((file) => ({ file, twin: `${source}${file.slice(mounted.directory.length)}` }))
    const fds = pairs.slice(0, 200).map(({ file, twin }) => ({ fd: openSync(Buffer.from(file, 'latin1'), 'r'), twin: openSync(Buffer.from(twin, 'latin1'), 'r') }))
    const [ours, theirs] = [Buffer.alloc(300_000), Buffer.alloc(300_000)]
    for (let range = 0; range < RANGES; range++) {
      const { fd, twin } = random.pick(fds)
      const offset = random.below(statSync(`/proc/self/fd/${twin}`).size + 4096)
      const length = random.chance(0.5) ? random.between(1, 5000) : random.between(1, ours.length)
      const count = readSync(fd, ours, 0, length, offset)
      assert.equal(count, readSync(twin, theirs, 0, length, offset), `seed ${seed}: ${length} bytes at ${offset}`)
      assert.equal(ours.compare(theirs, 0, count, 0, count), 0, `seed ${seed}: ${length} bytes at ${offset}`)
    }
    for (const { fd, twin } of fds) [fd, twin].forEach(closeSync)
    const mapped = 'import mmap,sys,hashlib\nfor p in sys.stdin.buffer.read().split(b"\\0"):\n f=open(p,"rb"); m=mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ); print(hashlib.sha256(m).hexdigest())'
    const hashes = (names: string[]): string => execFileSync('/usr/bin/python3', ['-c', mapped], { input: Buffer.from(names.join('\0'), 'latin1'), encoding: 'utf8', maxBuffer: 1 << 26 })
    assert.equal(hashes(pairs.map(({ file }) => file)), hashes(pairs.map(({ twin }) => twin)))
    const expected = execFileSync('sh', ['-c', 'find "$0/ordinary" "$0/names" -type f -print0 | sort -z | xargs -0 cat | sha256sum', mounted.directory], { encoding: 'utf8' })
    execFileSync('sh', ['-c', 'echo 1 > /proc/sys/vm/drop_caches'])
    const readers = Array.from({ length: READERS }, () => new Promise<string>((resolve, reject) => {
      const child = spawn('sh', ['-c', 'find "$0/ordinary" "$0/names" -type f -print0 | sort -z | xargs -0 cat | sha256sum', mounted.directory], { stdio: ['ignore', 'pipe', 'inherit'] })
      let said = ''
      child.stdout.on('data', (bytes: Buffer) => { said += bytes.toString() })
      child.on('error', reject)
      child.on('close', () => resolve(said))
    }))
    for (const reader of readers) assert.equal(await reader, expected)
  })

  test('is copied out as it was imported: into a directory, and as an archive that GNU tar and varve read', () => {
    // Not on tmpfs or overlayfs, which lack attributes.
    const into = `${source}-copied`
    const copied = varve(home, ['cp', 'desk:/', into]).json
    assert.deepEqual(copied.leftOut, [])
    same(judge(source, into))
    const untarred = `${source}-untarred`
    mkdirSync(untarred)
    execFileSync('sh', ['-c', '"$0" cp desk:/ - --home "$1" | tar -x --xattrs "--xattrs-include=*" --acls --same-owner -p --delay-directory-restore -C "$2"', new URL('../../tools/varve', import.meta.url).pathname, home, untarred], { stdio: ['ignore', 'ignore', 'pipe'] })
    const { differences } = judge(source, untarred)
    // Tar has no sockets.
    assert.deepEqual(differences.filter((one) => !one.includes("it is 'missing' instead of 'there'")), [])
    assert.deepEqual(varve(home, ['diff', `dir:${into}`, 'desk']).json, [])
    assert.deepEqual(varve(home, ['diff', `dir:${source}`, 'desk'], { expect: 3 }).json, [{ path: 'lost+found', change: 'added', what: [] }])
  })

  test('as a disk in files, is mounted by the kernel as by varve, and images of it are the same disk', async () => {
    await using disks = await VarveMount.open(home, 'desk', scratch.join('disks'), { args: ['--disk'] })
    await using mounted = await VarveMount.open(home, 'desk', scratch.join('beside'))
    const raw = `${disks.directory}/disk.raw`
    for (const [name, format] of [['vhd', 'vpc'], ['vhdx', 'vhdx'], ['vmdk', 'vmdk'], ['qcow2', 'qcow2']] as const) {
      const said = execFileSync('qemu-img', ['compare', '-f', 'raw', '-F', format, raw, `${disks.directory}/disk.${name}`], { encoding: 'utf8' })
      assert.match(said, /identical/)
    }
    {
      using partition = new LoopPartition(raw, varve(home, ['compose', 'desk']).json.partitions[0])
      assert.deepEqual(remarksOfFsck(partition.device), [])
      same(judge(partition.mount(), mounted.directory))
    }
  })
})
