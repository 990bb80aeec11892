/**
 * Archive members: puts the members of a tar archive into a path tree and their contents into the store, with the whiteouts of OCI layers if it is one.
 * OCI Image Format Specification, layer.md.
 */
import { VarveError, isVarveError } from '@varve/images/errors.ts'
import { aclFromText } from '@varve/images/formats/posix-acl.ts'
import type { IdOfName } from '@varve/images/formats/posix-acl.ts'
import type { TarMember, TarReader } from '@varve/images/formats/tar-reader.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import type { Xattr } from '@varve/images/tree/tree.ts'
import { NameColumn } from '@varve/images/tree/name-column.ts'
import type { InodeInit, TreeBuilder } from '@varve/images/tree/tree-builder.ts'
import type { Workspace } from '@varve/images/tree/workspace.ts'
import { printPath } from '../merge/print-path.ts'
import { breathe } from './import-context.ts'
import type { ImportContext } from './import-context.ts'
import { keptXattrs } from './kept-xattrs.ts'
import { localIds } from './local-ids.ts'
import type { PathTree } from './path-tree.ts'
import type { StreamContent } from './stream-content.ts'

const KINDS: Record<Exclude<TarMember['type'], 'link'>, Kind> = {
  file: Kind.file,
  directory: Kind.directory,
  symlink: Kind.symlink,
  character: Kind.character,
  block: Kind.block,
  fifo: Kind.fifo,
}

const WHITEOUT_PREFIX = '.wh.'
const OPAQUE_NAME = '.wh..wh..opq'
/** Other names of aufs: nothing of the image's. */
const AUFS_PREFIX = '.wh..wh.'

/** A directory that no member describes. */
export const IMPLICIT_DIRECTORY: InodeInit = { kind: Kind.directory, mode: 0o755, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanoseconds: 0 }
const WHITEOUT: InodeInit = { kind: Kind.whiteout, mode: 0, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanoseconds: 0 }

/** The scan lets others run after so long. */
const SLICE_MS = 8

export interface ArchiveMembersOptions {
  builder: TreeBuilder
  paths: PathTree
  content: StreamContent
  /** Borrowed, the builder's. */
  space: Workspace
  /** Names that begin with `.wh.`: plain names; deletions in what lies below in the same path tree; or whiteouts and opaque directories of the tree. */
  whiteouts: 'plain' | 'applied' | 'kept'
}

export class ArchiveMembers {
  readonly #context: ImportContext
  readonly #options: ArchiveMembersOptions
  readonly #idOfName: IdOfName = localIds()
  /** `kept`: paths that the layer deletes, directories that hide what is below. */
  readonly #deleted: NameColumn
  readonly #opaque: NameColumn

  constructor(context: ImportContext, options: ArchiveMembersOptions) {
    this.#context = context
    this.#options = options
    this.#deleted = new NameColumn(options.space)
    this.#opaque = new NameColumn(options.space)
  }

  /** Puts all members of an archive. */
  async putAll(reader: TarReader): Promise<void> {
    let sliceMs = performance.now()
    for (let member = await reader.next(); member !== undefined; member = await reader.next()) {
      await this.#put(member, reader)
      this.#context.progress.add(member.type === 'file' ? 1 : 0, member.sizeBytes)
      if (performance.now() - sliceMs < SLICE_MS) continue
      this.#context.pipeline.throwIfFailed()
      await breathe()
      sliceMs = performance.now()
    }
    this.#keepWhiteouts()
  }

  async #put(member: TarMember, reader: TarReader): Promise<void> {
    if (this.#options.whiteouts !== 'plain' && this.#isWhiteout(member.path)) return
    const { content } = this.#options
    const inode = this.#inode(member)
    if (inode === undefined || member.type !== 'file') return
    await content.add(inode, member, reader)
  }

