/**
 * Writes a tree that was built in memory as a directory on disk, so that import, which reads disks, is tried with it too.
 * torture-source.py does the writing, with calls that Node does not have: extended attributes, nanoseconds, devices, paths of any length.
 */
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { HOLE, Kind } from '@varve/images/tree/tree.ts'
import type { BuiltTree } from '../images/filesystems/memory-tree.ts'

const FILESYSTEM_BYTES = 4 * 2 ** 30

/**
 * A filesystem of ext4 in a sparse file, to write a large directory in: without a journal it is made and thrown away in a moment,
 * and it holds every attribute that Linux allows.
 */
export class SourceFilesystem implements Disposable {
  readonly directory: string
  readonly #image: string

  /** @param place a path that does not exist; the directory, and the image beside it */
  constructor(place: string) {
    this.directory = place
    this.#image = `${place}.ext4`
    writeFileSync(this.#image, '')
    truncateSync(this.#image, FILESYSTEM_BYTES)
    execFileSync('mke2fs', ['-q', '-t', 'ext4', '-I', '256', '-N', '400000', '-O', '^has_journal,ea_inode', '-E', 'lazy_itable_init=1', this.#image])
    mkdirSync(place)
    execFileSync('mount', ['-o', 'loop,noinit_itable', this.#image, place])
  }

  [Symbol.dispose](): void {
    execFileSync('umount', [this.directory])
    rmSync(this.#image)
  }
}

/** What mknod(2) makes of a kind; of others the writer knows by their fields. */
const TYPE_BITS: Partial<Record<number, number>> = {
  [Kind.character]: 0o020000,
  [Kind.block]: 0o060000,
  [Kind.fifo]: 0o010000,
  [Kind.socket]: 0o140000,
}

/** What became of it. */
export interface WrittenDirectory {
  entries: number
  xattrs: number
  /** Attributes that the filesystem of `directory` cannot hold. */
  xattrsRefused: number
}

/** @param directory is made here */
export function writeDirectory(built: BuiltTree, directory: string): WrittenDirectory {
  const script = path.join(import.meta.dirname, 'torture-source.py')
  const { status, stdout, stderr } = spawnSync('/usr/bin/python3', [script, directory], { input: lines(built), encoding: 'utf8', maxBuffer: 1 << 20 })
  if (status !== 0) throw new Error(`${script} ended with ${status}: ${stderr}`)
  return JSON.parse(stdout) as WrittenDirectory
}

/** One line of JSON for each entry, directories before what is in them; names and targets in latin1, other bytes in base64. */
function lines(built: BuiltTree): string {
  const { tree } = built
  const links = tree.linkCounts()
  const result: string[] = []
  for (let entry = 0; entry < tree.entryCount; entry++) {
    const inode = tree.inode[entry]
    const target = tree.targets.get(inode)
    result.push(JSON.stringify({
      parent: tree.parent[entry],
      name: tree.names[entry],
      inode,
      linked: links[inode] > 1,
      children: tree.childCount[entry],
      directory: tree.kind[inode] === Kind.directory,
      target: target && Buffer.from(target).toString('latin1'),
      type: TYPE_BITS[tree.kind[inode]],
      device: [tree.deviceMajor[inode], tree.deviceMinor[inode]],
      mode: tree.mode[inode],
      owner: [tree.uid[inode], tree.gid[inode]],
      time: [tree.mtimeSeconds[inode], tree.mtimeNanoseconds[inode]],
      xattrs: tree.xattrSets[tree.xattrSet[inode]].map(({ name, value }) => [name, Buffer.from(value).toString('base64')]),
      pieces: pieces(built, inode),
    }))
  }
  return result.join('\n')
}

/** Content in base64, or the length of a hole. */
function pieces({ tree, content }: BuiltTree, inode: number): (string | number)[] {
  const first = tree.firstPiece[inode]
  return Array.from({ length: tree.pieceCount[inode] }, (_, index) => {
    const chunk = tree.pieceChunk[first + index]
    return chunk === HOLE ? tree.pieceBytes[first + index] : Buffer.from(content(chunk)).toString('base64')
  })
}
