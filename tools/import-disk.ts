/**
 * Import of a disk on the command line: `disk:FILE`, `disk:DEVICE` or `nbd:URI` becomes the next version of a layer.
 */
import { realpathSync, readFileSync, statSync } from 'node:fs'
import path from 'node:path'
import { InvalidArgumentError } from 'commander'
import type { Command } from 'commander'
import { importDiskLayer } from '@varve/composer/import/import-disk-layer.ts'
import type { DiskFigures } from '@varve/composer/import/import-disk-layer.ts'
import type { DiskSource } from '@varve/composer/import/source.ts'
import type { Ranges } from '@varve/images/blockmap/ranges.ts'
import type { ReadableDisk } from '@varve/images/device/block-device.ts'
import { FileDevice } from '@varve/images/device/file-device.ts'
import { VarveError, isVarveError } from '@varve/images/errors.ts'
import { CHANGED_LIST_BYTES_MAX, parseChangedList } from '@varve/images/formats/changed-list.ts'
import { openImage } from '@varve/images/formats/open-image.ts'
import { changedAbove } from '@varve/images/formats/qcow2/backing-chain.ts'
import { readQcow2Bitmap } from '@varve/images/formats/qcow2/bitmaps.ts'
import type { Layer, LayerKind } from '@varve/images/store/catalog.ts'
import type { Home } from '@varve/images/store/home.ts'
import { formatLayerName } from '@varve/images/store/names.ts'
import { withImageOptions } from './image-options.ts'
import type { ImageOptions } from './image-options.ts'
import type { Invocation } from './invocation.ts'
import { layerDocument } from './names.ts'
import { openNbdDisk } from './nbd-disk.ts'
import { formatBytes, formatDuration, formatTable } from './terminal.ts'

/** Label of a layer: which file its disk was, and in which state of that. */
const FILE_LABEL = 'disk.file'
/** Problems that are printed for people. */
const PROBLEMS_PRINTED = 20

/** As commander gives them. */
export interface DiskImportOptions extends ImageOptions {
  workers?: number
  keepFree?: boolean
  reread?: boolean
  base?: string
  changed?: string
  bitmap?: string
}

export function withDiskImportOptions(command: Command): Command {
  return withImageOptions(command.option('--workers <number>', 'threads that read, hash and compress; default: one for each processor, 4 at most', parseWorkers))
    .option('--keep-free', 'of a disk, keep what is in free space')
    .option('--base <layer>', 'an earlier state of the disk, NAME@N; default: the latest version of the layer that is a disk')
    .option('--changed <file>', 'what of the disk has changed since that: a list of ranges (docs/formats/changed-list.md)')
    .option('--bitmap <name>', 'the same, from a dirty bitmap of the NBD server or the qcow2 image')
    .option('--reread', 'of a disk, read files too whose inodes are as they were')
}

function parseWorkers(text: string): number {
  const workers = Number(text)
  if (!(Number.isInteger(workers) && workers >= 1)) throw new InvalidArgumentError('give a whole number from 1')
  return workers
}

interface OpenedSource extends AsyncDisposable {
  disk: ReadableDisk
  changed?: Ranges
  /** The layer since which that is, if nobody named one. */
  base?: string
  /** As it is kept in the catalog. */
  text: string
  labels?: Record<string, string>
}

export interface ImportedDiskLayer {
  layer: Layer
  document: Record<string, unknown>
  text: string
}

/** @throws VarveError, what opening and importing throws */
export async function importDiskSource(invocation: Invocation, home: Home, { name, kind, source, options }: { name: string; kind: LayerKind; source: DiskSource; options: DiskImportOptions }): Promise<ImportedDiskLayer> {
  const { signal } = invocation
  await using opened = await openSource(source, options, { invocation, home })
  const progress = await invocation.progress(`importing ${name}`)
  const started = performance.now()
  try {
    const { layer, base, figures } = await importDiskLayer({
      home, name, kind, signal,
      disk: opened.disk,
      source: opened.text,
      labels: opened.labels,
      base: options.base ?? opened.base,
      changed: opened.changed,
      keepFree: options.keepFree,
      reread: options.reread,
      workers: options.workers,
      onProgress: ({ files, bytes, bytesTotal }) => progress.update(bytes, bytesTotal ?? null, `${files} files`),
    })
    return resultOf(layer, base, figures, performance.now() - started)
  } finally {
    progress.stop()
  }
}

