/**
 * Random trees: everything that a tree can hold, in small, from a seed.
 */
import { Kind } from '@varve/images/tree/tree.ts'
import type { Xattr } from '@varve/images/tree/tree.ts'
import type { InodeInit } from '@varve/images/tree/tree-builder.ts'
import type { Random } from '../../random.ts'
import { MemoryTree } from './memory-tree.ts'
import type { BuiltTree, Piece } from './memory-tree.ts'

/** Times at which representations end. */
const EDGE_SECONDS = [0, -1, -(2 ** 31), 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 3 * 2 ** 32, 2 ** 34 - 2 ** 31 - 1]

export function randomTree(random: Random): BuiltTree {
  const built = new MemoryTree(randomInit(random, Kind.directory))
  const directories = [0]
  const linkable: { inode: number; links: number }[] = []
  const used = new Set<string>()
  const count = random.pick([3, 30, 300, 1500])
  for (let index = 0; index < count; index++) {
    const parent = random.pick(directories)
    const name = randomName(random)
    if (used.has(`${parent}/${name}`)) continue
    used.add(`${parent}/${name}`)
    const kind = random.pick([Kind.file, Kind.file, Kind.file, Kind.directory, Kind.symlink, Kind.character, Kind.block, Kind.fifo, Kind.socket])
    if (linkable.length > 0 && random.chance(0.05)) {
      built.link(parent, name, random.pick(linkable).inode)
    } else if (kind === Kind.directory) {
      const directory = built.directory(parent, name, randomInit(random, kind))
      directories.push(directory)
      // Now and then one that gets most of the names.
      if (random.chance(0.2)) for (let weight = 0; weight < 20; weight++) directories.push(directory)
    } else if (kind === Kind.file) {
      linkable.push({ inode: built.file(parent, name, randomPieces(random), randomInit(random, kind)), links: 1 })
    } else {
      linkable.push({ inode: built.add(parent, name, randomInit(random, kind)).inode, links: 1 })
    }
  }
  return built.build()
}

function randomInit(random: Random, kind: Kind): InodeInit {
  return {
    kind,
    mode: kind === Kind.symlink ? 0o777 : random.below(0o10000),
    uid: random.pick([0, 1000, 65535, 65536, 0xfffffffe, random.below(2 ** 31)]),
    gid: random.pick([0, 1000, 65536, random.below(2 ** 31)]),
    mtimeSeconds: random.chance(0.3) ? random.pick(EDGE_SECONDS) : randomSeconds(random),
    mtimeNanoseconds: random.pick([0, 1, 999_999_999, random.below(1_000_000_000)]),
    ...(kind === Kind.symlink ? { target: random.bytes(random.pick([1, 58, 59, 60, 61, 500, 4094, 4095])).map((byte) => byte || 1) } : {}),
    ...(kind === Kind.character || kind === Kind.block ? { deviceMajor: random.pick([1, 255, 256, 4095]), deviceMinor: random.pick([0, 255, 256, 0xfffff]) } : {}),
    xattrs: randomXattrs(random, kind),
  }
}

/** 1901 to 2446, without the years from 2310 to 2378, which e2fsck takes for mistakes of old kernels. */
function randomSeconds(random: Random): number {
  const seconds = random.between(-(2 ** 31), 2 ** 34 - 2 ** 31 - 1)
  return seconds >= 3 * 2 ** 32 - 2 ** 31 && seconds < 3 * 2 ** 32 ? seconds - 2 ** 32 : seconds
}

function randomXattrs(random: Random, kind: Kind): Xattr[] {
  if (random.chance(0.7)) return []
  const xattrs = new Map<string, Uint8Array>()
  const namespaces = kind === Kind.file || kind === Kind.directory ? ['user.', 'trusted.', 'security.'] : ['trusted.', 'security.']
  const count = random.pick([1, 1, 2, 5, 20])
  for (let index = 0; index < count; index++) {
    const name = random.pick(namespaces) + 'n'.repeat(random.pick([0, 0, 0, 3, 100])) + String(random.below(100))
    xattrs.set(name, random.bytes(random.pick([0, 1, 3, 4, 10, 30, 60, 100, random.chance(0.05) ? 3900 : 50, random.chance(0.03) ? random.between(4000, 65536) : 5])))
  }
  if (kind !== Kind.symlink && random.chance(0.3)) xattrs.set('system.posix_acl_access', aclBytes(random))
  if (kind === Kind.directory && random.chance(0.3)) xattrs.set('system.posix_acl_default', aclBytes(random))
  if (kind === Kind.file && random.chance(0.3)) xattrs.set('security.capability', Buffer.from('0100000200200000000000000000000000000000', 'hex'))
  // Many inodes with one set, as labels make them.
  if (random.chance(0.3)) return [{ name: 'security.selinux', value: Buffer.from(`system_u:object_r:${'long_'.repeat(20)}t:s0\0`) }]
  return [...xattrs].map(([name, value]) => ({ name, value }))
}

/** An access control list as the system call has it, with one named user and some named groups. */
export function aclBytes(random: Random): Buffer {
  const entries: [number, number, number][] = [[0x01, random.below(8), 0xffffffff], [0x02, random.below(8), random.below(100_000)], [0x04, random.below(8), 0xffffffff]]
  let group = 0
  for (let more = random.below(4); more > 0; more--) entries.push([0x08, random.below(8), (group += random.between(1, 1000))])
  entries.push([0x10, 7, 0xffffffff], [0x20, random.below(8), 0xffffffff])
  const bytes = Buffer.alloc(4 + entries.length * 8)
  bytes.writeUInt32LE(2, 0)
  entries.forEach(([tag, permissions, id], index) => {
    bytes.writeUInt16LE(tag, 4 + index * 8)
    bytes.writeUInt16LE(permissions, 6 + index * 8)
    bytes.writeUInt32LE(id, 8 + index * 8)
  })
  return bytes
}

function randomName(random: Random): string {
  const length = random.pick([1, 2, 8, 8, 20, 20, 60, 254, 255])
  let name = ''
  const ascii = random.chance(0.7)
  while (name.length < length) {
    const byte = ascii ? random.between(0x61, 0x7a) : random.between(1, 255)
    if (byte !== 0x2f) name += String.fromCharCode(byte)
  }
  return name === '.' || name === '..' ? 'dots' : name
}

function randomPieces(random: Random): Piece[] {
  const pieces: Piece[] = []
  const count = random.pick([0, 1, 1, 1, 2, 5, random.chance(0.1) ? 600 : 3])
  for (let index = 0; index < count; index++) {
    const length = random.pick([1, 100, 4095, 4096, 4097, 8192, random.between(1, 70_000)])
    pieces.push(random.chance(0.4) ? random.pick([1, 4095, 4096, 8192, 12_288, random.between(1, 10_000_000)]) : random.bytes(count > 100 ? random.between(1, 5000) : length))
  }
  return pieces
}
