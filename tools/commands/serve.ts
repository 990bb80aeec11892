/**
 * `varve serve`: offers every CVD, snapshot and layer over NBD until it is told to end.
 */
import { Option } from 'commander'
import type { Command } from 'commander'
import { pino } from 'pino'
import { SharedExports } from '@varve/blockserver/nbd/export.ts'
import { NbdServer } from '@varve/blockserver/nbd/server.ts'
import { HomeExports } from '../exports.ts'
import { action } from '../invocation.ts'

const DEFAULT_ADDRESS = '127.0.0.1:10809'

export function addServeCommand(program: Command): void {
  program.command('serve')
    .option('--nbd <address...>', 'HOST:PORT, [IPV6]:PORT or unix:PATH; may be repeated', [DEFAULT_ADDRESS])
    .addOption(new Option('--log-level <level>', 'logs are JSON on standard error').choices(['trace', 'debug', 'info', 'warn', 'error']).default('warn'))
    .description('serve every CVD, CVD@SNAPSHOT and layer:NAME@N over NBD; SIGTERM and SIGINT end it when everything is durable')
    .action(action(async (invocation, options: { nbd: string[]; logLevel: string }) => {
      await using home = await invocation.openHome()
      const log = pino({ level: options.logLevel }, pino.destination({ dest: 2, sync: true }))
      const exports = new HomeExports(home, log)
      await using server = await NbdServer.listen(options.nbd, { provider: new SharedExports(exports), log })
      const names = (await exports.list()).map(({ name }) => name)
      invocation.result({ nbd: server.addresses, exports: names, pid: process.pid }, `serving ${names.length} exports on ${server.addresses.join(', ')}\n${names.map((name) => `  ${name}`).join('\n')}`)
      await new Promise<void>((resolve) => {
        if (invocation.signal.aborted) resolve()
        invocation.signal.addEventListener('abort', () => resolve(), { once: true })
      })
    }))
}
