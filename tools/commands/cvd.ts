/**
 * `varve cvd`: create, list, show, remove, layers.
 */
import type { Command } from 'commander'
import type { Cvd, JsonObject } from '@varve/images/store/catalog.ts'
import { parseDiskSource } from '@varve/composer/import/source.ts'
import { VarveError } from '@varve/images/errors.ts'
import { checkName, formatLayerName } from '@varve/images/store/names.ts'
import { policyDocument, withPolicyOptions } from '../cvd-policy.ts'
import type { PolicyOptions } from '../cvd-policy.ts'
import { ownCvd, removeCvdFiles } from '../cvd-disk.ts'
import { importDiskSource, withDiskImportOptions } from '../import-disk.ts'
import type { DiskImportOptions } from '../import-disk.ts'
import { action } from '../invocation.ts'
import { cvdDocument, formatTime, snapshotDocument } from '../names.ts'
import { formatTable } from '../terminal.ts'
import { dryRun } from './compose.ts'
import { useLittleHeap } from './layer-import.ts'

export function addCvdCommands(program: Command): void {
  const cvd = program.command('cvd').description('CVDs: named stacks of layers')

  withPolicyOptions(cvd.command('create').argument('<name>').requiredOption('--layer <layer...>', 'NAME or NAME@N, bottom first').description('stack layers'))
    .action(action(async (invocation, name: string, options: PolicyOptions & { layer: string[] }) => {
      await using home = await invocation.openHome()
      const created = await home.catalog.createCvd({ name, layers: options.layer, policy: policyDocument(options) })
      invocation.result(cvdDocument(created), `${name}: ${created.layers.map(formatLayerName).join(', ')}`)
    }))

  withDiskImportOptions(cvd.command('import').argument('<name>').argument('<disk>', 'disk:FILE|DEVICE or nbd:URI').option('--layer <name>', 'of the disk; default: the name of the CVD'))
    .description('import a disk as a layer, and stack a CVD of it that is that disk, with its own boot loader')
    .action(action(async (invocation, name: string, source: string, options: DiskImportOptions & { layer?: string }) => {
      const disk = parseDiskSource(source)
      if (disk === undefined) throw new VarveError('SOURCE_INVALID', `${source} is not a disk; give disk:FILE, disk:DEVICE or nbd:URI`)
      checkName(name, 'CVD')
      useLittleHeap()
      await using home = await invocation.openHome()
      if ((await home.catalog.cvds()).some((one) => one.name === name)) throw new VarveError('ALREADY_EXISTS', `there is a CVD ${name} already; import the disk as the next version of its layer with varve layer import`)
      const { layer, document, text } = await importDiskSource(invocation, home, { name: options.layer ?? name, kind: 'base', source: disk, options })
      const created = await home.catalog.createCvd({ name, layers: [formatLayerName(layer)], policy: { boot: 'own' } })
      invocation.result({ ...document, cvd: cvdDocument(created) }, `${text}\n${name}: ${created.layers.map(formatLayerName).join(', ')}`)
    }))

  cvd.command('list').description('all CVDs').action(action(async (invocation) => {
    await using home = await invocation.openHome()
    const cvds = await home.catalog.cvds()
    invocation.result(cvds.map(cvdDocument), formatTable([['CVD', 'CREATED', 'LAYERS'], ...cvds.map((one) => [one.name, formatTime(one.createdAtMs), one.layers.map(formatLayerName).join(', ')])]))
  }))

  cvd.command('show').argument('<name>').description('one CVD and its snapshots').action(action(async (invocation, name: string) => {
    await using home = await invocation.openHome()
    const document = { ...cvdDocument(await home.catalog.cvd(name)), snapshots: (await home.catalog.snapshots(name)).map(snapshotDocument) }
    const rows = Object.entries({ ...document, layers: document.layers.join(', '), policy: JSON.stringify(document.policy), snapshots: document.snapshots.map((one) => one.snapshot).join(', ') })
    invocation.result(document, formatTable(rows.map(([key, value]) => [key, String(value ?? '-')])))
  }))

  cvd.command('remove').argument('<name>').option('--snapshots', 'remove its snapshots too').description('remove a CVD and everything written in it').action(action(async (invocation, name: string, options: { snapshots?: boolean }) => {
    await using home = await invocation.openHome()
    using _owner = (await ownCvd(home, name)).owner
    const removed = await home.catalog.removeCvd(name, { snapshots: options.snapshots })
    removeCvdFiles(home, removed)
    invocation.result(cvdDocument(removed), `removed ${name}`)
  }))

  withPolicyOptions(cvd.command('layers').argument('<name>').requiredOption('--set <layer...>', 'NAME or NAME@N, bottom first'))
    .option('--dry-run', 'say what the new stack gives, and change nothing')
    .option('--discard-writes', 'lose what was written since the last snapshot')
    .description('stack a CVD anew')
    .action(action(async (invocation, name: string, options: PolicyOptions & { set: string[]; dryRun?: boolean; discardWrites?: boolean }) => {
      await using home = await invocation.openHome()
      const policyOver = (before: Cvd): JsonObject => ({ ...before.policy, ...policyDocument(options) })
      if (options.dryRun === true) {
        await dryRun(invocation, home, { layers: options.set, policy: policyOver(await home.catalog.cvd(name)) })
        return
      }
      const { cvd: before, owner } = await ownCvd(home, name)
      using _owner = owner
      const policy = policyOver(before)
      const changed = await home.catalog.setCvdLayers(name, options.set, { policy, discardWrites: options.discardWrites })
      invocation.result(cvdDocument(changed), `${name}: ${changed.layers.map(formatLayerName).join(', ')}`)
    }))
}
