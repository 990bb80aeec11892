import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { fat32SizeBytes, writeFat32 } from '@varve/images/filesystems/fat/writer.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import { isVarveError } from '@varve/images/errors.ts'
import { Random, testSeed } from '../../../random.ts'
import { FileSink, TreeContent } from './file-sink.ts'

const MIB = 2 ** 20
const directory = mkdtempSync(join(tmpdir(), 'varve-fat-'))
after(() => rmSync(directory, { recursive: true }))
let images = 0

/** Lays the tree out, has fsck.fat judge it. @returns path of the image */
function layOut(content: TreeContent, sizeBytes: number): string {
  const path = join(directory, `${images++}.img`)
  using sink = new FileSink(path, sizeBytes, content)
  writeFat32(content.tree, sink, { sizeBytes, volumeId: 0x1234abcd, label: 'EFI', timeSeconds: 1_700_000_000 })
  sink.checkDisjoint()
  const report = execFileSync('fsck.fat', ['-nv', path], { encoding: 'utf8' })
  assert.match(report, /sectors total\nChecking for unused clusters\.\nChecking free cluster summary\.\n.* \d+ files, \d+\/\d+ clusters\n$/)
  return path
}

/** Copies all files out with mtools. @returns by path: bytes and time */
function copyOut(image: string): Map<string, { bytes: Buffer; mtimeSeconds: number }> {
  const target = `${image}.out`
  mkdirSync(target)
  execFileSync('mcopy', ['-smnp', '-i', image, '::/*', target], { env: { ...process.env, TZ: 'UTC', LC_ALL: 'C.UTF-8', MTOOLS_SKIP_CHECK: '1' } })
  const found = new Map<string, { bytes: Buffer; mtimeSeconds: number }>()
  for (const item of readdirSync(target, { recursive: true, withFileTypes: true })) {
    const path = join(item.parentPath, item.name)
    const name = path.slice(target.length + 1)
    if (item.isDirectory()) found.set(`${name}/`, { bytes: Buffer.alloc(0), mtimeSeconds: 0 })
    else found.set(name, { bytes: readFileSync(path), mtimeSeconds: Math.floor(statSync(path).mtimeMs / 1000) })
  }
  rmSync(target, { recursive: true })
  rmSync(image)
  return found
}

test('fsck.fat and mtools accept a volume with short, long and non-ASCII names', () => {
  const content = new TreeContent()
    .file('EFI/BOOT/BOOTX64.EFI', new Random(1).bytes(300_001), { mtimeSeconds: 1_700_000_002 })
    .file('grub/grub.cfg', Buffer.from('set timeout=0\n'), { mtimeSeconds: 1_600_000_000 })
    .file('a long name with spaces.text', Buffer.from('x'), { mtimeSeconds: 0 })
    .file('größe-и-λ.дат', Buffer.from('y'), { mtimeSeconds: 1_500_000_000 })
    .file('empty', Buffer.alloc(0), { mtimeSeconds: 1_500_000_000 })
  content.directory('nothing in here')
  const files = copyOut(layOut(content, 64 * MIB))
  assert.deepEqual([...files.keys()].sort(), ['EFI/', 'EFI/BOOT/', 'EFI/BOOT/BOOTX64.EFI', 'a long name with spaces.text', 'empty', 'größe-и-λ.дат', 'grub/', 'grub/grub.cfg', 'nothing in here/'].sort())
  assert.deepEqual(files.get('EFI/BOOT/BOOTX64.EFI'), { bytes: new Random(1).bytes(300_001), mtimeSeconds: 1_700_000_002 })
  assert.equal(files.get('grub/grub.cfg')!.mtimeSeconds, 1_600_000_000)
  assert.equal(files.get('a long name with spaces.text')!.mtimeSeconds, Date.UTC(1980, 0, 1) / 1000, 'before 1980 becomes 1980')
})

test('the volume has the label, the serial number and the number of clusters of FAT32', () => {
  const image = layOut(new TreeContent().file('a', Buffer.from('a')), 34 * MIB)
  assert.match(execFileSync('minfo', ['-i', image, '::'], { encoding: 'utf8' }), /serial number: 1234ABCD[\s\S]*disk label="EFI {8}"[\s\S]*disk type="FAT32 {3}"/)
  const probe = execFileSync('blkid', ['-p', '-o', 'export', image], { encoding: 'utf8' })
  assert.match(probe, /LABEL=EFI/)
  assert.match(probe, /UUID=1234-ABCD/)
  assert.match(probe, /VERSION=FAT32/)
})

