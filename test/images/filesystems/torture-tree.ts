/**
 * The torture tree: everything that a tree can hold, at the limits of Linux and ext4, in the numbers that break things.
 * In memory, about 200,000 entries and 40 MB of content; a tree of the same content can be made on a disk from it.
 */
import { Kind } from '@varve/images/tree/tree.ts'
import { Random } from '../../random.ts'
import { MemoryTree } from './memory-tree.ts'
import type { BuiltTree, Piece } from './memory-tree.ts'
import { aclBytes } from './random-tree.ts'

export interface TortureOptions {
  /** Entries in one directory. */
  crowd: number
  /** Directories in one directory; above 65,000 link counts end. */
  subdirectories: number
  /** Entries in all. */
  entries: number
  /** Data parts of one file, with holes between. */
  holes: number
  /** Bytes of a sparse file. */
  sparseBytes: number
}

export const TORTURE: TortureOptions = { crowd: 100_000, subdirectories: 66_000, entries: 200_000, holes: 10_000, sparseBytes: 5 * 2 ** 30 }

const NAME_BYTES_MAX = 255
const PATH_BYTES_MAX = 4095
const MEBIBYTE = 1 << 20

export function tortureTree(seed: number, options: TortureOptions = TORTURE): BuiltTree {
  const random = new Random(seed)
  const built = new MemoryTree({ mode: 0o755, mtimeSeconds: 1_500_000_000, mtimeNanoseconds: 1 })
  for (const part of [addNames, addDeepPaths, addSymlinks, addTimes, addOwners, addSpecial, addXattrs, addLinks]) part(built, random)
  addFiles(built, random, options)
  addCrowds(built, random, options)
  addFill(built, random, options.entries - built.entries)
  return built.build()
}

/** Names of every length up to 255, bytes of every value, what shells and protocols trip over. */
function addNames(built: MemoryTree, random: Random): void {
  const directory = built.directory(0, 'names')
  const used = new Set<string>()
  const file = (name: string) => {
    if (!used.has(name)) built.file(directory, name, [Buffer.from(name, 'latin1')])
    used.add(name)
  }
  for (let length = 1; length <= NAME_BYTES_MAX; length++) file('n'.repeat(length))
  for (let byte = 1; byte < 256; byte++) {
    if (byte !== 0x2f && byte !== 0x2e) file(String.fromCharCode(byte))
  }
  for (const name of ['...', ' leading', 'trailing ', 'new\nline', '-rf', '--', '*', '?', '\\', '"', "'", '$(x)', 'CON', 'a:b', '\xff\xfe', '\xc3(', '\xed\xa0\x80', '\xef\xbb\xbfbom']) file(name)
  for (const name of ['é', 'é'.normalize('NFD'), 'İ', '日本語', '🜁', 'שלום']) file(Buffer.from(name).toString('latin1'))
  for (let more = 0; more < 200; more++) {
    const bytes = random.bytes(random.between(10, NAME_BYTES_MAX)).map((byte) => (byte === 0 || byte === 0x2f ? 0xff : byte))
    file(Buffer.from(bytes).toString('latin1'))
  }
}

/** Directories in directories, to paths of 4,095 bytes: many short names, few long ones. */
function addDeepPaths(built: MemoryTree): void {
  for (const [start, name] of [['deep', 'd'], ['long', 'l'.repeat(NAME_BYTES_MAX)]]) {
    let directory = built.directory(0, start)
    let length = start.length
    while (length + 1 + name.length + 2 <= PATH_BYTES_MAX) {
      directory = built.directory(directory, name)
      length += 1 + name.length
    }
    const last = 'f'.repeat(Math.min(NAME_BYTES_MAX, PATH_BYTES_MAX - length - 1))
    built.file(directory, last, [Buffer.from('the end\n')])
  }
}

function addSymlinks(built: MemoryTree): void {
  const directory = built.directory(0, 'symlinks')
  const lengths = [1, 2, 58, 59, 60, 61, 255, 256, 1023, 4094, 4095]
  for (const length of lengths) built.symlink(directory, `target-${length}`, 't'.repeat(length), { uid: 70_000, mtimeNanoseconds: length })
  built.symlink(directory, 'absolute', '/etc/passwd')
  built.symlink(directory, 'dangling', 'nowhere')
  built.symlink(directory, 'itself', 'itself')
  built.symlink(directory, 'bytes', Buffer.from([0xff, 0xfe, 0x0a, 0x80]))
  built.symlink(directory, 'labelled', 'x', { xattrs: [{ name: 'security.label', value: Buffer.from('x') }, { name: 'trusted.t', value: Buffer.alloc(300, 1) }] })
}

