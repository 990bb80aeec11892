/**
 * `varve snapshot`: create, list, remove.
 */
import type { Command } from 'commander'
import { VarveError } from '@varve/images/errors.ts'
import { parseCvdName } from '@varve/images/store/names.ts'
import { createSnapshot } from '../create-snapshot.ts'
import { snapshotName } from '../exports.ts'
import { action } from '../invocation.ts'
import { snapshotDocument } from '../names.ts'
import { STREAM_SNAPSHOT_PREFIX } from '../streaming/disk-states.ts'
import { formatTable } from '../terminal.ts'

export function addSnapshotCommands(program: Command): void {
  const snapshot = program.command('snapshot').description('snapshots: immutable points in the history of a CVD')

  snapshot.command('create').argument('<cvd>').argument('[name]', 'default: the time').description('freeze what the disk of a CVD shows now, also while it is served')
    .action(action(async (invocation, cvd: string, given?: string) => {
      await using home = await invocation.openHome()
      const name = given ?? snapshotName()
      const document = await createSnapshot(home, { cvd, name, signal: invocation.signal })
      invocation.result(document, `${cvd}@${name}`)
    }))

  snapshot.command('list').argument('<cvd>').description('snapshots of a CVD, oldest first').action(action(async (invocation, cvd: string) => {
    await using home = await invocation.openHome()
    const documents = (await home.catalog.snapshots(cvd)).map(snapshotDocument)
    invocation.result(documents, formatTable([['SNAPSHOT', 'CREATED', 'STATE', 'LAYERS'], ...documents.map((one) => [one.snapshot, one.createdAt, one.state, one.layers.join(', ')])]))
  }))

  snapshot.command('remove').argument('<snapshot>', 'CVD@SNAPSHOT').description('remove a snapshot; what only it holds goes with the next gc')
    .option('--force', 'also one that an agent may be streaming, which then lacks what it has not fetched')
    .action(action(async (invocation, reference: string, { force }: { force?: boolean }) => {
    await using home = await invocation.openHome()
    const { cvd, snapshot: name } = parseCvdName(reference)
    if (name === undefined) throw new VarveError('NAME_INVALID', `${reference} names no snapshot; give CVD@SNAPSHOT`)
    if (!force && name.startsWith(STREAM_SNAPSHOT_PREFIX)) throw new VarveError('IN_USE', `${reference} was taken for an agent, which may have only a part of it yet; --force removes it all the same`)
    await home.catalog.removeSnapshot(cvd, name)
    invocation.result({ snapshot: reference }, `removed ${reference}`)
  }))
}
