/**
 * `varve layer`: import, list, show, diff, remove.
 */
import type { Command } from 'commander'
import { printPath } from '@varve/composer/merge/print-path.ts'
import { diffTrees } from '@varve/images/tree/tree-diff.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import { action } from '../invocation.ts'
import { formatTime, layerDocument, readLayerTree } from '../names.ts'
import { readMap } from '../settlement.ts'
import { formatBytes, formatTable } from '../terminal.ts'
import { addLayerImport } from './layer-import.ts'

export function addLayerCommands(program: Command): void {
  const layer = program.command('layer').description('layers: immutable, versioned trees of files')
  addLayerImport(layer)

  layer.command('list').description('all layers, every version').action(action(async (invocation) => {
    await using home = await invocation.openHome()
    const layers = await home.catalog.layers()
    const rows = layers.map((one) => [`${one.name}@${one.version}`, one.kind, String(one.entries), formatBytes(one.contentBytes), formatTime(one.createdAtMs), one.source])
    invocation.result(layers.map(layerDocument), formatTable([['LAYER', 'KIND', 'ENTRIES', 'SIZE', 'IMPORTED', 'FROM'], ...rows]))
  }))

  layer.command('show').argument('<layer>', 'NAME (the latest version) or NAME@N').description('one layer').action(action(async (invocation, name: string) => {
    await using home = await invocation.openHome()
    const found = await home.catalog.layer(name)
    const disk = found.map === null ? {} : { diskBytes: (await readMap(home, found.map)).sizeBytes }
    if (found.content === 'block map') {
      const document = { ...layerDocument(found), ...disk }
      invocation.result(document, formatTable(Object.entries({ ...document, labels: JSON.stringify(document.labels) }).map(([key, value]) => [key, String(value)])))
      return
    }
    const tree = await readLayerTree(home, found)
    const counts: Record<string, number> = {}
    for (const [kind, code] of Object.entries(Kind)) counts[kind] = tree.kind.reduce((sum, at) => sum + (at === code ? 1 : 0), 0)
    const document = { ...layerDocument(found), ...disk, inodes: counts, chunks: tree.chunkCount }
    const lines = Object.entries({ ...document, labels: JSON.stringify(document.labels), inodes: Object.entries(counts).filter(([, count]) => count > 0).map(([kind, count]) => `${count} ${kind}`).join(', ') })
    invocation.result(document, formatTable(lines.map(([key, value]) => [key, String(value)])))
  }))

  layer.command('diff').argument('<before>', 'NAME or NAME@N').argument('<after>', 'NAME or NAME@N').description('what changed between two layers').action(action(async (invocation, before: string, after: string) => {
    await using home = await invocation.openHome()
    const [left, right] = [await readLayerTree(home, await home.catalog.layer(before)), await readLayerTree(home, await home.catalog.layer(after))]
    const changes = [...diffTrees(left, right)].map(({ path, change, what }) => ({ path: printPath(path), change, what }))
    const signs = { added: '+', removed: '-', changed: '~' }
    invocation.result(changes, changes.map(({ path, change, what }) => `${signs[change]} /${path}${what.length === 0 ? '' : `  (${what.join(', ')})`}`).join('\n'))
  }))

  layer.command('remove').argument('<layer>', 'NAME@N').description('remove one version; what nothing else holds goes with the next gc').action(action(async (invocation, name: string) => {
    await using home = await invocation.openHome()
    const removed = await home.catalog.removeLayer(name)
    invocation.result(layerDocument(removed), `removed ${removed.name}@${removed.version}`)
  }))
}
