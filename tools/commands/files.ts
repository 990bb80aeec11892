/**
 * `varve ls | cat | cp | find | diff`: files of CVDs, snapshots, layers, disk images and directories, without mounting and without root.
 */
import { closeSync, mkdirSync, openSync, readdirSync, statSync } from 'node:fs'
import { once } from 'node:events'
import type { Command } from 'commander'
import { printPath } from '@varve/composer/merge/print-path.ts'
import { openLog } from '@varve/blockserver/log.ts'
import { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { VarveError } from '@varve/images/errors.ts'
import { allPieces } from '@varve/images/filesystems/file-content.ts'
import type { FileNode } from '@varve/images/filesystems/filesystem.ts'
import { resolvePath, sortedEntries } from '@varve/images/filesystems/file-paths.ts'
import { walk } from '@varve/images/filesystems/walk.ts'
import type { Home } from '@varve/images/store/home.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import { CopyOut } from '../files/copy-out.ts'
import type { CopyFigures } from '../files/copy-out.ts'
import { diffFiles } from '../files/diff-files.ts'
import { fileDocument, listingRow } from '../files/file-listing.ts'
import { cvdOfAllSnapshots, splitPath } from '../files/file-reference.ts'
import { fileFilter } from '../files/file-filter.ts'
import type { FilterOptions } from '../files/file-filter.ts'
import { openFiles } from '../files/open-files.ts'
import type { OpenedFiles } from '../files/open-files.ts'
import { writeTar } from '../files/tar-out.ts'
import { withImageOptions } from '../image-options.ts'
import type { ImageOptions } from '../image-options.ts'
import { action } from '../invocation.ts'
import type { Invocation } from '../invocation.ts'
import { keptSnapshots } from '../look-snapshot.ts'
import { parseSize } from '../size.ts'
import { ExitStatus, formatBytes, formatTable } from '../terminal.ts'

const WHAT = 'NAME[@SNAPSHOT]:PATH, layer:NAME[@N]:PATH, disk:FILE:PATH or dir:DIRECTORY:PATH'
/** Of chunks, bytes: what is read once is not kept long. */
const CACHE_BYTES = 64 << 20

export function addFileCommands(program: Command): void {
  // Whoever reads has seen enough.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error
    process.exit(ExitStatus.failed)
  })
  withImageOptions(program.command('ls').argument('<what>', WHAT)).description('list files, without mounting').action(action(async (invocation, what: string, options: ImageOptions) => {
    await withFiles(invocation, what, options, list)
  }))

  withImageOptions(program.command('cat').argument('<what>', WHAT).option('--offset <size>', 'from this byte on', '0').option('--length <size>', 'so many bytes at most'))
    .description('write a file to standard output')
    .action(action(async (invocation, what: string, options: ImageOptions & { offset: string; length?: string }) => {
      const [offset, length] = [sizeOf(options.offset), options.length === undefined ? Infinity : sizeOf(options.length)]
      await withFiles(invocation, what, options, (_, opened, path) => cat(opened, path, { offset, length, signal: invocation.signal }))
    }))

  withImageOptions(program.command('cp').argument('<what>', WHAT).argument('<target>', 'a directory, or - for a tar archive on standard output'))
    .description('copy files with all their attributes, as cp -a does; into an empty directory what a directory holds if PATH ends with a slash')
    .action(action(async (invocation, what: string, target: string, options: ImageOptions) => {
      await withFiles(invocation, what, options, (_, opened, path) => (target === '-' ? archive(invocation, opened, path) : copy(invocation, opened, path, target)))
    }))

  withImageOptions(program.command('find').argument('<what>', `${WHAT}; NAME@*:PATH looks through all snapshots of a CVD, and what it shows now`)
    .option('--name <pattern>', 'names like this; * and ? stand for others').option('--type <letters>', 'of f, d, l, b, c, p, s')
    .option('--size <size>', '+SIZE for larger, -SIZE for smaller, e.g. +10M').option('--newer <time>', 'changed since; a date and time, or a duration such as 7d')
    .option('--older <time>', 'not changed since'))
    .description('find files').action(action(async (invocation, what: string, options: FilterOptions & ImageOptions) => {
      await find(invocation, what, options)
    }))

  withImageOptions(program.command('diff').argument('<before>', 'NAME[@SNAPSHOT], layer:NAME[@N], disk:FILE or dir:DIRECTORY').argument('<after>', 'likewise'))
    .description('what changed between two, file by file; exit status 3 if anything did').action(action(diff))
}

