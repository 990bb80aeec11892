/**
 * Files in memory that keep a log of every operation, and of what was made durable when, so that any point of the log can be taken for
 * a power cut: what was durable is there, and of the rest whatever a real disk may leave: each write whole, not at all, or some of its sectors;
 * each name as it was or as it became. Names change in order, as journaling file systems have it; content in any order.
 */
import type { OverlayFiles } from '@varve/images/device/overlay-files.ts'
import type { Random } from '../../random.ts'

const SECTOR_BYTES = 512
const PAGE_BYTES = 4096

/** A file's content; what is not in a page is zero. */
class Content {
  sizeBytes = 0
  readonly #pages = new Map<number, Buffer>()

  read(into: Uint8Array, offset: number): void {
    if (offset + into.length > this.sizeBytes) throw new Error('the file ends early')
    for (let at = 0; at < into.length;) {
      const from = (offset + at) % PAGE_BYTES
      const length = Math.min(into.length - at, PAGE_BYTES - from)
      const page = this.#pages.get((offset + at - from) / PAGE_BYTES)
      if (page === undefined) into.fill(0, at, at + length)
      else into.set(page.subarray(from, from + length), at)
      at += length
    }
  }

  write(bytes: Uint8Array, offset: number): void {
    this.sizeBytes = Math.max(this.sizeBytes, offset + bytes.length)
    for (let at = 0; at < bytes.length;) {
      const from = (offset + at) % PAGE_BYTES
      const index = (offset + at - from) / PAGE_BYTES
      const length = Math.min(bytes.length - at, PAGE_BYTES - from)
      let page = this.#pages.get(index)
      if (page === undefined) this.#pages.set(index, page = Buffer.alloc(PAGE_BYTES))
      page.set(bytes.subarray(at, at + length), from)
      at += length
    }
  }

  truncate(sizeBytes: number): void {
    const cut = sizeBytes % PAGE_BYTES
    for (const [index, page] of this.#pages) {
      if (index * PAGE_BYTES >= sizeBytes) this.#pages.delete(index)
      else if ((index + 1) * PAGE_BYTES > sizeBytes) page.fill(0, cut)
    }
    this.sizeBytes = sizeBytes
  }

  clone(): Content {
    const copy = new Content()
    copy.sizeBytes = this.sizeBytes
    for (const [index, page] of this.#pages) copy.#pages.set(index, Buffer.from(page))
    return copy
  }
}

/** A name's meaning: a file, by number, or a directory. */
type Entry = number | 'directory'

type Operation =
  | { kind: 'write'; file: number; bytes: Uint8Array; offset: number }
  | { kind: 'punch'; file: number; offset: number; length: number }
  | { kind: 'truncate'; file: number; sizeBytes: number }
  | { kind: 'synced'; file: number; until: number }
  | { kind: 'name'; path: string; entry: Entry }
  | { kind: 'rename'; from: string; to: string }
  | { kind: 'remove'; path: string }
  | { kind: 'names synced'; directory: string; until: number }

/** What survives a power cut; the start of the next history. */
export interface Remains {
  names: Map<string, Entry>
  contents: Map<number, Content>
  /** Of a process that was killed, where the system lives: all that it did is there, and what was not durable may still be lost. */
  living?: { start: Remains; log: Operation[]; incarnation: Uint8Array; nextFile: number }
}

export class PowerCutFiles implements OverlayFiles {
  readonly #start: Remains
  readonly #incarnation: Uint8Array
  readonly #names: Map<string, Entry>
  readonly #contents: Map<number, Content>
  readonly #log: Operation[]
  readonly #open = new Map<number, number>()
  readonly #random: Random
  /** Why a call fails now, if it does: asked before each. A write that fails may have been carried out in part. */
  fault: (call: keyof OverlayFiles, path: string) => Error | undefined = () => undefined
  readonly #paths = new Map<number, string>()
  #nextFile: number
  #nextDescriptor = 3

  constructor(random: Random, remains: Remains = { names: new Map([['/', 'directory'], ['/overlays', 'directory']]), contents: new Map() }) {
    this.#random = random
    const { living } = remains
    this.#start = living?.start ?? remains
    this.#log = living?.log ?? []
    this.#incarnation = living?.incarnation ?? random.bytes(32)
    this.#names = new Map(remains.names)
    this.#contents = new Map([...remains.contents].map(([file, content]) => [file, content.clone()]))
    this.#nextFile = living?.nextFile ?? Math.max(0, ...remains.contents.keys()) + 1
  }

  /** Operations so far: a moment of the history. */
  get moment(): number {
    return this.#log.length
  }

