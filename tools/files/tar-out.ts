/**
 * TarOut: files of a Filesystem as a tar archive on a stream, with all that pax can hold.
 */
import type { Writable } from 'node:stream'
import { once } from 'node:events'
import { printPath } from '@varve/composer/merge/print-path.ts'
import { VarveError, isVarveError } from '@varve/images/errors.ts'
import { allPieces, dataPieces, mergedExtents } from '@varve/images/filesystems/file-content.ts'
import type { FileNode, Filesystem } from '@varve/images/filesystems/filesystem.ts'
import { walk } from '@varve/images/filesystems/walk.ts'
import { TAR_END, tarContentBytes, tarHead, tarPadding } from '@varve/images/formats/tar-writer.ts'
import type { TarMember } from '@varve/images/formats/tar-writer.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import type { CopyFigures } from './copy-out.ts'

const TYPES: Partial<Record<Kind, string>> = {
  [Kind.file]: '0', [Kind.link]: '1', [Kind.symlink]: '2', [Kind.character]: '3', [Kind.whiteout]: '3', [Kind.block]: '4', [Kind.directory]: '5', [Kind.fifo]: '6',
}

/** Writes the archive; the stream is left open. @param name of the node in the archive, '' for a directory whose files are its members @throws as Filesystem.node */
export async function writeTar(files: Filesystem, start: FileNode, { name, to, signal }: { name: string; to: Writable; signal: AbortSignal }): Promise<CopyFigures> {
  const figures: CopyFigures = { files: 0, bytes: 0, leftOut: [], attributesLost: 0 }
  const first = new Map<number, string>()
  const write = async (bytes: Uint8Array): Promise<void> => {
    signal.throwIfAborted()
    if (bytes.length > 0 && !to.write(bytes)) await once(to, 'drain', { signal })
  }
  for await (const { path, node } of walk(files, { from: start.id, sorted: true })) {
    const below = [name, path].filter((part) => part !== '').join('/')
    try {
      const member = await memberOf(files, node, below === '' ? '.' : below, first)
      await write(tarHead(member))
      if (member.type === '0') figures.bytes += await writeContent(files, node, member, write)
      figures.files++
      if (node.links > 1 && node.kind !== Kind.directory && !first.has(node.id)) first.set(node.id, below)
    } catch (cause) {
      // Before anything of it was written.
      if (!isVarveError(cause, 'SOURCE_UNSUPPORTED')) throw cause
      figures.leftOut.push({ path: printPath(below), why: cause.message })
    }
  }
  await write(TAR_END)
  return figures
}

async function memberOf(files: Filesystem, node: FileNode, path: string, first: ReadonlyMap<number, string>): Promise<TarMember> {
  const { kind, mode, uid, gid, modified, deviceMajor, deviceMinor } = node
  const type = TYPES[kind]
  if (type === undefined) throw new VarveError('SOURCE_UNSUPPORTED', 'tar archives hold no sockets')
  const member = { path: kind === Kind.directory ? `${path}/` : path, type, mode, uid, gid, modified, sizeBytes: 0, deviceMajor, deviceMinor, xattrs: [] }
  const other = first.get(node.id)
  if (other !== undefined) return { ...member, type: '1', target: other }
  const xattrs = await files.xattrs(node.id)
  if (kind === Kind.symlink || kind === Kind.link) return { ...member, xattrs, target: Buffer.from(await files.target(node.id)).toString('latin1') }
  if (kind !== Kind.file) return { ...member, xattrs }
  const data = mergedExtents(await files.extents(node.id))
  const holes = node.sizeBytes - data.reduce((sum, { length }) => sum + length, 0)
  return { ...member, xattrs, sizeBytes: node.sizeBytes, ...(holes > 0 ? { data } : {}) }
}

/** @returns bytes of the content */
async function writeContent(files: Filesystem, node: FileNode, member: TarMember, write: (bytes: Uint8Array) => Promise<void>): Promise<number> {
  if (member.data !== undefined) for await (const { bytes } of dataPieces(files, node)) await write(Buffer.from(bytes))
  else for await (const bytes of allPieces(files, node, { offset: 0, length: node.sizeBytes })) await write(Buffer.from(bytes))
  const length = tarContentBytes(member)
  await write(tarPadding(length))
  return length
}
