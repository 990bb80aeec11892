/**
 * Imports in a process of its own: PACKS SOURCE [WORKERS]. Prints digest, figures and peak memory as JSON.
 */
import { readFileSync } from 'node:fs'
import { PackStore } from '@varve/images/store/pack-store.ts'
import { importTrees } from '@varve/composer/import/import-layer.ts'
import { treeDigest } from './import-home.ts'

const [packs, source, workers] = process.argv.slice(2)
await using store = PackStore.open(packs)
const { trees, figures } = await importTrees({ store, source, workers: workers === undefined ? undefined : Number(workers) })
const digest = treeDigest(trees[0])
const peakKiB = Number(/VmHWM:\s*(\d+) kB/.exec(readFileSync('/proc/self/status', 'latin1'))![1])
process.stdout.write(JSON.stringify({ digest, figures, entries: trees[0].entryCount, peakMiB: peakKiB / 1024 }))