  open(path: string, mode: 'read' | 'write' | 'create'): number {
    this.#try('open', path)
    let entry = this.#names.get(path)
    if (entry === 'directory') throw new Error(`EISDIR: ${path}`)
    if (entry === undefined) {
      if (mode !== 'create' || this.#names.get(parentOf(path)) !== 'directory') throw Object.assign(new Error(`ENOENT: ${path}`), { code: 'ENOENT' })
      entry = this.#nextFile++
      this.#contents.set(entry, new Content())
      this.#names.set(path, entry)
      this.#log.push({ kind: 'name', path, entry })
    }
    this.#open.set(this.#nextDescriptor, entry)
    this.#paths.set(this.#nextDescriptor, path)
    return this.#nextDescriptor++
  }

  close(fd: number): void {
    this.#file(fd)
    this.#open.delete(fd)
    this.#try('close', fd)
  }

  sizeBytes(fd: number): number {
    return this.#contents.get(this.#file(fd))!.sizeBytes
  }

  isDevice(): boolean {
    return false
  }

  exists(path: string): boolean {
    return this.#names.has(path)
  }

  read(fd: number, into: Uint8Array, offset: number): void {
    this.#try('read', fd)
    this.#contents.get(this.#file(fd))!.read(into, offset)
  }

  write(fd: number, bytes: Uint8Array, offset: number): void {
    const file = this.#file(fd)
    const fault = this.fault('write', this.#paths.get(fd)!)
    if (fault !== undefined) bytes = bytes.subarray(0, this.#random.pick([0, SECTOR_BYTES * this.#random.below(Math.ceil(bytes.length / SECTOR_BYTES)), bytes.length]))
    this.#contents.get(file)!.write(bytes, offset)
    this.#log.push({ kind: 'write', file, bytes: Uint8Array.from(bytes), offset })
    if (fault !== undefined) throw fault
  }

  truncate(fd: number, sizeBytes: number): void {
    this.#try('truncate', fd)
    const file = this.#file(fd)
    this.#contents.get(file)!.truncate(sizeBytes)
    this.#log.push({ kind: 'truncate', file, sizeBytes })
  }

  punch(fd: number, offset: number, length: number): boolean {
    this.#try('punch', fd)
    const file = this.#file(fd)
    const content = this.#contents.get(file)!
    content.write(new Uint8Array(Math.min(length, content.sizeBytes - offset)), offset)
    this.#log.push({ kind: 'punch', file, offset, length })
    return true
  }

  allocate(fd: number): boolean {
    this.#try('allocate', fd)
    return true
  }

  async sync(fd: number): Promise<void> {
    const file = this.#file(fd)
    const until = this.#log.length
    await this.#wait()
    this.#try('sync', fd)
    this.#log.push({ kind: 'synced', file, until })
  }

  makeDirectory(path: string): void {
    this.#try('makeDirectory', path)
    if (this.#names.has(path)) return
    if (!this.#names.has(parentOf(path))) this.makeDirectory(parentOf(path))
    this.#names.set(path, 'directory')
    this.#log.push({ kind: 'name', path, entry: 'directory' })
  }

  list(path: string): string[] {
    return [...this.#names.keys()].filter(name => name !== '/' && parentOf(name) === path).map(name => name.slice(path.length + 1))
  }

  rename(from: string, to: string): void {
    this.#try('rename', to)
    if (!rename(this.#names, from, to)) throw new Error(`ENOENT: ${from}`)
    this.#log.push({ kind: 'rename', from, to })
  }

  remove(path: string): void {
    this.#try('remove', path)
    // As rm -r does it: name by name, from the leaves.
    for (const name of [...this.#names.keys()].filter(name => name === path || name.startsWith(`${path}/`)).sort().reverse()) {
      this.#names.delete(name)
      this.#log.push({ kind: 'remove', path: name })
    }
  }

  async syncDirectory(directory: string): Promise<void> {
    const until = this.#log.length
    await this.#wait()
    this.#try('syncDirectory', directory)
    this.#log.push({ kind: 'names synced', directory, until })
  }

  tryLock(): boolean {
    return true
  }

  incarnation(fd: number): Uint8Array | undefined {
    this.#file(fd)
    return this.#incarnation
  }

  /** What a process leaves that is killed at a moment; of the write that it was about to do, perhaps the beginning. */
  kill(moment: number, random: Random): Remains {
    const log = this.#log.slice(0, moment)
    const next = this.#log.at(moment)
    if (next?.kind === 'write' && next.bytes.length > PAGE_BYTES && random.chance(0.5)) log.push({ ...next, bytes: next.bytes.subarray(0, PAGE_BYTES * random.below(Math.ceil(next.bytes.length / PAGE_BYTES))) })
    const names = new Map(this.#start.names)
    const contents = new Map([...this.#start.contents].map(([file, content]) => [file, content.clone()]))
    for (const operation of log) {
      if (operation.kind === 'name' || operation.kind === 'rename' || operation.kind === 'remove') applyName(names, contents, operation)
      else if ('file' in operation) apply(contents.get(operation.file)!, operation)
    }
    return { names, contents, living: { start: this.#start, log, incarnation: this.#incarnation, nextFile: this.#nextFile } }
  }

  /** What a power cut at a moment may leave. */
  cut(moment: number, random: Random): Remains {
    const { log, durable } = this.#durableAt(moment)
    const names = new Map(this.#start.names)
    const contents = new Map([...this.#start.contents].map(([file, content]) => [file, content.clone()]))
    const namesUntil = random.chance(0.5) ? random.below(moment + 1) : random.pick([0, moment])
    const writeChance = random.pick([0, 0.1, 0.5, 0.9, 1])
    for (const [index, operation] of log.entries()) {
      if (operation.kind === 'name' || operation.kind === 'rename' || operation.kind === 'remove') {
        if (durable[index] || index < namesUntil) applyName(names, contents, operation)
      } else if ('file' in operation) {
        if (!contents.has(operation.file)) contents.set(operation.file, new Content())
        const content = contents.get(operation.file)!
        if (durable[index]) apply(content, operation)
        else if (random.chance(writeChance)) applySome(content, operation, random)
      }
    }
    // Names whose directory did not survive cannot be reached.
    for (const name of [...names.keys()].sort()) if (name !== '/' && names.get(parentOf(name)) !== 'directory') names.delete(name)
    return { names, contents }
  }

  /** Which operations before a moment are durable at it. */
  #durableAt(moment: number): { log: Operation[]; durable: boolean[] } {
    const log = this.#log.slice(0, moment)
    const filesUntil = new Map<number, number>()
    const namesUntil = new Map<string, number>()
    for (const operation of log) {
      if (operation.kind === 'synced') filesUntil.set(operation.file, Math.max(operation.until, filesUntil.get(operation.file) ?? 0))
      if (operation.kind === 'names synced') namesUntil.set(operation.directory, Math.max(operation.until, namesUntil.get(operation.directory) ?? 0))
    }
    const durable = log.map((operation, index) => {
      const synced = (path: string): boolean => index < (namesUntil.get(parentOf(path)) ?? 0)
      if (operation.kind === 'name' || operation.kind === 'remove') return synced(operation.path)
      if (operation.kind === 'rename') return synced(operation.from) && synced(operation.to)
      return 'file' in operation && index < (filesUntil.get(operation.file) ?? 0)
    })
    return { log, durable }
  }

  #try(call: keyof OverlayFiles, on: number | string): void {
    const fault = this.fault(call, typeof on === 'string' ? on : this.#paths.get(on)!)
    if (fault !== undefined) throw fault
  }

  #file(fd: number): number {
    const file = this.#open.get(fd)
    if (file === undefined) throw new Error(`EBADF: ${fd}`)
    return file
  }

  async #wait(): Promise<void> {
    for (let turn = this.#random.below(3); turn >= 0; turn--) await new Promise<void>(resolve => { setImmediate(resolve) })
  }
}

function parentOf(path: string): string {
  return path.slice(0, path.lastIndexOf('/')) || '/'
}

function rename(names: Map<string, Entry>, from: string, to: string): boolean {
  if (!names.has(from)) return false
  for (const name of [...names.keys()]) if (name === to || name.startsWith(`${to}/`)) names.delete(name)
  for (const [name, entry] of [...names]) {
    if (name !== from && !name.startsWith(`${from}/`)) continue
    names.delete(name)
    names.set(to + name.slice(from.length), entry)
  }
  return true
}

function applyName(names: Map<string, Entry>, contents: Map<number, Content>, operation: Operation): void {
  if (operation.kind === 'name') {
    names.set(operation.path, operation.entry)
    if (operation.entry !== 'directory' && !contents.has(operation.entry)) contents.set(operation.entry, new Content())
  } else if (operation.kind === 'rename') {
    rename(names, operation.from, operation.to)
  } else if (operation.kind === 'remove') {
    names.delete(operation.path)
  }
}

function apply(content: Content, operation: Operation): void {
  if (operation.kind === 'write') content.write(operation.bytes, operation.offset)
  else if (operation.kind === 'truncate') content.truncate(operation.sizeBytes)
  else if (operation.kind === 'punch') content.write(new Uint8Array(Math.max(0, Math.min(operation.length, content.sizeBytes - operation.offset))), operation.offset)
}

/** Applies an operation that was not durable: whole, or only some of its sectors. */
function applySome(content: Content, operation: Operation, random: Random): void {
  if (operation.kind === 'truncate' || random.chance(0.5)) return apply(content, operation)
  if (operation.kind !== 'write' && operation.kind !== 'punch') return
  const length = operation.kind === 'write' ? operation.bytes.length : Math.min(operation.length, content.sizeBytes - operation.offset)
  for (let at = 0; at < length;) {
    const next = Math.min(length, at + SECTOR_BYTES - ((operation.offset + at) % SECTOR_BYTES))
    if (random.chance(0.5)) content.write(operation.kind === 'write' ? operation.bytes.subarray(at, next) : new Uint8Array(next - at), operation.offset + at)
    at = next
  }
}
