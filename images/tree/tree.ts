/**
 * Tree: the manifest of a file tree, in memory, in columns. Immutable. Read by tree-format.ts from what tree-encoder.ts writes.
 *
 * A tree has *entries* (names) and *inodes* (what the names stand for); hard links are entries that share an inode.
 * Entries are ordered breadth first, and by the bytes of their names within a directory, so that the children of a directory
 * are neighbours: a path is found by binary search without reading the rest.
 * Inodes, chunks and attribute sets are numbered in the order in which the entries first use them, so that
 * one content has one encoding, whatever order it was built in.
 */

/** What an inode is. `whiteout`: the name is deleted below. `link`: a hard link to a path (`target`) that an upper layer takes from those below it. */
export const Kind = {
  file: 1,
  directory: 2,
  symlink: 3,
  character: 4,
  block: 5,
  fifo: 6,
  socket: 7,
  whiteout: 8,
  link: 9,
} as const
export type Kind = (typeof Kind)[keyof typeof Kind]

/** In `pieceChunk`: the piece is a hole (reads as zeroes, not allocated). */
export const HOLE = 0xffffffff

export interface Xattr {
  /** Full name with its namespace, as bytes in latin1: `user.comment`, `security.capability`, `system.posix_acl_access`. */
  name: string
  value: Uint8Array
}

/** The columns of a tree; see the fields of Tree. */
export interface TreeColumns {
  parent: Uint32Array
  inode: Uint32Array
  firstChild: Uint32Array
  childCount: Uint32Array
  names: string[]
  kind: Uint8Array
  mode: Uint16Array
  uid: Uint32Array
  gid: Uint32Array
  mtimeSeconds: Float64Array
  mtimeNanoseconds: Uint32Array
  opaque: Uint8Array
  sizeBytes: Float64Array
  deviceMajor: Uint32Array
  deviceMinor: Uint32Array
  xattrSet: Uint32Array
  targets: Map<number, Uint8Array>
  firstPiece: Uint32Array
  pieceCount: Uint32Array
  pieceChunk: Uint32Array
  pieceBytes: Float64Array
  chunkDigests: Uint8Array
  chunkBytes: Uint32Array
  xattrSets: Xattr[][]
}

export class Tree {
  // Columns by entry. Entry 0 is the root directory; its name is empty, its parent is itself.
  /** Entry of the directory that holds the name. */
  readonly parent: Uint32Array
  /** Inode that the name stands for. */
  readonly inode: Uint32Array
  /** For a directory: its first child; children are `firstChild .. firstChild + childCount`. */
  readonly firstChild: Uint32Array
  readonly childCount: Uint32Array
  /** Name without path, its bytes in latin1: one character a byte, compares as the bytes do. */
  readonly names: string[]

  // Columns by inode.
  readonly kind: Uint8Array
  /** Permissions with setuid, setgid and sticky: 0 .. 07777. */
  readonly mode: Uint16Array
  readonly uid: Uint32Array
  readonly gid: Uint32Array
  /** Whole seconds since 1970, rounded down; negative before. */
  readonly mtimeSeconds: Float64Array
  /** 0 .. 999,999,999, added to mtimeSeconds. */
  readonly mtimeNanoseconds: Uint32Array
  /** 1 for a directory that hides what lies below it. */
  readonly opaque: Uint8Array
  /** Bytes of a file; 0 for all else. The pieces of a file add up to it. */
  readonly sizeBytes: Float64Array
  readonly deviceMajor: Uint32Array
  readonly deviceMinor: Uint32Array
  /** Index into xattrSets; 0 is the empty set. */
  readonly xattrSet: Uint32Array
  /** By inode, of symlinks and links only: target, raw bytes. */
  readonly targets: Map<number, Uint8Array>
  /** For a file: its first piece; pieces are `firstPiece .. firstPiece + pieceCount`, in file order, not empty. */
  readonly firstPiece: Uint32Array
  readonly pieceCount: Uint32Array