/** Before 1970, after 2038, where 32 bits end, where 34 bits end, and every place of a nanosecond. */
function addTimes(built: MemoryTree): void {
  const directory = built.directory(0, 'times')
  const seconds = [0, -1, -2, -(2 ** 31), -(2 ** 31) + 1, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 32 + 2 ** 31, 2 * 2 ** 32, 2 ** 33 + 5, 3 * 2 ** 32, 2 ** 34 - 2 ** 31 - 1]
  for (const at of seconds) {
    // ext4 has no fractions of its last second.
    for (const fraction of at === 2 ** 34 - 2 ** 31 - 1 || at === -(2 ** 31) ? [0] : [0, 1, 500_000_000, 999_999_999]) {
      built.file(directory, `at ${at} ${fraction}`, [], { mtimeSeconds: at, mtimeNanoseconds: fraction })
      built.directory(directory, `directory at ${at} ${fraction}`, { mtimeSeconds: at, mtimeNanoseconds: fraction })
    }
  }
}

function addOwners(built: MemoryTree): void {
  const directory = built.directory(0, 'owners', { uid: 1000, gid: 1000, mode: 0o1777 })
  const ids = [0, 1, 65534, 65535, 65536, 100_000, 2 ** 31 - 1, 2 ** 31, 0xfffffffe]
  for (const id of ids) built.file(directory, `by ${id}`, [], { uid: id, gid: 0xfffffffe - id, mode: 0o640 })
  const modes = [0, 0o1, 0o777, 0o4755, 0o2755, 0o1777, 0o7777]
  for (const mode of modes) {
    built.file(directory, `mode ${mode.toString(8)}`, [], { mode })
    built.directory(directory, `directory ${mode.toString(8)}`, { mode })
  }
}

function addSpecial(built: MemoryTree): void {
  const directory = built.directory(0, 'special')
  built.add(directory, 'fifo', { kind: Kind.fifo, mode: 0o600, mtimeNanoseconds: 7 })
  built.add(directory, 'socket', { kind: Kind.socket, mode: 0o755, xattrs: [{ name: 'trusted.socket', value: Buffer.from('s') }] })
  for (const [deviceMajor, deviceMinor] of [[1, 3], [0, 1], [255, 255], [255, 256], [256, 0], [4095, 0xfffff], [8, 0xff00]]) {
    built.add(directory, `character ${deviceMajor} ${deviceMinor}`, { kind: Kind.character, mode: 0o666, deviceMajor, deviceMinor })
    built.add(directory, `block ${deviceMajor} ${deviceMinor}`, { kind: Kind.block, mode: 0o660, deviceMajor, deviceMinor })
  }
}

/** From none to as large as Linux allows, alone and many; ACLs; capabilities; labels that many share. */
function addXattrs(built: MemoryTree, random: Random): void {
  const directory = built.directory(0, 'xattrs', { xattrs: [{ name: 'system.posix_acl_access', value: aclBytes(random) }, { name: 'system.posix_acl_default', value: aclBytes(random) }] })
  const file = (name: string, ...xattrs: { name: string; value: Uint8Array }[]) => {
    built.file(directory, name, [], { xattrs })
  }
  for (const length of [0, 1, 3, 4, 5, 60, 64, 68, 72, 80, 100, 1000, 3900, 4000, 4040, 4044, 4048, 4052, 4096, 10_000, 65_535, 65_536]) file(`value of ${length}`, { name: 'user.v', value: random.bytes(length) })
  for (const length of [1, 2, 3, 4, 100, 250]) file(`name of ${length}`, { name: `user.${'n'.repeat(length)}`, value: Buffer.from('v') })
  file('many', ...Array.from({ length: 100 }, (_, index) => ({ name: `user.number.${index}`, value: Buffer.from(`value ${index}`) })))
  file('many large', ...Array.from({ length: 8 }, (_, index) => ({ name: `user.large.${index}`, value: random.bytes(30_000) })))
  file('not ASCII', { name: 'user.\xc3\xa9\xff', value: Buffer.from([0, 255, 0]) }, { name: 'user.\xe2\x82\xac', value: random.bytes(200) })
  file('all namespaces', ...['user', 'trusted', 'security'].map((namespace) => ({ name: `${namespace}.same`, value: Buffer.from(namespace) })))
  file('capability', { name: 'security.capability', value: Buffer.from('0100000200200000000000000000000000000000', 'hex') })
  file('capability of a user namespace', { name: 'security.capability', value: Buffer.from('0100000300200000000000000000000000000000a0860100', 'hex') })
  file('label', { name: 'security.selinux', value: Buffer.from('system_u:object_r:etc_t:s0\0') })
  for (let index = 0; index < 50; index++) file(`acl ${index}`, { name: 'system.posix_acl_access', value: aclBytes(random) })
  // More than may share one block.
  const shared = [{ name: 'user.shared', value: random.bytes(200) }]
  for (let index = 0; index < 1100; index++) file(`shared ${index}`, ...shared)
}

