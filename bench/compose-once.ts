/**
 * One process that composes, for bench/runs/compose.ts: `node compose-once.ts HOME CVD LABEL` prints what it measured as JSON.
 */
import { compose } from '@varve/composer/compose.ts'
import { prepareRecipe } from '@varve/composer/prepare-recipe.ts'
import { digestToHex } from '@varve/images/chunk/digest.ts'
import { Home } from '@varve/images/store/home.ts'

export interface ComposeMeasurement {
  /** The first composition of the process, ms. */
  firstMs: number
  /** Another one, when the code is warm, ms. */
  warmMs: number
  /** The same again, from the cache, ms. */
  cachedMs: number
  phases: Record<string, number>
  storedBytes: number
  metadataBytes: number
  extents: number
  peakBytes: number
  diskDigest: string
}

const CACHED_RUNS = 9
const [directory, cvd, label] = process.argv.slice(2)
await using home = await Home.open(directory, { create: false })
const { catalog, store } = home

async function timed(name: string) {
  const started = performance.now()
  const recipe = await prepareRecipe({ cvd, policy: { label: name } }, { catalog, store })
  const composition = await compose(recipe, { store, catalog })
  // What was composed before is decoded when its map is asked for.
  const extents = composition.map.extentCount
  return { ms: performance.now() - started, composition, extents }
}

const first = await timed(label)
const warm = await timed(`${label}w`)
const cached: number[] = []
for (let run = 0; run < CACHED_RUNS; run++) {
  const { ms, composition } = await timed(`${label}w`)
  if (!composition.cached || Buffer.compare(composition.diskDigest, warm.composition.diskDigest) !== 0) throw new Error('the cache gave another disk')
  cached.push(ms)
}
if (first.composition.cached || warm.composition.cached) throw new Error('composed before; give another label')
const measurement: ComposeMeasurement = {
  firstMs: first.ms,
  warmMs: warm.ms,
  cachedMs: cached.sort((a, b) => a - b)[CACHED_RUNS >> 1],
  phases: warm.composition.figures.milliseconds,
  storedBytes: first.composition.figures.storedBytes,
  metadataBytes: first.composition.figures.metadataBytes,
  extents: first.extents,
  peakBytes: process.resourceUsage().maxRSS * 1024,
  diskDigest: digestToHex(first.composition.diskDigest),
}
console.log(JSON.stringify(measurement))
