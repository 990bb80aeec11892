/**
 * Imports in a process of its own: PACKS SOURCE. Prints digest, figures and peak memory as JSON.
 */
import { readFileSync } from 'node:fs'
import { digestToHex } from '@varve/images/chunk/digest.ts'
import { PackStore } from '@varve/images/store/pack-store.ts'
import { importTrees } from '@varve/composer/import/import-layer.ts'

const [packs, source] = process.argv.slice(2)
await using store = PackStore.open(packs)
const { trees, figures } = await importTrees({ store, source })
const digest = digestToHex(trees[0].digest)
const peakKiB = Number(/VmHWM:\s*(\d+) kB/.exec(readFileSync('/proc/self/status', 'latin1'))![1])
process.stdout.write(JSON.stringify({ digest, figures, peakMiB: peakKiB / 1024 }))