function addLinks(built: MemoryTree): void {
  const directory = built.directory(0, 'links')
  const elsewhere = built.directory(0, 'links elsewhere')
  const file = built.file(directory, 'first', [Buffer.from('linked\n')])
  for (let index = 0; index < 1000; index++) built.link(index % 2 === 0 ? directory : elsewhere, `name ${index}`, file)
  const symlink = built.symlink(directory, 'symlink', 's'.repeat(100))
  built.link(elsewhere, 'the same symlink', symlink)
  const fifo = built.add(directory, 'fifo', { kind: Kind.fifo }).inode
  built.link(elsewhere, 'the same fifo', fifo)
}

function addFiles(built: MemoryTree, random: Random, options: TortureOptions): void {
  const directory = built.directory(0, 'files')
  built.file(directory, 'empty')
  for (const length of [1, 4095, 4096, 4097, 65_535, 262_144, MEBIBYTE]) built.file(directory, `of ${length}`, [random.bytes(length)])
  built.file(directory, 'many pieces', Array.from({ length: 300 }, () => random.bytes(random.between(1, 60_000))))
  built.file(directory, 'zeroes', [Buffer.alloc(MEBIBYTE)])
  built.file(directory, 'twice the same', [Buffer.alloc(5000, 5), Buffer.alloc(5000, 5)])
  built.file(directory, 'only a hole', [MEBIBYTE])
  built.file(directory, 'hole of one byte', [1])
  const { sparseBytes } = options
  built.file(directory, 'sparse', [random.bytes(10_000), Math.floor(sparseBytes / 2) - 10_000, random.bytes(100_000), Math.ceil(sparseBytes / 2) - 100_000])
  built.file(directory, 'sparse start and end', [sparseBytes - 3, random.bytes(3)])
  const pieces: Piece[] = []
  for (let index = 0; index < options.holes; index++) pieces.push(random.bytes(random.between(1, 4096)), 0)
  for (let index = 1; index < pieces.length; index += 2) pieces[index] = 12_288 - (pieces[index - 1] as Uint8Array).length
  built.file(directory, 'holes', pieces)
  const unaligned: Piece[] = []
  for (let index = 0; index < 2000; index++) unaligned.push(random.bytes(random.between(1, 6000)), random.between(1, 30_000))
  built.file(directory, 'holes that are not whole blocks', unaligned)
}

function addCrowds(built: MemoryTree, random: Random, options: TortureOptions): void {
  const crowd = built.directory(0, 'crowd')
  for (let index = 0; index < options.crowd; index++) {
    built.file(crowd, `${index}-${'x'.repeat(index % 40)}`, index % 10 === 0 ? [random.bytes(8)] : [], { mtimeSeconds: 1_000_000_000 + index })
  }
  const nested = built.directory(0, 'crowd of directories')
  for (let index = 0; index < options.subdirectories; index++) built.directory(nested, `directory-${index}`)
}

/** Ordinary files in ordinary directories, up to the number that was asked for. */
function addFill(built: MemoryTree, random: Random, count: number): void {
  const directories = [built.directory(0, 'ordinary')]
  for (let index = 1; index < count; index++) {
    if (index % 20 === 0) directories.push(built.directory(random.pick(directories), `directory ${index}`))
    else built.file(directories[directories.length - 1], `file ${index}`, index % 3 === 0 ? [] : [random.bytes(random.between(1, 2000))], { uid: 1000 + (index % 5), gid: 1000 })
  }
}
