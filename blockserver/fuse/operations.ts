/**
 * What the kernel asks of a mount, answered from filesystems and devices. It knows no descriptor: session.ts reads requests and writes answers.
 * Nodes need no bookkeeping: a node's id says which file of which filesystem it is, for as long as the mount lasts.
 */
import type { BlockDevice, DeviceView } from '@varve/images/device/block-device.ts'
import { VarveError } from '@varve/images/errors.ts'
import { extentAfter } from '@varve/images/filesystems/file-extents.ts'
import type { Answer, DirectoryEntry, FileNode } from '@varve/images/filesystems/filesystem.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import { DirectoryLists } from './directory-lists.ts'
import { EINVAL, ENODATA, ENOENT, ENOSPC, ENOSYS, ENXIO, EOPNOTSUPP, EPERM, ERANGE, EROFS, Refusal } from './errno.ts'
import { FilePlaces } from './file-places.ts'
import type { FilePlace } from './file-places.ts'
import type { MountedDirectories, MountedFilesystem } from './mounted-filesystem.ts'
import {
  ATTR_OUT_BYTES, AttributeBit, ENTRY_OUT_BYTES, FALLOCATE_MODES, FILE_ID_END, FILESYSTEMS_MAX, FallocateMode, MAJOR, MINOR_MIN, NAME_BYTES_MAX, OUT_HEADER_BYTES, Opcode, OpenFlag,
  PAGES_MAX, PAGE_BYTES, SEEK_DATA, SEEK_HOLE, WRITE_IN_BYTES, absentEntry, answer, direntBytes, initAnswer, initIn, openAnswer, putAttrOut, putDirent, putEntryOut, seekAnswer,
  sizeAnswer, statfsAnswer,
} from './protocol.ts'
import type { NodeAttributes, NodeId, Request } from './protocol.ts'

/** What the answer to a request holds. */
export interface Reply {
  /** Room for the header, and what follows it. */
  head: Buffer
  /** What comes after `head`. */
  parts?: readonly Uint8Array[]
  /** Called once it is written. */
  release?: () => void
}

/** Reads from so many bytes on are answered from the memory of the volume, if it has any. */
const VIEW_BYTES_MIN = 32 << 10
/** Parts of an answer, besides its head. */
const VIEW_PARTS_MAX = 1000
const READ_BYTES_MAX = PAGES_MAX * PAGE_BYTES
/** Larger answers are made in buffers that are used again. */
const SMALL_BYTES_MAX = 32 << 10
const BUFFERS_KEPT_MAX = 16
/** Names that one READDIR looks at, at most. */
const ENTRIES_AT_ONCE_MAX = 4096
const ZEROES = Buffer.alloc(256 << 10)

const CHANGES: ReadonlySet<number> = new Set([
  Opcode.symlink, Opcode.mknod, Opcode.mkdir, Opcode.unlink, Opcode.rmdir, Opcode.rename, Opcode.rename2, Opcode.link, Opcode.create, Opcode.tmpfile, Opcode.setxattr, Opcode.removexattr,
])

interface Shown extends MountedFilesystem {
  readonly number: number
  readonly places: FilePlaces
}

export class Operations {
  readonly #shown: Shown[] = []
  readonly #directories: MountedDirectories | undefined
  /** By name; number of the filesystem. */
  readonly #opened = new Map<string, Promise<number | undefined>>()
  readonly #lists = new DirectoryLists()
  readonly #buffers: Buffer[] = []
  readonly #hasDevices: boolean

  /** What is mounted is borrowed. */
  constructor(root: MountedFilesystem, directories?: MountedDirectories) {
    this.#add(root)
    this.#directories = directories
    this.#hasDevices = root.device !== undefined
  }