async function openSource(source: DiskSource, { format, allow, bitmap, changed: file, base, reread }: DiskImportOptions, { invocation, home }: { invocation: Invocation; home: Home }): Promise<OpenedSource> {
  if (file !== undefined && bitmap !== undefined) throw new VarveError('SOURCE_INVALID', 'give --changed or --bitmap, not both')
  const changed = file === undefined ? undefined : readChangedList(file)
  if (source.kind === 'nbd') {
    const disk = await openNbdDisk(source.uri, { bitmap, signal: invocation.signal })
    return { disk, changed: changed ?? disk.changed, text: `nbd:${source.uri}`, [Symbol.asyncDispose]: () => disk[Symbol.asyncDispose]() }
  }
  await using opened = new AsyncDisposableStack()
  const image = opened.use(await openImage(source.path, { format, allow, warn: (message) => invocation.note(message) }))
  if (bitmap !== undefined && image.format !== 'qcow2') throw new VarveError('SOURCE_INVALID', `--bitmap is for nbd:URI and qcow2 images, not for ${image.format}`)
  const told = bitmap === undefined ? changed : await readBitmap(source.path, bitmap)
  const state = fileState(source.path)
  const since = told === undefined && base === undefined && reread !== true && image.format === 'qcow2' ? await sinceImport(home, source.path) : { changed: told }
  const parts = opened.move()
  return { disk: image.disk, ...since, text: `disk:${path.resolve(source.path)}`, labels: state === undefined ? {} : { [FILE_LABEL]: state }, [Symbol.asyncDispose]: () => parts.disposeAsync() }
}

async function readBitmap(file: string, name: string): Promise<Ranges> {
  await using opened = FileDevice.open({ path: file, readOnly: true })
  return await readQcow2Bitmap(opened, name)
}

/** What a qcow2 image has written over one that was imported, and is still as it was then. */
async function sinceImport(home: Home, file: string): Promise<{ changed?: Ranges; base?: string }> {
  const imported = new Map((await home.catalog.layers()).filter(({ map }) => map !== null).map((layer) => [layer.labels[FILE_LABEL], layer]))
  try {
    const above = await changedAbove(file, (below) => imported.has(fileState(below) ?? ''))
    return above === undefined ? {} : { changed: above.changed, base: formatLayerName(imported.get(fileState(above.file)!)!) }
  } catch (error) {
    // All of it is read then.
    if (isVarveError(error)) return {}
    throw error
  }
}

/** Tells a file, and its content as far as its times do, from all others; undefined for a device. */
function fileState(file: string): string | undefined {
  const stat = statSync(file, { bigint: true, throwIfNoEntry: false })
  return stat?.isFile() === true ? `${realpathSync(file)} ${stat.ino} ${stat.size} ${stat.mtimeNs} ${stat.ctimeNs}` : undefined
}

function readChangedList(file: string): Ranges {
  let bytes
  try {
    const { size } = statSync(file)
    if (size > CHANGED_LIST_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `${file}: a changed list of ${size} bytes; at most ${CHANGED_LIST_BYTES_MAX} are read`)
    bytes = readFileSync(file)
  } catch (cause) {
    if (cause instanceof VarveError) throw cause
    throw new VarveError('SOURCE_INVALID', `${file} cannot be read: ${(cause as NodeJS.ErrnoException).code}`, { cause })
  }
  return parseChangedList(bytes)
}

function resultOf(layer: Layer, base: Layer | undefined, { files, filesUnchanged, sizeBytes, bytesRead, written, problems, leftOut }: DiskFigures, milliseconds: number): ImportedDiskLayer {
  const document = {
    ...layerDocument(layer),
    base: base === undefined ? null : formatLayerName(base),
    sizeBytes, files, filesUnchanged, bytesRead,
    chunks: written.chunks,
    chunksNew: written.chunksNew,
    bytesNew: written.bytesNew,
    storedBytes: written.bytesStored,
    leftOut, problems,
    milliseconds,
  }
  const rows = [
    ['layer', formatLayerName(layer)],
    ['disk', `${formatBytes(sizeBytes)}${base === undefined ? '' : `, after ${formatLayerName(base)}`}`],
    ['files', `${files}${filesUnchanged > 0 ? `, ${filesUnchanged} unchanged` : ''}`],
    ['content', formatBytes(layer.contentBytes)],
    ['read', formatBytes(bytesRead)],
    ['new', `${formatBytes(written.bytesNew)} in ${written.chunksNew} chunks, stored as ${formatBytes(written.bytesStored)}`],
    ['time', `${formatDuration(milliseconds)}, ${formatBytes((bytesRead / milliseconds) * 1000)}/s`],
  ]
  const told = problems.slice(0, PROBLEMS_PRINTED).map(({ where, problem }) => `not in the tree: ${where}: ${problem}`)
  const untold = leftOut - told.length
  return { layer, document, text: [formatTable(rows), ...told, ...(untold > 0 ? [`not in the tree: ${untold} more`] : [])].join('\n') }
}