function sizeOf(text: string): number {
  const bytes = parseSize(text)
  if (bytes === undefined || !Number.isSafeInteger(bytes)) throw new VarveError('LIMIT_EXCEEDED', `${text} is not a number of bytes`)
  return bytes
}

async function withFiles(invocation: Invocation, what: string, options: ImageOptions, use: (invocation: Invocation, opened: OpenedFiles, path: string) => Promise<void>): Promise<void> {
  const { of, path } = splitPath(what)
  await using home = await invocation.openHome()
  await using opened = await openFor(invocation, home, of, options)
  await use(invocation, opened, path)
}

function openFor(invocation: Invocation, home: Home, of: string, { format, allow }: ImageOptions): Promise<OpenedFiles> {
  const image = { format, allow, warn: (message: string) => invocation.note(message) }
  return openFiles(of, { home, image, cache: ChunkCache.create({ bytesMax: CACHE_BYTES }), log: openLog('warn'), signal: invocation.signal })
}

async function list(invocation: Invocation, { files }: OpenedFiles, path: string): Promise<void> {
  const node = await resolvePath(files, path)
  const found: { name: string; node: FileNode }[] = []
  if (node.kind !== Kind.directory) found.push({ name: path.split('/').filter((name) => name !== '').at(-1) ?? '', node })
  else for (const { name, id } of await sortedEntries(files, node.id, path)) found.push({ name, node: await files.node(id) })
  const documents = await Promise.all(found.map(({ name, node: one }) => fileDocument(files, name, one)))
  invocation.result(documents, formatTable(documents.map(listingRow)))
}

async function cat({ files }: OpenedFiles, path: string, { offset, length, signal }: { offset: number; length: number; signal: AbortSignal }): Promise<void> {
  const node = await resolvePath(files, path, { follow: true })
  if (node.kind !== Kind.file) throw new VarveError('SOURCE_INVALID', `/${printPath(path)} is not a file with content`)
  const to = process.stdout
  const fitting = Math.max(0, Math.min(length, node.sizeBytes - offset))
  // The stream may keep a piece after `write`.
  for await (const bytes of allPieces(files, node, { offset, length: fitting })) {
    signal.throwIfAborted()
    if (!to.write(Buffer.from(bytes))) await once(to, 'drain', { signal })
  }
}

async function copy(invocation: Invocation, { files }: OpenedFiles, path: string, target: string): Promise<void> {
  const node = await resolvePath(files, path)
  const name = path.split('/').filter((part) => part !== '' && part !== '.').at(-1)
  const inside = name === undefined || name === '..' || (path.endsWith('/') && node.kind === Kind.directory)
  const fd = targetDirectory(target, inside)
  try {
    const copying = new CopyOut(files, fd, invocation.signal)
    if (inside) await copying.copyInside(node)
    else await copying.copy(node, name)
    tellFigures(invocation, copying.figures, 'copied')
  } finally {
    closeSync(fd)
  }
}