  /** Bytes of the largest request. */
  get requestBytesMax(): number {
    return 2 * PAGE_BYTES + (this.#hasDevices ? READ_BYTES_MAX : PAGE_BYTES)
  }

  /**
   * Answers a request that has an answer.
   * @throws Refusal, VarveError; RangeError for a file that was never shown
   */
  handle(request: Request): Answer<Reply> {
    switch (request.opcode) {
      case Opcode.lookup: return this.#lookup(request)
      case Opcode.getattr: return this.#getattr(request)
      case Opcode.read: return this.#read(request)
      case Opcode.readdirplus: return this.#readdir(request, true)
      case Opcode.readdir: return this.#readdir(request, false)
      case Opcode.readlink: return this.#readlink(request)
      case Opcode.getxattr: return this.#getxattr(request)
      case Opcode.listxattr: return this.#listxattr(request)
      case Opcode.lseek: return this.#lseek(request)
      case Opcode.statfs: return this.#statfs(request)
      case Opcode.open: return this.#open(request)
      case Opcode.write: return this.#write(request)
      case Opcode.fsync: return this.#fsync(request)
      case Opcode.fallocate: return this.#fallocate(request)
      case Opcode.setattr: return this.#setattr(request)
      case Opcode.init: return init(request, this.#hasDevices ? READ_BYTES_MAX : PAGE_BYTES)
      case Opcode.destroy:
      case Opcode.release:
      case Opcode.syncfs: return empty()
    }
    throw new Refusal(CHANGES.has(request.opcode) ? (this.#hasDevices ? EPERM : EROFS) : ENOSYS)
  }

  #add(filesystem: MountedFilesystem): number {
    const number = this.#shown.length
    if (number === FILESYSTEMS_MAX) throw new VarveError('LIMIT_EXCEEDED', `a mount of more than ${FILESYSTEMS_MAX} filesystems`)
    this.#shown.push({ files: filesystem.files, volume: filesystem.volume, device: filesystem.device?.bind(filesystem), number, places: new FilePlaces(filesystem.files) })
    return number
  }

  #target({ node }: Request): { shown: Shown; id: number } {
    const shown = this.#shown.at(node.filesystem)
    if (shown === undefined || node.filesystem >= this.#shown.length) throw new RangeError(`there is no filesystem ${node.filesystem}`)
    return { shown, id: exchanged(shown, node.id) }
  }

  #lookup(request: Request): Answer<Reply> {
    const { shown, id } = this.#target(request)
    const name = request.name()
    const child = name.length > NAME_BYTES_MAX ? undefined : shown.files.child(id, name)
    const found = (target: number | undefined): Answer<Reply> => (target === undefined ? this.#lookupDirectory(shown, id, name) : this.#entry(shown, target))
    return after(child, found)
  }

  /** What the root has besides its files. */
  #lookupDirectory(shown: Shown, id: number, name: string): Answer<Reply> {
    const isPossible = shown.number === 0 && id === shown.files.root && name.startsWith('@') && this.#directories !== undefined
    if (!isPossible) return { head: absentEntry() }
    return this.#openDirectory(name).then((number) => {
      // Not to be remembered: it may come.
      if (number === undefined) throw new Refusal(ENOENT)
      const opened = this.#shown[number]
      return this.#entry(opened, opened.files.root)
    })
  }

