/**
 * A filesystem that says whatever a test wants, as damaged or hostile disks may: names, ids and targets are not looked at.
 */
import type { DirectoryEntry, FileExtent, FileNode, Filesystem } from '@varve/images/filesystems/filesystem.ts'
import { Kind } from '@varve/images/tree/tree.ts'

export type HostileNode = { kind: typeof Kind.directory; entries: DirectoryEntry[] } | { kind: typeof Kind.symlink; target: string } | { kind: typeof Kind.file; content: string } | { kind: typeof Kind.block | typeof Kind.character | typeof Kind.fifo }

export class HostileFilesystem implements Filesystem {
  readonly type = 'hostile'
  readonly blockBytes = 4096
  readonly sizeBytes = 1 << 20
  readonly root = 1
  readonly #nodes: ReadonlyMap<number, HostileNode>

  constructor(nodes: Record<number, HostileNode>) {
    this.#nodes = new Map(Object.entries(nodes).map(([id, node]) => [Number(id), node]))
  }

  node(id: number): FileNode {
    const node = this.#node(id)
    const time = { seconds: 1, nanoseconds: 2 }
    const sizeBytes = 'content' in node ? node.content.length : 'target' in node ? node.target.length : 0
    return { id, kind: node.kind, mode: 0o6777, uid: 0, gid: 0, sizeBytes, links: 1, modified: time, accessed: time, changed: time, deviceMajor: 8, deviceMinor: 0 }
  }

  list(directory: number): DirectoryEntry[] {
    const node = this.#node(directory)
    return 'entries' in node ? node.entries : []
  }

  child(directory: number, name: string): number | undefined {
    return this.list(directory).find((entry) => entry.name === name)?.id
  }

  target(symlink: number): Uint8Array {
    const node = this.#node(symlink)
    return Buffer.from('target' in node ? node.target : '')
  }

  xattrs(): [] {
    return []
  }

  extents(file: number): FileExtent[] {
    const { sizeBytes } = this.node(file)
    return sizeBytes === 0 ? [] : [{ fileOffset: 0, length: sizeBytes }]
  }

  read(file: number, into: Uint8Array, offset: number): void {
    const node = this.#node(file)
    if ('content' in node) into.set(Buffer.from(node.content).subarray(offset, offset + into.length))
  }

  #node(id: number): HostileNode {
    const node = this.#nodes.get(id)
    if (node === undefined) throw new RangeError(`no file has the id ${id}`)
    return node
  }
}
