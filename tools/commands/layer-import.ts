/**
 * `varve layer import`.
 */
import { setFlagsFromString } from 'node:v8'
import { Option } from 'commander'
import type { Command } from 'commander'
import { SOURCE_FORMS, parseDiskSource } from '@varve/composer/import/source.ts'
import { LAYER_KINDS } from '@varve/images/store/catalog.ts'
import type { LayerKind } from '@varve/images/store/catalog.ts'
import { importDiskSource, withDiskImportOptions } from '../import-disk.ts'
import type { DiskImportOptions } from '../import-disk.ts'
import { action } from '../invocation.ts'
import { layerDocument } from '../names.ts'
import { formatBytes, formatDuration, formatTable } from '../terminal.ts'

interface ImportOptions extends DiskImportOptions {
  kind: LayerKind
  squash?: boolean
}

export function addLayerImport(layer: Command): void {
  withDiskImportOptions(layer.command('import').argument('<name>').argument('<source>', SOURCE_FORMS)
    .addOption(new Option('--kind <kind>', 'what the layer is').choices(LAYER_KINDS).makeOptionMandatory())
    .option('--squash', 'an OCI image becomes one layer, instead of one for each of its own'))
    .description('import files, or a disk with its files, as the next version of a layer')
    .action(action(async (invocation, name: string, source: string, options: ImportOptions) => {
      const { importLayer } = await import('@varve/composer/import/import-layer.ts')
      const disk = parseDiskSource(source)
      if (options.changed === undefined && options.bitmap === undefined) useLittleHeap()
      await using home = await invocation.openHome()
      if (disk !== undefined) {
        const { document, text } = await importDiskSource(invocation, home, { name, kind: options.kind, source: disk, options })
        invocation.result(document, text)
        return
      }
      const progress = await invocation.progress(`importing ${name}`)
      const started = performance.now()
      try {
        const { layers, figures } = await importLayer({
          home,
          name,
          kind: options.kind,
          source,
          squash: options.squash,
          workers: options.workers,
          signal: invocation.signal,
          onProgress: ({ files, bytes, bytesTotal, sourceBytes, sourceBytesTotal }) => progress.update(sourceBytes ?? bytes, sourceBytesTotal ?? bytesTotal ?? null, `${files} files`),
        })
        progress.stop()
        const milliseconds = performance.now() - started
        const last = layers.at(-1)!
        const document = {
          ...layerDocument(last),
          layers: layers.map(layerDocument),
          files: figures.files,
          filesUnchanged: figures.filesUnchanged,
          chunks: figures.written.chunks,
          chunksNew: figures.written.chunksNew,
          bytesNew: figures.written.bytesNew,
          storedBytes: figures.written.bytesStored,
          milliseconds,
        }
        const rows = [
          ['layer', layers.map((one) => `${one.name}@${one.version}`).join(', ')],
          ['files', `${figures.files}${figures.filesUnchanged > 0 ? `, ${figures.filesUnchanged} unchanged` : ''}`],
          ['content', formatBytes(figures.contentBytes)],
          ['new', `${formatBytes(figures.written.bytesNew)} in ${figures.written.chunksNew} chunks, stored as ${formatBytes(figures.written.bytesStored)}`],
          ['time', `${formatDuration(milliseconds)}, ${formatBytes((figures.contentBytes / milliseconds) * 1000)}/s`],
        ]
        invocation.result(document, formatTable(rows))
      } finally {
        progress.stop()
      }
    }))
}

/**
 * An import has little on its heap that lives, and makes much garbage: a heap that grows before it is collected would hold more of it, and be no faster.
 * Threads that help to collect would wait for one another, and for the workers, longer than the work takes that they share.
 */
export function useLittleHeap(): void {
  for (const flag of ['--semi-space-growth-factor=1', '--heap-growing-percent=20', '--no-parallel-scavenge']) setFlagsFromString(flag)
}