  #openDirectory(name: string): Promise<number | undefined> {
    let opened = this.#opened.get(name)
    if (opened === undefined) {
      opened = this.#directories!.open(name.slice(1)).then((filesystem) => (filesystem === undefined ? undefined : this.#add(filesystem)))
      this.#opened.set(name, opened)
      const forget = (): boolean => this.#opened.delete(name)
      opened.then((number) => number === undefined && forget(), forget)
    }
    return opened
  }

  #entry(shown: Shown, id: number): Answer<Reply> {
    return after(shown.files.node(id), (node) => after(this.#attributes(shown, node), (attributes) => {
      const head = answer(ENTRY_OUT_BYTES)
      putEntryOut(head, OUT_HEADER_BYTES, nodeIdOf(shown, id), attributes)
      return { head }
    }))
  }

  #getattr(request: Request): Answer<Reply> {
    const { shown, id } = this.#target(request)
    return after(shown.files.node(id), (node) => after(this.#attributes(shown, node), attrReply))
  }

  #attributes(shown: Shown, node: FileNode): Answer<NodeAttributes> {
    const attributes = (allocatedBytes: number): NodeAttributes => ({ node, filesystem: shown.number, allocatedBytes, blockBytes: shown.files.blockBytes })
    if (node.kind !== Kind.file || node.sizeBytes === 0) return attributes(0)
    if (shown.device !== undefined) return attributes(node.sizeBytes)
    return after(shown.places.ofNode(node), (place) => attributes(place.allocatedBytes))
  }

  #readlink(request: Request): Answer<Reply> {
    const { shown, id } = this.#target(request)
    return after(shown.files.target(id), bytesReply)
  }

  #getxattr(request: Request): Answer<Reply> {
    const { shown, id } = this.#target(request)
    const room = request.u32(0)
    const name = request.name(8)
    return after(shown.files.xattrs(id), (xattrs) => {
      const found = xattrs.find((xattr) => xattr.name === name)
      if (found === undefined) throw new Refusal(ENODATA)
      return sizedReply(found.value, room)
    })
  }

  #listxattr(request: Request): Answer<Reply> {
    const { shown, id } = this.#target(request)
    return after(shown.files.xattrs(id), (xattrs) => sizedReply(Buffer.from(xattrs.map(({ name }) => `${name}\0`).join(''), 'latin1'), request.u32(0)))
  }

  #statfs(request: Request): Reply {
    return { head: statfsAnswer(this.#target(request).shown.files) }
  }

  /** Files without devices need no OPEN, and what the kernel has of them stays good. */
  #open(request: Request): Reply {
    if (!this.#hasDevices) throw new Refusal(ENOSYS)
    const device = this.#deviceOf(request)
    return { head: openAnswer(OpenFlag.directIo | (device.readOnly ? 0 : OpenFlag.parallelDirectWrites)) }
  }

  /** @throws Refusal */
  #deviceOf(request: Request): BlockDevice {
    const { shown, id } = this.#target(request)
    const device = shown.device?.(id)
    if (device === undefined) throw new Refusal(shown.device === undefined ? EROFS : EINVAL)
    return device
  }

  #read(request: Request): Answer<Reply> {
    const { shown, id } = this.#target(request)
    const offset = request.u64(8)
    const length = Math.min(request.u32(16), READ_BYTES_MAX)
    const device = shown.device?.(id)
    if (device !== undefined) return this.#readDevice(device, offset, Math.max(0, Math.min(length, device.sizeBytes - offset)))
    return after(shown.places.of(id), (place) => this.#readFile(shown, id, place, offset, Math.max(0, Math.min(length, place.sizeBytes - offset))))
  }

  #readDevice(device: BlockDevice, offset: number, length: number): Answer<Reply> {
    if (length === 0) return empty()
    const view = length >= VIEW_BYTES_MIN ? device.view?.(offset, length) : undefined
    if (view !== undefined && view.parts.length <= VIEW_PARTS_MAX) return { head: answer(0), parts: view.parts, release: () => view.release() }
    view?.release()
    return this.#copied(length, (into) => device.read(into, offset))
  }

  #readFile(shown: Shown, id: number, place: FilePlace, offset: number, length: number): Answer<Reply> {
    if (length === 0) return empty()
    const viewed = length >= VIEW_BYTES_MIN ? viewOfFile(shown, place, offset, length) : undefined
    return viewed ?? this.#copied(length, (into) => readFile(shown, id, place, into, offset))
  }

  /** An answer that is made in a buffer. */
  #copied(length: number, read: (into: Buffer) => void | Promise<void>): Answer<Reply> {
    if (length <= SMALL_BYTES_MAX) {
      const head = Buffer.allocUnsafe(OUT_HEADER_BYTES + length)
      return after(read(head.subarray(OUT_HEADER_BYTES)), () => ({ head }))
    }
    const buffer = this.#buffers.pop() ?? Buffer.allocUnsafeSlow(OUT_HEADER_BYTES + READ_BYTES_MAX)
    const release = (): void => {
      if (this.#buffers.length < BUFFERS_KEPT_MAX) this.#buffers.push(buffer)
    }
    const head = buffer.subarray(0, OUT_HEADER_BYTES + length)
    return after(read(head.subarray(OUT_HEADER_BYTES)), () => ({ head, release }))
  }

  #lseek(request: Request): Answer<Reply> {
    const { shown, id } = this.#target(request)
    const [offset, whence] = [request.u64(8), request.u32(16)]
    if (whence !== SEEK_DATA && whence !== SEEK_HOLE) throw new Refusal(EINVAL)
    const device = shown.device?.(id)
    if (device !== undefined) return { head: seekAnswer(seekInDevice(device, offset, whence)) }
    return after(shown.places.of(id), (place) => ({ head: seekAnswer(seekInFile(place, offset, whence)) }))
  }

  #readdir(request: Request, isPlus: boolean): Answer<Reply> {
    const { shown, id } = this.#target(request)
    const offset = request.u64(8)
    const room = Math.min(request.u32(16), READ_BYTES_MAX)
    return after(this.#lists.get(shown.number, id, () => shown.files.list(id)), (files) => {
      const entries = this.#entriesFrom(shown, id, files, { offset, room, perEntryBytes: isPlus ? ENTRY_OUT_BYTES : 0 })
      const nodes = entries.map((entry) => (entry.id === undefined ? undefined : nodeOrNothing(shown, entry.id)))
      return after(all(nodes), (found) => {
        const attributes = isPlus ? all(found.map((node) => (node === undefined ? undefined : attributesOrNothing(() => this.#attributes(shown, node))))) : []
        return after(attributes, (known) => direntsReply(shown, entries, { nodes: found, attributes: isPlus ? known : undefined }))
      })
    })
  }

  /** What of a directory fits into an answer. Offsets: 0 is `.`, 1 is `..`, then its files, then what the root has besides. */
  #entriesFrom(shown: Shown, id: number, files: readonly DirectoryEntry[], { offset, room, perEntryBytes }: { offset: number; room: number; perEntryBytes: number }): ListedEntry[] {
    const entries: ListedEntry[] = []
    const more = shown.number === 0 && id === shown.files.root ? (this.#directories?.names ?? []) : []
    const count = 2 + files.length + more.length
    let bytes = 0
    for (let at = offset; at < count && entries.length < ENTRIES_AT_ONCE_MAX; at++) {
      const file = files[at - 2] as DirectoryEntry | undefined
      const entry = at < 2 ? { name: at === 0 ? '.' : '..', directory: id } : file ?? { name: `@${more[at - 2 - files.length]}` }
      bytes += perEntryBytes + direntBytes(entry.name)
      if (bytes > room) break
      entries.push({ ...entry, next: at + 1 })
    }
    return entries
  }

  #write(request: Request): Answer<Reply> {
    const device = this.#deviceOf(request)
    const [offset, length] = [request.u64(8), request.u32(16)]
    const bytes = request.body.subarray(WRITE_IN_BYTES, WRITE_IN_BYTES + length)
    if (bytes.length !== length) throw new VarveError('PROTOCOL_INVALID', `FUSE: a WRITE of ${length} bytes has ${bytes.length}`)
    const fitting = Math.max(0, Math.min(length, device.sizeBytes - offset))
    // A disk does not grow; ENOSPC is what block devices say.
    if (fitting === 0) {
      if (length > 0) throw new Refusal(ENOSPC)
      return { head: sizeAnswer(0) }
    }
    return after(device.write(bytes.subarray(0, fitting), offset), () => ({ head: sizeAnswer(fitting) }))
  }

  #fsync(request: Request): Answer<Reply> {
    return after(this.#deviceOf(request).flush(), empty)
  }

  #fallocate(request: Request): Answer<Reply> {
    const device = this.#deviceOf(request)
    const [offset, length, mode] = [request.u64(8), request.u64(16), request.u32(24)]
    if (!FALLOCATE_MODES.has(mode) || device.readOnly) throw new Refusal(device.readOnly ? EROFS : EOPNOTSUPP)
    const fitting = Math.max(0, Math.min(length, device.sizeBytes - offset))
    if (fitting < length && (mode & FallocateMode.keepSize) === 0) throw new Refusal(EPERM)
    if (fitting === 0) return empty()
    return after((mode & FallocateMode.punchHole) !== 0 ? device.trim(offset, fitting) : device.writeZeroes(offset, fitting), empty)
  }

  /** Times of disks are not kept; all else of them stays as it is. */
  #setattr(request: Request): Answer<Reply> {
    const { shown, id } = this.#target(request)
    if (!this.#hasDevices) throw new Refusal(EROFS)
    const valid = request.u32(0)
    const device = shown.device?.(id)
    const keepsSize = (valid & AttributeBit.size) === 0 || (device !== undefined && request.u64(16) === device.sizeBytes)
    if ((valid & (AttributeBit.mode | AttributeBit.uid | AttributeBit.gid)) !== 0 || !keepsSize) throw new Refusal(EPERM)
    return this.#getattr(request)
  }
}