  // Columns by piece: a whole chunk, or a hole.
  /** Chunk number, or HOLE. */
  readonly pieceChunk: Uint32Array
  /** Bytes; equals chunkBytes of the chunk. */
  readonly pieceBytes: Float64Array

  // Columns by chunk; each digest stands here once.
  /** 32 bytes a chunk. */
  readonly chunkDigests: Uint8Array
  readonly chunkBytes: Uint32Array

  /** Distinct sets of extended attributes, each sorted by name; set 0 is empty. */
  readonly xattrSets: Xattr[][]

  /** Takes the columns as they are: only tree-format.ts, which checks them, and the merge call this. */
  constructor(columns: TreeColumns) {
    this.parent = columns.parent
    this.inode = columns.inode
    this.firstChild = columns.firstChild
    this.childCount = columns.childCount
    this.names = columns.names
    this.kind = columns.kind
    this.mode = columns.mode
    this.uid = columns.uid
    this.gid = columns.gid
    this.mtimeSeconds = columns.mtimeSeconds
    this.mtimeNanoseconds = columns.mtimeNanoseconds
    this.opaque = columns.opaque
    this.sizeBytes = columns.sizeBytes
    this.deviceMajor = columns.deviceMajor
    this.deviceMinor = columns.deviceMinor
    this.xattrSet = columns.xattrSet
    this.targets = columns.targets
    this.firstPiece = columns.firstPiece
    this.pieceCount = columns.pieceCount
    this.pieceChunk = columns.pieceChunk
    this.pieceBytes = columns.pieceBytes
    this.chunkDigests = columns.chunkDigests
    this.chunkBytes = columns.chunkBytes
    this.xattrSets = columns.xattrSets
  }

  get entryCount(): number {
    return this.parent.length
  }

  get inodeCount(): number {
    return this.kind.length
  }

  get chunkCount(): number {
    return this.chunkBytes.length
  }

  /** 32 bytes, a view. */
  chunkDigest(chunk: number): Uint8Array {
    return this.chunkDigests.subarray(chunk * 32, chunk * 32 + 32)
  }

  /** Digest of a piece's chunk, a view; undefined for a hole. */
  pieceDigest(piece: number): Uint8Array | undefined {
    return this.pieceChunk[piece] === HOLE ? undefined : this.chunkDigest(this.pieceChunk[piece])
  }

  /** Bytes of all files, each inode once, holes included. */
  get contentBytes(): number {
    let sum = 0
    for (let inode = 0; inode < this.kind.length; inode++) sum += this.sizeBytes[inode]
    return sum
  }

  /** Entry of the name inside a directory, or -1. `name` is bytes in latin1. */
  child(directory: number, name: string): number {
    let low = this.firstChild[directory]
    let high = low + this.childCount[directory] - 1
    while (low <= high) {
      const middle = (low + high) >>> 1
      const at = this.names[middle]
      if (at === name) return middle
      if (at < name) low = middle + 1
      else high = middle - 1
    }
    return -1
  }

  /** Entry of a path such as `etc/passwd` (bytes in latin1; leading, trailing and doubled slashes do not matter), or -1. Links are not followed. */
  find(path: string): number {
    let entry = 0
    for (const name of path.split('/')) {
      if (name === '') continue
      entry = this.child(entry, name)
      if (entry < 0) return -1
    }
    return entry
  }

  /** Path of an entry, without a leading slash, bytes in latin1; '' for the root. */
  path(entry: number): string {
    const names: string[] = []
    for (let at = entry; at !== 0; at = this.parent[at]) names.push(this.names[at])
    return names.reverse().join('/')
  }

  /** Number of entries that share each inode, by inode; a directory counts once. */
  linkCounts(): Uint32Array {
    const counts = new Uint32Array(this.inodeCount)
    for (let entry = 0; entry < this.inode.length; entry++) counts[this.inode[entry]]++
    return counts
  }
}
