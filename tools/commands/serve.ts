/**
 * `varve serve`: offers every CVD, snapshot and layer over NBD until it is told to end; SIGHUP reads the configuration again.
 */
import type { Command } from 'commander'
import { openLog } from '@varve/blockserver/log.ts'
import { action } from '../invocation.ts'
import { requireSettings } from '../service/config-file.ts'
import { Notifier } from '../service/notifier.ts'
import { Reloads } from '../service/reloads.ts'
import { Service } from '../service/service.ts'
import { addSettingsOptions, overridesOf, type SettingsOptions } from '../service/settings-options.ts'

export function addServeCommand(program: Command): void {
  addSettingsOptions(program.command('serve'))
    .description('serve every CVD, CVD@SNAPSHOT and layer:NAME@N over NBD; SIGTERM and SIGINT end it when everything is durable, SIGHUP reads the configuration again')
    .action(action(async (invocation, options: SettingsOptions) => {
      const overrides = overridesOf(options, invocation)
      const { settings, file } = requireSettings(options.config, overrides)
      const log = openLog(settings.log.level)
      using notifier = new Notifier(log)
      using reloads = new Reloads({ file: file ?? options.config, overrides, log, notifier })
      await using home = await invocation.openHome(settings.home)
      await using service = await Service.start(settings, { home, log })
      const names = (await service.exports()).map(({ name }) => name)
      const addresses = [...service.nbdAddresses, ...(service.httpAddress === undefined ? [] : [`http${settings.http.tls === 'off' ? '' : 's'} ${service.httpAddress}`])]
      const summary = `serving ${names.length} exports on ${addresses.join(', ')}`
      invocation.result({ nbd: service.nbdAddresses, http: service.httpAddress ?? null, exports: names, pid: process.pid }, `${summary}\n${names.map((name) => `  ${name}`).join('\n')}`)
      log.info({ nbd: service.nbdAddresses, http: service.httpAddress, exports: names.length, config: file }, 'serving')
      reloads.begin(service, summary)
      notifier.ready(summary)
      await new Promise<void>((resolve) => {
        if (invocation.signal.aborted) resolve()
        invocation.signal.addEventListener('abort', () => resolve(), { once: true })
      })
      reloads.end()
      notifier.stopping('answering what is in flight')
    }))
}
