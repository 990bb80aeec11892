/**
 * `varve gc`, `varve verify`, `varve doctor`: what keeps the store sound.
 */
import type { Command } from 'commander'
import { digestToHex } from '@varve/images/chunk/digest.ts'
import { doctor } from '@varve/images/store/doctor.ts'
import { isVarveError } from '@varve/images/errors.ts'
import { packsDirectory } from '@varve/images/store/home.ts'
import type { Home } from '@varve/images/store/home.ts'
import { PackStore } from '@varve/images/store/pack-store.ts'
import { checkRoots, reachableChunks } from '@varve/images/store/reachable.ts'
import type { RootReport } from '@varve/images/store/reachable.ts'
import type { VerifyReport } from '@varve/images/store/verify.ts'
import { removeLeftOverlays } from '../cvd-disk.ts'
import { action } from '../invocation.ts'
import { forgetLeftBootSets } from '../streaming/boot-lists.ts'
import type { Invocation } from '../invocation.ts'
import { ExitStatus, formatBytes, formatTable } from '../terminal.ts'

/** Composed disks that nobody has used for so long are forgotten by a collection; they can be composed again. */
const COMPOSED_UNUSED_MS_MAX = 30 * 24 * 3600 * 1000

export function addStoreCommands(program: Command): void {
  program.command('gc').option('--dry-run', 'only say what would go; exit status 3 if anything would').description('remove chunks that nothing reaches')
    .action(action(async (invocation, options: { dryRun?: boolean }) => {
      await using home = await invocation.openHome()
      if (options.dryRun !== true) {
        await home.catalog.forgetComposedMaps({ unusedMs: COMPOSED_UNUSED_MS_MAX })
        await removeLeftOverlays(home)
        await forgetLeftBootSets(home)
      }
      const report = await home.store.collect(() => reachableChunks(home, invocation), { signal: invocation.signal, dryRun: options.dryRun })
      const rows = [
        ['reachable', `${report.chunksReachable} chunks`],
        ['unreachable', `${report.unreachable.chunks} chunks, ${formatBytes(report.unreachable.bytesStored)}`],
        ...(options.dryRun === true ? [] : [['freed', formatBytes(report.bytesFreed)]]),
        ...(report.waiting.chunks > 0 ? [['waiting', `${report.waiting.chunks} chunks, for ${report.holders.join(', ')}`]] : []),
      ]
      invocation.result(report, formatTable(rows))
      if (options.dryRun === true && report.unreachable.chunks > 0) invocation.finish(ExitStatus.undecided)
      if (report.chunksMissing > 0) invocation.finish(ExitStatus.damaged)
    }))

  program.command('verify')
    .option('--repair', 'rebuild the index from the packs, give up what cannot be read, and forget composed disks that are not whole')
    .option('--quick', 'headers and index only; contents are not read')
    .description('check every chunk, and that everything the catalog names is there; exit status 4 if damage was found')
    .action(action(async (invocation, options: { repair?: boolean; quick?: boolean }) => {
      const report = await verifyStore(invocation, options)
      await using home = await invocation.openHome()
      let broken = await brokenRoots(home, invocation.signal)
      if (options.repair === true && broken.length > 0) {
        for (const { root } of broken) await home.catalog.forgetObjects(root.digest)
        broken = await brokenRoots(home, invocation.signal)
      }
      const lines = [
        ...report.damage.map(({ file, offset, digest, problem }) => `${file}${offset === undefined ? '' : ` at ${offset}`}: ${problem}${digest === undefined ? '' : ` (chunk ${digest})`}`),
        ...broken.map(({ root, chunksMissing, problem }) => `${root.holder} is not whole: ${problem?.message ?? `${chunksMissing} chunks are missing`}`),
        `${report.chunks} chunks in ${report.packs} packs, ${formatBytes(report.bytes)}: ${report.damageCount + broken.length === 0 ? 'sound' : 'damaged'}`,
      ]
      const brokenDocument = broken.map(({ root, chunksMissing, problem }) => ({ holder: root.holder, type: root.type, digest: digestToHex(root.digest), chunksMissing, problem: problem?.message ?? null }))
      invocation.result({ ...report, broken: brokenDocument }, lines.join('\n'))
      if (broken.length > 0 || (report.damageCount > 0 && options.repair !== true)) invocation.finish(ExitStatus.damaged)
    }))

  program.command('doctor').description('check home, index, catalog and libraries, and say what to do').action(action(async (invocation) => {
    const findings = await doctor(invocation.homeDirectory, invocation)
    invocation.result(findings, formatTable(findings.map(({ state, what, advice }) => [state, what, advice ?? ''])))
    if (findings.some(({ state }) => state === 'damage')) invocation.finish(ExitStatus.damaged)
  }))
}

/** What the catalog names and the store does not have whole. */
async function brokenRoots(home: Home, signal: AbortSignal): Promise<RootReport[]> {
  const broken: RootReport[] = []
  for await (const report of checkRoots(home, { signal })) if (report.chunksMissing > 0 || report.problem !== undefined) broken.push(report)
  return broken
}

/** An index that is missing, or that a repair cannot go by, is made anew from the packs. */
async function verifyStore(invocation: Invocation, { quick, repair }: { quick?: boolean; repair?: boolean }): Promise<VerifyReport> {
  const { signal } = invocation
  try {
    await using home = await invocation.openHome()
    return await home.store.verify({ signal, readData: quick !== true, repair })
  } catch (error) {
    if (repair !== true || !isVarveError(error, 'INDEX_INVALID')) throw error
    return PackStore.rebuild(packsDirectory(invocation.homeDirectory), { signal })
  }
}