interface ListedEntry {
  name: string
  /** Undefined for what is not of the directory's filesystem. */
  id?: number
  /** Of `.` and `..`: the directory that is listed. */
  directory?: number
  /** Offset of the entry after it. */
  next: number
}

function init(request: Request, writeBytesMax: number): Reply {
  const asked = initIn(request)
  if (asked.major < MAJOR || (asked.major === MAJOR && asked.minor < MINOR_MIN)) {
    throw new VarveError('FORMAT_UNSUPPORTED', `the kernel speaks FUSE ${asked.major}.${asked.minor}; ${MAJOR}.${MINOR_MIN} (Linux 4.20) is needed`)
  }
  return { head: initAnswer(asked, writeBytesMax) }
}

/** A node's id on the wire and that of its file: alike, but the root of a mount is 1 there, and what would be 1 has the root's number. */
function exchanged({ number, files: { root } }: Shown, id: number): number {
  if (number !== 0) return id
  return id === root ? 1 : id === 1 ? root : id
}

/** @throws VarveError LIMIT_EXCEEDED */
function nodeIdOf(shown: Shown, id: number): NodeId {
  if (id >= FILE_ID_END) throw new VarveError('LIMIT_EXCEEDED', `file ${id} has a number above those that can be mounted`)
  return { filesystem: shown.number, id: exchanged(shown, id) }
}

