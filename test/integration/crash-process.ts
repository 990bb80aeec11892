/**
 * A process that crash-import.test.ts kills: `import HOME SOURCE...` imports the sources in turn, `collect HOME` collects, both over and over.
 * Prints `ready` when its modules are loaded, `work` when a line on standard input lets it begin, and a line beginning with `ack` for all that
 * is durable. Ends with its standard input.
 */
import { once } from 'node:events'
import { importDiskLayer } from '@varve/composer/import/import-disk-layer.ts'
import { importLayer } from '@varve/composer/import/import-layer.ts'
import { digestToHex } from '@varve/images/chunk/digest.ts'
import { openImage } from '@varve/images/formats/open-image.ts'
import type { Layer } from '@varve/images/store/catalog.ts'
import { Home } from '@varve/images/store/home.ts'
import { formatLayerName } from '@varve/images/store/names.ts'
import { reachableChunks } from '@varve/images/store/reachable.ts'

const WORKERS = 2

const [mode, directory, ...sources] = process.argv.slice(2)
process.stdin.on('end', () => process.exit())
process.stdout.write('ready\n')
await once(process.stdin, 'data')
process.stdout.write('work\n')
await using home = await Home.open(directory)
if (mode === 'import') await importForever()
else await collectForever()

async function importForever(): Promise<never> {
  for (let index = 0; ; index = (index + 1) % sources.length) {
    const source = sources[index]
    for (const layer of source.startsWith('disk:') ? [await importDisk(source)] : await importFiles(source)) process.stdout.write(`ack ${formatLayerName(layer)} ${digestToHex(layer.digest)}\n`)
  }
}

async function importFiles(source: string): Promise<Layer[]> {
  return (await importLayer({ home, name: source.slice(0, source.indexOf(':')), kind: 'base', source, workers: WORKERS })).layers
}

async function importDisk(source: string): Promise<Layer> {
  await using image = await openImage(source.slice('disk:'.length))
  return (await importDiskLayer({ home, name: 'disk', kind: 'base', disk: image.disk, source, workers: WORKERS })).layer
}

async function collectForever(): Promise<never> {
  for (;;) {
    await home.store.collect(() => reachableChunks(home))
    process.stdout.write('ack\n')
  }
}
