/**
 * `varve serve`: offers every CVD, snapshot and layer over NBD until it is told to end.
 */
import os from 'node:os'
import { InvalidArgumentError, Option } from 'commander'
import type { Command } from 'commander'
import { pino } from 'pino'
import { NbdServer } from '@varve/blockserver/nbd/server.ts'
import { CacheFiller } from '@varve/images/device/cache-filler.ts'
import { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { packsDirectory } from '@varve/images/store/home.ts'
import { CACHE_BYTES_MAX, HomeExports } from '../exports.ts'
import { action } from '../invocation.ts'
import { exportsOfHome } from '../served-exports.ts'
import { addTlsOptions, tlsSettings, type TlsOptions } from '../tls-options.ts'

const DEFAULT_ADDRESS = '127.0.0.1:10809'

export function addServeCommand(program: Command): void {
  addTlsOptions(program.command('serve'))
    .option('--nbd <address...>', 'HOST:PORT, [IPV6]:PORT or unix:PATH; may be repeated', [DEFAULT_ADDRESS])
    .option('--default-export <name>', 'what clients get that name no export (default: the only CVD)')
    .addOption(new Option('--threads <count>', 'threads that serve connections').argParser(threadCount).default(os.availableParallelism(), 'one for each processor'))
    .addOption(new Option('--log-level <level>', 'logs are JSON on standard error').choices(['trace', 'debug', 'info', 'warn', 'error']).default('warn'))
    .description('serve every CVD, CVD@SNAPSHOT and layer:NAME@N over NBD; SIGTERM and SIGINT end it when everything is durable')
    .action(action(async (invocation, options: TlsOptions & { nbd: string[]; threads: number; defaultExport?: string; logLevel: string }) => {
      const tls = tlsSettings(options)
      await using home = await invocation.openHome()
      const log = pino({ level: options.logLevel }, pino.destination({ dest: 2, sync: true }))
      const { threads } = options
      // After the server's threads the one that fills the cache, and this one.
      const cache = ChunkCache.create({ bytesMax: CACHE_BYTES_MAX, threads: threads + 2, hasFiller: true })
      await using _filler = new CacheFiller({ packsDirectory: packsDirectory(home.directory), memory: cache.memory, thread: threads }, (error) => {
        log.error({ err: error }, 'the thread that reads ahead failed')
        cache.threadEnded(threads)
      })
      await using server = await NbdServer.listen(options.nbd, {
        threads, exports: exportsOfHome(home.directory, cache), threadEnded: (thread) => cache.threadEnded(thread), tls, defaultExport: options.defaultExport, log,
      })
      const names = (await new HomeExports(home, log, cache).list()).map(({ name }) => name)
      invocation.result({ nbd: server.addresses, exports: names, pid: process.pid }, `serving ${names.length} exports on ${server.addresses.join(', ')}\n${names.map((name) => `  ${name}`).join('\n')}`)
      await new Promise<void>((resolve) => {
        if (invocation.signal.aborted) resolve()
        invocation.signal.addEventListener('abort', () => resolve(), { once: true })
      })
    }))
}

function threadCount(text: string): number {
  const count = Number(text)
  if (!Number.isInteger(count) || count < 1 || count > 256) throw new InvalidArgumentError('a whole number from 1 to 256 is wanted.')
  return count
}