/** A damaged node is listed; who looks at it learns what is wrong. */
function nodeOrNothing({ files }: Shown, id: number): Answer<FileNode | undefined> {
  return attributesOrNothing(() => files.node(id))
}

function attributesOrNothing<T>(read: () => Answer<T>): Answer<T | undefined> {
  try {
    const value = read()
    return value instanceof Promise ? value.catch(() => undefined) : value
  } catch {
    return undefined
  }
}

function direntsReply(shown: Shown, entries: readonly ListedEntry[], { nodes, attributes }: { nodes: readonly (FileNode | undefined)[]; attributes: readonly (NodeAttributes | undefined)[] | undefined }): Reply {
  const plusBytes = attributes === undefined ? 0 : ENTRY_OUT_BYTES
  const head = answer(entries.reduce((sum, { name }) => sum + plusBytes + direntBytes(name), 0))
  let at = OUT_HEADER_BYTES
  entries.forEach(({ name, id, directory, next }, index) => {
    const known = attributes?.[index]
    if (known !== undefined) putEntryOut(head, at, nodeIdOf(shown, id!), known)
    const kind = id === undefined ? Kind.directory : nodes[index]?.kind
    putDirent(head, at + plusBytes, { name, nodeId: { filesystem: shown.number, id: id ?? directory ?? FILE_ID_END - 1 }, next, kind })
    at += plusBytes + direntBytes(name)
  })
  return { head }
}

