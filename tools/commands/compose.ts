/**
 * `varve compose`: lays the disk of a CVD out and says what it is; with --dry-run only how the layers merge.
 */
import { setFlagsFromString } from 'node:v8'
import type { Command } from 'commander'
import { compose, ComposeConflictError, mergeRecipe } from '@varve/composer/compose.ts'
import type { Composition } from '@varve/composer/compose.ts'
import type { MergeReport } from '@varve/composer/merge/report.ts'
import { prepareRecipe } from '@varve/composer/prepare-recipe.ts'
import type { RecipeRequest } from '@varve/composer/prepare-recipe.ts'
import { digestToHex } from '@varve/images/chunk/digest.ts'
import type { Home } from '@varve/images/store/home.ts'
import { parseCvdName } from '@varve/images/store/names.ts'
import { action } from '../invocation.ts'
import type { Invocation } from '../invocation.ts'
import { snapshotDocument } from '../names.ts'
import { readMap } from '../settlement.ts'
import { ExitStatus, formatBytes, formatDuration, formatTable } from '../terminal.ts'

export function addComposeCommand(program: Command): void {
  program.command('compose').argument('<cvd>', 'NAME, or NAME@SNAPSHOT')
    .option('--dry-run', 'say how the layers merge, path by path, and change nothing; exit status 3 if a conflict needs a decision')
    .description('lay the disk of a CVD out; no file is copied')
    .action(action(async (invocation, name: string, options: { dryRun?: boolean }) => {
      await using home = await invocation.openHome()
      const { cvd, snapshot } = parseCvdName(name)
      if (snapshot !== undefined) await showSnapshot(invocation, home, cvd, snapshot)
      else if (options.dryRun === true) await dryRun(invocation, home, { cvd })
      else await composeCvd(invocation, home, cvd)
    }))
}

async function composeCvd(invocation: Invocation, home: Home, cvd: string): Promise<void> {
  const { store, catalog } = home
  const { signal } = invocation
  const recipe = await prepareRecipe({ cvd }, { catalog, store, signal })
  try {
    const composition = await withoutTurbofan(() => compose(recipe, { store, catalog, signal }))
    invocation.result(compositionDocument(cvd, composition), compositionText(composition))
  } catch (error) {
    if (!(error instanceof ComposeConflictError)) throw error
    invocation.result({ error: { code: error.code, message: error.message }, conflicts: error.report.conflicts }, '')
    invocation.note(conflictText(error.report))
    throw error
  }
}

/**
 * What runs for less than a second ends before the code of V8's slowest compiler is worth its making, on threads that take a processor of their own.
 * The flag is put back, since modules are kept in compiled form under the flags that hold when the process ends.
 */
async function withoutTurbofan<Result>(work: () => Promise<Result>): Promise<Result> {
  setFlagsFromString('--no-turbofan')
  try {
    return await work()
  } finally {
    setFlagsFromString('--turbofan')
  }
}

/** Exit status 3 if a conflict is open. */
export async function dryRun(invocation: Invocation, home: Home, request: RecipeRequest): Promise<void> {
  const { store, catalog } = home
  const { signal } = invocation
  const recipe = await prepareRecipe(request, { catalog, store, signal })
  const { tree, report } = await mergeRecipe(recipe, { store, signal, report: 'all' })
  const rows = report.paths.map(({ path, owner, winner, losers, why }) => [`/${path}`, owner, winner, losers.join(','), why])
  const table = formatTable([['PATH', 'OWNER', 'WINNER', 'LOSERS', 'WHY'], ...rows])
  invocation.result({ layers: recipe.layers.map((layer) => layer.name), files: tree.inodeCount, contentBytes: tree.contentBytes, ...report }, [table, conflictText(report)].filter(Boolean).join('\n'))
  if (report.open > 0) invocation.finish(ExitStatus.undecided)
}

async function showSnapshot(invocation: Invocation, home: Home, cvd: string, name: string): Promise<void> {
  const snapshot = await home.catalog.snapshot(cvd, name)
  const map = await readMap(home, snapshot.map ?? snapshot.baseMap!)
  const document = { ...snapshotDocument(snapshot), sizeBytes: map.sizeBytes }
  invocation.result(document, `${document.snapshot}: ${formatBytes(map.sizeBytes)}, ${document.state}, ${document.createdAt}`)
}

function compositionDocument(cvd: string, composition: Composition) {
  return {
    cvd,
    diskDigest: digestToHex(composition.diskDigest),
    recipeDigest: digestToHex(composition.recipeDigest),
    mapDigest: digestToHex(composition.mapDigest),
    sizeBytes: composition.sizeBytes,
    rootUuid: composition.rootUuid,
    partitions: composition.partitions,
    files: composition.files,
    contentBytes: composition.contentBytes,
    conflicts: composition.report.conflicts,
    cached: composition.cached,
    metadataBytes: composition.figures.metadataBytes,
    storedBytes: composition.figures.storedBytes,
    milliseconds: composition.figures.milliseconds.total,
    phaseMilliseconds: composition.figures.milliseconds,
  }
}

function compositionText(composition: Composition): string {
  const { sizeBytes, files, contentBytes, diskDigest, rootUuid, cached, figures, report } = composition
  const lines = [
    ['size', formatBytes(sizeBytes)],
    ['files', `${files}, ${formatBytes(contentBytes)}`],
    ['digest', digestToHex(diskDigest)],
    ...(rootUuid === '' ? [] : [['root', `UUID=${rootUuid}`]]),
    ['conflicts', report.conflicts.length === 0 ? 'none' : conflictText(report)],
    ['store', cached ? 'unchanged: composed before' : `grew by ${formatBytes(figures.storedBytes)}`],
    ['time', formatDuration(figures.milliseconds.total)],
  ]
  return formatTable(lines)
}

function conflictText(report: MergeReport): string {
  const state = (needsDecision: boolean, decision: string | null): string => (needsDecision ? 'needs a decision' : decision === null ? 'note' : `decided: ${decision}`)
  const lines = report.conflicts.map(({ key, detail, choices, needsDecision, decision }) => `${key}: ${detail} (${state(needsDecision, decision)}${choices.length > 0 ? `; one of ${choices.join(', ')}` : ''})`)
  const unused = report.unusedDecisions.map((key) => `the decision ${key} fits no conflict`)
  return [...lines, ...unused].join('\n')
}
