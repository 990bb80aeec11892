/**
 * Random trees from a seed, for property tests: every kind of inode, names of any bytes, hard links, holes, shared chunks, attributes.
 */
import { digestOf } from '@varve/images/chunk/digest.ts'
import type { ChunkWriter } from '@varve/images/store/chunk-store.ts'
import { TreeBuilder } from '@varve/images/tree/tree-builder.ts'
import type { InodeInit } from '@varve/images/tree/tree-builder.ts'
import { HOLE, Kind } from '@varve/images/tree/tree.ts'
import type { Tree, Xattr } from '@varve/images/tree/tree.ts'
import type { Random } from '../../random.ts'

export interface RandomTreeOptions {
  /** Names besides the root; as many unless the directories are full. Default 100. */
  entries?: number
  /** Names from the root to the deepest entry, at most. Default 8. */
  depthMax?: number
  /** Kinds that occur besides directories. Default all. */
  kinds?: readonly Kind[]
  /**
   * Takes the content of the files, which is then real: the digests of the tree are those of chunks in the store.
   * Without it, sizes and digests are made up, and a chunk costs nothing.
   */
  writer?: ChunkWriter
  /** Largest chunk, bytes. Default 20,000. */
  chunkBytesMax?: number
  /** Most pieces of one file. Default 6. */
  piecesMax?: number
  /** Names and targets are of letters and digits, modes of directories let their owner in, times are what ext4 holds. Default false. */
  plain?: boolean
}

const ALL_KINDS = Object.values(Kind).filter((kind) => kind !== Kind.directory)
const HOLE_BYTES = 4096

/** A tree that is a function of the seed of `random` and the options. */
export function randomTree(random: Random, options: RandomTreeOptions = {}): Tree {
  return randomTreeBuilder(random, options).build()
}

/** The same before it is built, to add more by hand. */
export function randomTreeBuilder(random: Random, options: RandomTreeOptions = {}): TreeBuilder {
  const { entries = 100, depthMax = 8, kinds = ALL_KINDS } = options
  const content = new RandomContent(random, options)
  const builder = new TreeBuilder(randomInode(random, Kind.directory, options))
  const directories = [{ entry: 0, depth: 0, names: new Set<string>() }]
  const linkable: number[] = []
  for (let index = 0; index < entries; index++) {
    const { entry: parent, depth, names } = random.pick(directories)
    const name = randomName(random, options)
    if (names.has(name)) continue
    names.add(name)
    if (linkable.length > 0 && random.chance(0.1)) {
      builder.addEntry(parent, name, random.pick(linkable))
      continue
    }
    const kind = depth < depthMax - 1 && (kinds.length === 0 || random.chance(0.25)) ? Kind.directory : kinds.length === 0 ? undefined : random.pick(kinds)
    if (kind === undefined) continue
    const inode = builder.addInode(randomInode(random, kind, options))
    const entry = builder.addEntry(parent, name, inode)
    if (kind === Kind.directory) directories.push({ entry, depth: depth + 1, names: new Set() })
    else if (kind !== Kind.whiteout && kind !== Kind.link) linkable.push(inode)
    if (kind === Kind.file) content.give(builder, inode)
  }
  return builder
}

class RandomContent {
  readonly #random: Random
  readonly #options: RandomTreeOptions
  /** Chunks used so far, by their numbers in the builder. */
  readonly #chunks: { chunk: number; bytes: number }[] = []

  constructor(random: Random, options: RandomTreeOptions) {
    this.#random = random
    this.#options = options
  }