  /** @returns the inode if the member has one of its own */
  #inode(member: TarMember): number | undefined {
    const { builder, paths } = this.#options
    try {
      const place = paths.locate(member.path)
      if (member.type === 'link') {
        this.#putLink(member)
        return undefined
      }
      const init = this.#init(member, KINDS[member.type])
      if (place.name === '') {
        if (init.kind !== Kind.directory) throw new VarveError('SOURCE_INVALID', 'is the root of the archive, but not a directory')
        builder.replaceInode(0, init)
        return undefined
      }
      const inode = builder.addInode(init)
      paths.put(place, inode)
      return inode
    } catch (error) {
      if (!isVarveError(error)) throw error
      throw new VarveError(error.code, `${printPath(member.path)} in the archive: ${error.message}`, { cause: error })
    }
  }

  /** Another name of an inode; of one that is not in the archive, a link to its path. */
  #putLink(member: TarMember): void {
    const { builder, paths } = this.#options
    const known = paths.find(member.target)
    if (known >= 0 && builder.kind(known) === Kind.directory) throw new VarveError('SOURCE_INVALID', 'is a hard link to a directory')
    const place = paths.locate(member.path)
    if (place.name === '') throw new VarveError('SOURCE_INVALID', 'is the root of the archive, but not a directory')
    if (known >= 0) {
      const at = paths.at(place)
      if (at < 0 || paths.inode(at) !== known) paths.put(place, known)
      return
    }
    const target = member.target.split('/').filter((name) => name !== '' && name !== '.').join('/')
    paths.put(place, builder.addInode({ ...this.#init(member, Kind.link), target: Uint8Array.from(Buffer.from(target, 'latin1')) }))
  }

  #init(member: TarMember, kind: Kind): InodeInit {
    const { mode, uid, gid, mtimeSeconds, mtimeNanoseconds } = member
    const init: InodeInit = { kind, mode, uid, gid, mtimeSeconds, mtimeNanoseconds, xattrs: this.#xattrs(member) }
    if (kind === Kind.symlink) init.target = Uint8Array.from(Buffer.from(member.target, 'latin1'))
    if (kind === Kind.character || kind === Kind.block) {
      init.deviceMajor = member.deviceMajor
      init.deviceMinor = member.deviceMinor
    }
    return init
  }

  #xattrs({ xattrs, accessAcl, defaultAcl }: TarMember): Xattr[] {
    const kept = keptXattrs(xattrs)
    if (accessAcl === undefined && defaultAcl === undefined) return kept
    const withAcls = kept.filter(({ name }) => !name.startsWith('system.'))
    for (const { name, text, isDefault } of [
      { name: 'system.posix_acl_access', text: accessAcl, isDefault: false },
      { name: 'system.posix_acl_default', text: defaultAcl, isDefault: true },
    ]) {
      const value = text === undefined ? undefined : aclFromText(text, { isDefault, idOfName: this.#idOfName })
      if (value !== undefined) withAcls.push({ name, value })
    }
    return withAcls
  }

  /** Takes note of it if the path is a whiteout's. */
  #isWhiteout(memberPath: string): boolean {
    const path = memberPath.replace(/\/+$/, '')
    const slash = path.lastIndexOf('/')
    const name = path.slice(slash + 1)
    if (!name.startsWith(WHITEOUT_PREFIX)) return false
    const directory = path.slice(0, slash + 1)
    const { paths, whiteouts } = this.#options
    if (name === OPAQUE_NAME) {
      if (whiteouts === 'applied') paths.hide(directory)
      else this.#opaque.push(directory)
    } else if (!name.startsWith(AUFS_PREFIX)) {
      const deletedName = name.slice(WHITEOUT_PREFIX.length)
      if (deletedName === '' || deletedName === '.' || deletedName === '..') throw new VarveError('SOURCE_INVALID', `${printPath(path)} in the archive is a whiteout of nothing`)
      const deleted = directory + deletedName
      if (whiteouts === 'applied') paths.delete(deleted)
      else this.#deleted.push(deleted)
    }
    return true
  }

  /** A name that the layer deletes below and has itself is one that it replaces; so is one that is below what the layer has as no directory. */
  #keepWhiteouts(): void {
    const { builder, paths } = this.#options
    for (let index = 0; index < this.#deleted.count; index++) {
      const path = this.#deleted.get(index)
      if (paths.isBlocked(path)) continue
      const place = paths.locate(path)
      const at = paths.at(place)
      if (at < 0) paths.put(place, builder.addInode(WHITEOUT))
      else if (builder.kind(paths.inode(at)) === Kind.directory) builder.setOpaque(paths.inode(at))
    }
    for (let index = 0; index < this.#opaque.count; index++) {
      const path = this.#opaque.get(index)
      if (paths.isBlocked(`${path}name`)) continue
      const directory = paths.directory(path)
      if (directory >= 0) builder.setOpaque(paths.inode(directory))
    }
    this.#deleted.clear()
    this.#opaque.clear()
  }
}
