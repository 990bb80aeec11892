/**
 * Filesystem: what is read of a file tree, wherever it is kept: on a volume of a disk (ext4, NTFS, FAT, exFAT) or in the store (a tree).
 * Imports, mounts and commands on files know only this. Read-only. All calls of one filesystem may run side by side.
 * One conformance suite holds for all implementations: test/images/filesystems/conformance.ts.
 */
import type { Kind, Xattr } from '../tree/tree.ts'

/** At once where it is at hand. */
export type Answer<T> = T | Promise<T>

export interface Timestamp {
  /** Whole seconds since 1970, rounded down; negative before. */
  seconds: number
  /** 0 .. 999,999,999, added to seconds. */
  nanoseconds: number
}

/** A file, directory, symlink or special file: what names stand for. */
export interface FileNode {
  /** Positive, the same for all names of one file (hard links) as long as the filesystem is open. */
  id: number
  kind: Kind
  /** Permissions with setuid, setgid and sticky: 0 .. 07777. Filesystems that have none give 0755 for directories and 0644 for files, or 0555 and 0444 for what is marked read-only. */
  mode: number
  uid: number
  gid: number
  /** Bytes of a file's content, or of a symlink's target; 0 for all else. */
  sizeBytes: number
  /** Names that stand for it; 1 for a directory. */
  links: number
  modified: Timestamp
  accessed: Timestamp
  /** When the node itself was changed last. */
  changed: Timestamp
  /** Of device nodes, else 0. */
  deviceMajor: number
  deviceMinor: number
}

export interface DirectoryEntry {
  /** Bytes in latin1, one character a byte; UTF-8 for what the disk has in UTF-16. Never '', `.`, `..`, and without slashes and NULs. */
  name: string
  /** Of the FileNode. */
  id: number
}

/** A part of a file's content that is not a hole. */
export interface FileExtent {
  /** Bytes from the start of the file. */
  fileOffset: number
  /** Bytes, at least 1; the last extent may not reach beyond the file's size. */
  length: number
  /** Bytes from the start of the volume where exactly these bytes stand; undefined if they stand nowhere as they are (compressed, inside metadata, in a journal, in chunks). */
  diskOffset?: number
}

export interface Filesystem {
  /** As the field spells it: `ext4`, `ntfs`, `fat12`, `fat16`, `fat32`, `exfat`, `tree`. */
  readonly type: string
  /** Unit of allocation, bytes; a power of two. */
  readonly blockBytes: number
  /** Of the whole filesystem, for statfs. */
  readonly sizeBytes: number
  readonly root: number

  /** @throws VarveError FORMAT_INVALID, LIMIT_EXCEEDED, CHUNK_CORRUPT, CHUNK_MISSING; RangeError for an id that was never given */
  node(id: number): Answer<FileNode>
  /** All names of a directory, in any order that stays the same. @throws as `node` */
  list(directory: number): Answer<readonly DirectoryEntry[]>
  /** Id of a name in a directory, or undefined. Names are compared as the filesystem does (NTFS and FAT: without regard to case). @throws as `node` */
  child(directory: number, name: string): Answer<number | undefined>
  /** Target of a symlink, raw bytes. @throws as `node` */
  target(symlink: number): Answer<Uint8Array>
  /** Sorted by name. What a filesystem of Windows has beside content and POSIX has no place for is under `user.` (docs/filesystems.md). @throws as `node` */
  xattrs(id: number): Answer<readonly Xattr[]>
  /** Where a file's content is, ordered and disjoint; what lies between is holes, which read as zeroes. @throws as `node`, FORMAT_UNSUPPORTED for what is not read (encrypted, ...) */
  extents(file: number): Answer<readonly FileExtent[]>
  /** Fills all of `into` with the content at `offset`; the range is inside the file. @throws as `extents` */
  read(file: number, into: Uint8Array, offset: number): void | Promise<void>
}

/** A part of a volume, bytes. */
export interface VolumeRange {
  offset: number
  length: number
}

/** A filesystem that lies on a volume. */
export interface VolumeFilesystem extends Filesystem {
  /** What its users call it, '' if nothing. */
  readonly label: string
  /** As the field writes it (8-4-4-4-12 for ext4, hexadecimal serial numbers for the others). */
  readonly uuid: string
  /** True if it was not unmounted cleanly. ext4: its journal is replayed in memory; others are read as they stand. */
  readonly unclean: boolean
  /** What nothing uses, in order, disjoint: its content need not be kept. @throws as `node` */
  unused(): AsyncIterable<VolumeRange>
}