test('names that would share a short name each get their own', () => {
  const content = new TreeContent()
  for (let index = 0; index < 3000; index++) content.file(`some alike name ${index}.conf`, Buffer.from(`${index}`))
  content.file('SOMEAL~1.CON', Buffer.from('taken')).file('abcdef~1.txt', Buffer.from('lower')).file('abcdefghi.txt', Buffer.from('long'))
  const image = layOut(content, 64 * MIB)
  const files = copyOut(image)
  assert.equal(files.size, 3003)
  for (let index = 0; index < 3000; index++) assert.equal(files.get(`some alike name ${index}.conf`)!.bytes.toString(), `${index}`)
  assert.equal(files.get('SOMEAL~1.CON')!.bytes.toString(), 'taken')
  assert.equal(files.get('abcdef~1.txt')!.bytes.toString(), 'lower')
})

test('names that FAT cannot hold are refused with their directory', () => {
  for (const name of ['a:b', 'end.', 'end ', 'x\u0001', 'q?', 'ab\\c']) {
    const { tree } = new TreeContent().file(`dir/${name}`, Buffer.from('x'))
    assert.throws(() => fat32SizeBytes(tree, { freeBytes: 0 }), (error) => isVarveError(error, 'NAME_INVALID') && error.message.startsWith('/dir'))
  }
  const clash = new TreeContent().file('Größe', Buffer.from('x')).file('GRÖSSE', Buffer.from('x')).file('größe', Buffer.from('x')).tree
  assert.throws(() => fat32SizeBytes(clash, { freeBytes: 0 }), (error) => isVarveError(error, 'NAME_INVALID'))
  const link = new TreeContent().special('link', Kind.symlink, Buffer.from('x')).tree
  assert.throws(() => fat32SizeBytes(link, { freeBytes: 0 }), (error) => isVarveError(error, 'FORMAT_UNSUPPORTED'))
})

test('a volume that is too small is refused, whether for FAT32 or for the content', () => {
  const content = new TreeContent().file('a', new Random(2).bytes(40 * MIB))
  const options = { volumeId: 1, label: 'EFI', timeSeconds: 0 }
  const nowhere = { bytes() {}, chunk() {} }
  assert.throws(() => writeFat32(content.tree, nowhere, { ...options, sizeBytes: 16 * MIB }), (error) => isVarveError(error, 'DISK_TOO_SMALL'))
  assert.throws(() => writeFat32(content.tree, nowhere, { ...options, sizeBytes: 40 * MIB }), (error) => isVarveError(error, 'DISK_TOO_SMALL'))
  writeFat32(content.tree, nowhere, { ...options, sizeBytes: fat32SizeBytes(content.tree, { freeBytes: 0 }) })
})

test('larger volumes have larger clusters and are clean too', () => {
  const content = new TreeContent().file('a/b', new Random(3).bytes(5 * MIB + 1)).file('c', Buffer.from('c'))
  for (const sizeBytes of [261 * MIB, 1024 * MIB + 512, 9 * 1024 * MIB]) assert.equal(copyOut(layOut(content, sizeBytes)).get('a/b')!.bytes.length, 5 * MIB + 1)
})

test('random trees come back from mtools as they went in', () => {
  const seed = testSeed()
  const random = new Random(seed)
  const letters = [...'abcXYZ019 ._-~ßéЖ漢+,;=[]']
  for (let round = 0; round < 12; round++) {
    const expected = new Map<string, Buffer>()
    const folded = new Set<string>()
    const content = new TreeContent()
    const directories = ['']
    for (let index = random.between(0, 250); index > 0; index--) {
      const name = `${Array.from({ length: random.between(0, random.chance(0.1) ? 60 : 12) }, () => random.pick(letters)).join('')}`.trim() + random.pick(['a', 'Q', '7'])
      const path = `${random.pick(directories)}${name}`
      if (folded.has(path.toUpperCase()) || [...folded].some((other) => other === `${path}/`.toUpperCase())) continue
      folded.add(path.toUpperCase())
      if (random.chance(0.2)) {
        content.directory(path)
        directories.push(`${path}/`)
        expected.set(`${path}/`, Buffer.alloc(0))
        folded.add(`${path}/`.toUpperCase())
      } else {
        const bytes = random.bytes(random.pick([0, 1, 511, 512, 513, random.below(20_000), random.below(300_000)]))
        content.file(path, bytes, { mtimeSeconds: random.below(2 ** 33), chunkBytes: random.pick([512, 5000, 65536]) })
        expected.set(path, bytes)
      }
    }
    if (expected.size === 0) continue
    try {
      const found = copyOut(layOut(content, fat32SizeBytes(content.tree, { freeBytes: random.pick([0, MIB, 40 * MIB]) })))
      assert.deepEqual([...found.keys()].sort(), [...expected.keys()].sort())
      for (const [path, bytes] of expected) assert.ok(found.get(path)!.bytes.equals(bytes), path)
    } catch (error) {
      console.error(`VARVE_TEST_SEED=${seed}, round ${round}`)
      throw error
    }
  }
})