  give(builder: TreeBuilder, inode: number): void {
    const random = this.#random
    const chunks: number[] = []
    const lengths: number[] = []
    const pieces = random.below((this.#options.piecesMax ?? 6) + 1)
    for (let piece = 0; piece < pieces; piece++) {
      if (random.chance(0.2) && chunks.at(-1) !== HOLE) {
        chunks.push(HOLE)
        lengths.push(this.#holeBytes())
      } else {
        const { chunk, bytes } = this.#chunk(builder)
        chunks.push(chunk)
        lengths.push(bytes)
      }
    }
    builder.setContent(inode, chunks, lengths)
  }

  /** Real content has holes that a test can afford to read, on block boundaries only if what lies before them ends there. */
  #holeBytes(): number {
    const random = this.#random
    if (this.#options.writer !== undefined || this.#options.plain === true) return HOLE_BYTES * random.between(1, 50)
    return random.chance(0.5) ? random.between(1, 2 ** 20) : random.between(1, 2 ** 40)
  }

  #chunk(builder: TreeBuilder): { chunk: number; bytes: number } {
    const random = this.#random
    if (this.#chunks.length > 0 && random.chance(0.2)) return random.pick(this.#chunks)
    const { writer, chunkBytesMax = 20_000 } = this.#options
    const bytes = random.between(1, random.chance(0.5) ? Math.min(300, chunkBytesMax) : chunkBytesMax)
    const content = writer === undefined ? undefined : random.bytes(bytes)
    const digest = content === undefined ? digestOf(random.bytes(16)) : writer!.put(content)
    const made = { chunk: builder.addChunk(digest, bytes), bytes }
    this.#chunks.push(made)
    return made
  }
}

function randomInode(random: Random, kind: Kind, options: RandomTreeOptions): InodeInit {
  const { plain = false } = options
  const init: InodeInit = {
    kind,
    mode: plain && kind === Kind.directory ? 0o700 | random.below(0o1000) : random.below(0o10000),
    uid: randomId(random),
    gid: randomId(random),
    mtimeSeconds: randomSeconds(random, plain),
    mtimeNanoseconds: random.chance(0.5) ? 0 : random.below(1_000_000_000),
  }
  if (kind === Kind.directory) init.opaque = random.chance(0.1)
  if (kind === Kind.character || kind === Kind.block) {
    init.deviceMajor = plain ? random.below(4096) : random.uint32()
    init.deviceMinor = plain ? random.below(1 << 20) : random.uint32()
  }
  if (kind === Kind.symlink || kind === Kind.link) init.target = randomTarget(random, kind, options)
  if (random.chance(0.15) && kind !== Kind.whiteout) init.xattrs = randomXattrs(random, kind, plain)
  return init
}

function randomId(random: Random): number {
  return random.chance(0.6) ? 0 : random.chance(0.7) ? random.below(70_000) : random.uint32()
}

function randomSeconds(random: Random, plain: boolean): number {
  if (random.chance(0.5)) return 1_700_000_000 + random.below(1000)
  // ext4 with 256-byte inodes: 34 bits from the year 1901.
  if (plain) return random.below(2 ** 34) - 2 ** 31
  return random.chance(0.5) ? random.below(2 ** 33) - 2 ** 31 : (random.chance(0.5) ? 1 : -1) * random.below(2 ** 53)
}

const NAME_CHARACTERS = 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789'

function randomName(random: Random, { plain = false }: RandomTreeOptions): string {
  const length = random.chance(0.05) ? random.between(200, 255) : random.between(1, 20)
  let name = ''
  while (name.length < length) name += plain ? random.pick([...NAME_CHARACTERS]) : String.fromCharCode(random.between(1, 255))
  name = name.replaceAll('/', '-')
  return name === '.' || name === '..' ? 'dots' : name
}

function randomTarget(random: Random, kind: Kind, options: RandomTreeOptions): Uint8Array {
  if (kind === Kind.link) return bytesOf(Array.from({ length: random.between(1, 5) }, () => randomName(random, options)).join('/'))
  const length = random.pick([1, 20, 59, 60, 61, 255, 4095, random.between(1, 4095)])
  return bytesOf(Array.from({ length }, () => (options.plain === true ? random.pick([...NAME_CHARACTERS]) : String.fromCharCode(random.between(1, 255)))).join(''))
}

/** Bytes that are no Buffer, as a decoded tree has them. */
function bytesOf(latin1: string): Uint8Array {
  return Uint8Array.from(Buffer.from(latin1, 'latin1'))
}

function randomXattrs(random: Random, kind: Kind, plain: boolean): Xattr[] {
  // Linux lets only files and directories have attributes of users.
  const namespace = kind === Kind.file || kind === Kind.directory ? ['user.', 'trusted.', 'security.'] : ['trusted.', 'security.']
  const xattrs = new Map<string, Uint8Array>()
  for (let index = random.between(1, 4); index > 0; index--) {
    const name = random.pick(namespace) + random.pick(['a', 'comment', 'label', `n${random.below(5)}`, 'x'.repeat(random.between(1, 200))])
    const length = random.pick([0, 1, 20, random.below(200), random.below(plain ? 1000 : 5000)])
    xattrs.set(name, random.chance(0.5) ? new Uint8Array(length) : new Uint8Array(random.bytes(length)))
  }
  return [...xattrs].map(([name, value]) => ({ name, value }))
}