/** @param isEmpty it is made if it is not there, and must hold nothing; otherwise it must be there @throws VarveError ALREADY_EXISTS, NOT_FOUND */
function targetDirectory(target: string, isEmpty: boolean): number {
  if (isEmpty && statSync(target, { throwIfNoEntry: false }) === undefined) mkdirSync(target, { mode: 0o700 })
  if (statSync(target, { throwIfNoEntry: false })?.isDirectory() !== true) throw new VarveError('NOT_FOUND', `${target} is not a directory`)
  if (isEmpty && readdirSync(target).length > 0) throw new VarveError('ALREADY_EXISTS', `${target} is not empty`)
  return openSync(target, 'r')
}

async function archive(invocation: Invocation, { files }: OpenedFiles, path: string): Promise<void> {
  if (process.stdout.isTTY) throw new VarveError('SOURCE_INVALID', 'a tar archive is not for a terminal; redirect standard output')
  const node = await resolvePath(files, path)
  const name = path.split('/').filter((part) => part !== '' && part !== '.').at(-1) ?? ''
  const figures = await writeTar(files, node, { name: path.endsWith('/') && node.kind === Kind.directory ? '' : name, to: process.stdout, signal: invocation.signal })
  for (const { path: left, why } of figures.leftOut) process.stderr.write(`varve: ${left} was left out: ${why}\n`)
  if (figures.leftOut.length > 0) invocation.finish(ExitStatus.failed)
}

function tellFigures(invocation: Invocation, figures: CopyFigures, done: string): void {
  const { files, bytes, leftOut, attributesLost } = figures
  const lost = attributesLost === 0 ? '' : `; ${attributesLost} lack an owner or attributes that cannot be given here`
  for (const { path, why } of leftOut) invocation.note(`varve: ${path} was left out: ${why}`)
  invocation.result(figures, `${done} ${files} files, ${formatBytes(bytes)}${lost}`)
  if (leftOut.length > 0) invocation.finish(ExitStatus.failed)
}

async function find(invocation: Invocation, what: string, options: FilterOptions & ImageOptions): Promise<void> {
  const wanted = fileFilter(options)
  const { of, path } = splitPath(what)
  await using home = await invocation.openHome()
  const cvd = cvdOfAllSnapshots(of)
  const names = cvd === undefined ? [of] : [...(await keptSnapshots(home, cvd)).map((name) => `${cvd}@${name}`), cvd]
  const documents: unknown[] = []
  for (const name of names) {
    await using opened = await openFor(invocation, home, name, options)
    const start = await resolvePath(opened.files, path).catch((error: unknown) => {
      // Not every snapshot has the path.
      if (names.length > 1 && error instanceof VarveError && error.code === 'NOT_FOUND') return undefined
      throw error
    })
    if (start === undefined) continue
    const prefix = path.replace(/^\/+|\/+$/g, '')
    for await (const found of walk(opened.files, { from: start.id, sorted: true })) {
      invocation.signal.throwIfAborted()
      const full = [prefix, found.path].filter((part) => part !== '').join('/')
      if (!wanted(full.slice(full.lastIndexOf('/') + 1), found.node)) continue
      if (invocation.json) documents.push({ of: name, ...(await fileDocument(opened.files, `/${full}`, found.node)) })
      else process.stdout.write(`${name}:/${printPath(full)}\n`)
    }
  }
  invocation.result(documents, '')
}

async function diff(invocation: Invocation, before: string, after: string, options: ImageOptions): Promise<void> {
  await using home = await invocation.openHome()
  await using left = await openFor(invocation, home, before, options)
  await using right = await openFor(invocation, home, after, options)
  const changes: { path: string; change: string; what: string[] }[] = []
  const signs = { added: '+', removed: '-', changed: '~' }
  for await (const { path, change, what } of diffFiles(left, right, { signal: invocation.signal })) {
    if (invocation.json) changes.push({ path: printPath(path), change, what })
    else process.stdout.write(`${signs[change]} /${printPath(path)}${what.length === 0 ? '' : `  (${what.join(', ')})`}\n`)
    if (invocation.status === ExitStatus.done) invocation.finish(ExitStatus.undecided)
  }
  invocation.result(changes, '')
}
