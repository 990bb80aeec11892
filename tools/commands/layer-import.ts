/**
 * `varve layer import`.
 */
import { setFlagsFromString } from 'node:v8'
import { InvalidArgumentError, Option } from 'commander'
import type { Command } from 'commander'
import { SOURCE_FORMS } from '@varve/composer/import/source.ts'
import { LAYER_KINDS } from '@varve/images/store/catalog.ts'
import type { LayerKind } from '@varve/images/store/catalog.ts'
import { action } from '../invocation.ts'
import { layerDocument } from '../names.ts'
import { formatBytes, formatDuration, formatTable } from '../terminal.ts'

interface ImportOptions {
  kind: LayerKind
  squash?: boolean
  workers?: number
}

export function addLayerImport(layer: Command): void {
  layer.command('import').argument('<name>').argument('<source>', SOURCE_FORMS)
    .addOption(new Option('--kind <kind>', 'what the layer is').choices(LAYER_KINDS).makeOptionMandatory())
    .option('--squash', 'an OCI image becomes one layer, instead of one for each of its own')
    .option('--workers <number>', 'threads that read, hash and compress; default: one for each processor, 4 at most', parseWorkers)
    .description('import files as the next version of a layer')
    .action(action(async (invocation, name: string, source: string, options: ImportOptions) => {
      const { importLayer } = await import('@varve/composer/import/import-layer.ts')
      useLittleHeap()
      await using home = await invocation.openHome()
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

function parseWorkers(text: string): number {
  const workers = Number(text)
  if (!(Number.isInteger(workers) && workers >= 1)) throw new InvalidArgumentError('give a whole number from 1')
  return workers
}

/**
 * An import has little on its heap that lives, and makes much garbage: a heap that grows before it is collected would hold more of it, and be no faster.
 * Threads that help to collect would wait for one another, and for the workers, longer than the work takes that they share.
 */
function useLittleHeap(): void {
  for (const flag of ['--semi-space-growth-factor=1', '--heap-growing-percent=20', '--no-parallel-scavenge']) setFlagsFromString(flag)
}