/** @returns undefined if the volume does not have it in its memory, or in too many parts */
function viewOfFile({ volume }: Shown, { extents }: FilePlace, offset: number, length: number): Reply | undefined {
  if (volume?.view === undefined) return undefined
  const views: DeviceView[] = []
  const parts: Uint8Array[] = []
  const release = (): void => views.forEach((view) => view.release())
  const end = offset + length
  try {
    for (let at = offset, index = extentAfter(extents, offset); at < end; ) {
      const extent = extents.at(index)
      const data = index < extents.length && extent !== undefined ? Math.max(at, extent.fileOffset) : end
      for (; at < Math.min(data, end); at += parts.at(-1)!.length) parts.push(ZEROES.subarray(0, Math.min(ZEROES.length, data - at, end - at)))
      if (at === end || extent === undefined) break
      const stop = Math.min(end, extent.fileOffset + extent.length)
      const view = extent.diskOffset === undefined ? undefined : volume.view(extent.diskOffset + at - extent.fileOffset, stop - at)
      if (view !== undefined) views.push(view)
      if (view === undefined || parts.length + view.parts.length > VIEW_PARTS_MAX) {
        release()
        return undefined
      }
      parts.push(...view.parts)
      at = stop
      index++
    }
    return { head: answer(0), parts, release }
  } catch (error) {
    release()
    throw error
  }
}

/** Fills all of `into`: from the volume where the content stands as it is, else by the filesystem. */
function readFile({ files, volume }: Shown, id: number, { extents }: FilePlace, into: Buffer, offset: number): void | Promise<void> {
  const pending: Promise<void>[] = []
  const end = offset + into.length
  for (let at = offset, index = extentAfter(extents, offset); at < end; index++) {
    const extent = index < extents.length ? extents[index] : undefined
    const data = Math.min(end, Math.max(at, extent?.fileOffset ?? end))
    into.fill(0, at - offset, data - offset)
    if (extent === undefined || data === end) break
    const stop = Math.min(end, extent.fileOffset + extent.length)
    const part = into.subarray(data - offset, stop - offset)
    const done = extent.diskOffset === undefined || volume === undefined ? files.read(id, part, data) : volume.read(part, extent.diskOffset + data - extent.fileOffset)
    if (done !== undefined) pending.push(done)
    at = stop
  }
  if (pending.length > 0) return Promise.all(pending).then(() => undefined)
}

/** @throws Refusal ENXIO at or behind the end, or where no data follows */
function seekInFile({ sizeBytes, extents }: FilePlace, offset: number, whence: number): number {
  if (offset >= sizeBytes) throw new Refusal(ENXIO)
  let index = extentAfter(extents, offset)
  if (whence === SEEK_DATA) {
    if (index === extents.length) throw new Refusal(ENXIO)
    return Math.max(offset, extents[index].fileOffset)
  }
  let at = offset
  for (; index < extents.length && extents[index].fileOffset <= at; index++) at = extents[index].fileOffset + extents[index].length
  return Math.min(at, sizeBytes)
}

/** As `seekInFile`. */
function seekInDevice(device: BlockDevice, offset: number, whence: number): number {
  if (offset >= device.sizeBytes) throw new Refusal(ENXIO)
  for (let at = offset; at < device.sizeBytes; ) {
    const extents = device.extents(at, device.sizeBytes - at, SEEK_EXTENTS)
    for (const extent of extents) {
      if ((extent.type === 'data') === (whence === SEEK_DATA)) return extent.offset
      at = extent.offset + extent.length
    }
  }
  if (whence === SEEK_DATA) throw new Refusal(ENXIO)
  return device.sizeBytes
}

/** Extents of a device that are looked at together. */
const SEEK_EXTENTS = 16

function attrReply(attributes: NodeAttributes): Reply {
  const head = answer(ATTR_OUT_BYTES)
  putAttrOut(head, OUT_HEADER_BYTES, attributes)
  return { head }
}

function bytesReply(bytes: Uint8Array): Reply {
  return { head: answer(0), parts: [bytes] }
}

/** The way of GETXATTR and LISTXATTR: without room, only the size is asked for. */
function sizedReply(bytes: Uint8Array, room: number): Reply {
  if (room === 0) return { head: sizeAnswer(bytes.length) }
  if (bytes.length > room) throw new Refusal(ERANGE)
  return bytesReply(bytes)
}

function empty(): Reply {
  return { head: answer(0) }
}

function after<A, B>(value: Answer<A>, next: (value: A) => Answer<B>): Answer<B> {
  return value instanceof Promise ? value.then(next) : next(value)
}

function all<T>(values: readonly Answer<T>[]): Answer<T[]> {
  return values.some((value) => value instanceof Promise) ? Promise.all(values) : (values as T[])
}
