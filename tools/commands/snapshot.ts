/**
 * `varve snapshot`: create, list, remove.
 */
import type { Command } from 'commander'
import { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { isVarveError } from '@varve/images/errors.ts'
import type { Home } from '@varve/images/store/home.ts'
import { parseCvdName } from '@varve/images/store/names.ts'
import { VarveError } from '@varve/images/errors.ts'
import { CvdDisk } from '../cvd-disk.ts'
import { requestSnapshot, snapshotName } from '../exports.ts'
import { action } from '../invocation.ts'
import { snapshotDocument } from '../names.ts'
import { formatTable } from '../terminal.ts'

/** Between two attempts to reach the owner of a CVD, which may be just starting or just ending. */
const RETRY_MS = 200
const RETRIES_MAX = 25

export function addSnapshotCommands(program: Command): void {
  const snapshot = program.command('snapshot').description('snapshots: immutable points in the history of a CVD')

  snapshot.command('create').argument('<cvd>').argument('[name]', 'default: the time').description('freeze what the disk of a CVD shows now, also while it is served')
    .action(action(async (invocation, cvd: string, given?: string) => {
      await using home = await invocation.openHome()
      const name = given ?? snapshotName()
      const document = await createSnapshot(home, cvd, name, invocation.signal)
      invocation.result(document, `${cvd}@${name}`)
    }))

  snapshot.command('list').argument('<cvd>').description('snapshots of a CVD, oldest first').action(action(async (invocation, cvd: string) => {
    await using home = await invocation.openHome()
    const documents = (await home.catalog.snapshots(cvd)).map(snapshotDocument)
    invocation.result(documents, formatTable([['SNAPSHOT', 'CREATED', 'STATE', 'LAYERS'], ...documents.map((one) => [one.snapshot, one.createdAt, one.state, one.layers.join(', ')])]))
  }))

  snapshot.command('remove').argument('<snapshot>', 'CVD@SNAPSHOT').description('remove a snapshot; what only it holds goes with the next gc').action(action(async (invocation, reference: string) => {
    await using home = await invocation.openHome()
    const { cvd, snapshot: name } = parseCvdName(reference)
    if (name === undefined) throw new VarveError('NAME_INVALID', `${reference} names no snapshot; give CVD@SNAPSHOT`)
    await home.catalog.removeSnapshot(cvd, name)
    invocation.result({ snapshot: reference }, `removed ${reference}`)
  }))
}

/** What is settled is read once. */
const SETTLING_CACHE_BYTES = 64 << 20

/** By the process that owns the CVD if there is one, else here. */
async function createSnapshot(home: Home, cvdName: string, name: string, signal: AbortSignal): Promise<Record<string, unknown>> {
  for (let attempt = 0; ; attempt++) {
    const answer = await requestSnapshot(home, await home.catalog.cvd(cvdName), name, signal)
    if (answer !== undefined) return answer
    try {
      await using disk = await CvdDisk.open(cvdName, { home, cache: ChunkCache.create({ bytesMax: SETTLING_CACHE_BYTES }), signal })
      await disk.snapshot(name)
      await disk.settle(signal)
      return snapshotDocument(await home.catalog.snapshot(cvdName, name))
    } catch (error) {
      if (!isVarveError(error, 'STORE_LOCKED') || attempt === RETRIES_MAX) throw error
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS))
    }
  }
}
