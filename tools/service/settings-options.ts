/**
 * Options of the command line that are settings of `varve serve`; they go before the configuration file.
 */
import path from 'node:path'
import { type Command, InvalidArgumentError, Option } from 'commander'
import type { Invocation } from '../invocation.ts'
import { parseSize } from '../size.ts'
import { DEFAULT_CONFIG_FILE, type SettingsOverrides } from './config-file.ts'
import { CACHE_BYTES_RANGE, defaultSettings, LOG_LEVELS, type Settings, THREADS_MAX, TLS_MODES } from './settings.ts'

export interface SettingsOptions {
  config?: string
  nbd?: string[]
  threads?: number
  defaultExport?: string
  cache?: number
  http?: string
  recovery?: string
  images?: true
  logLevel?: Settings['log']['level']
  tls?: Settings['tls']['mode']
  tlsCert?: string
  tlsKey?: string
  tlsCa?: string
  tlsVerifyPeer?: true
  tlsPsk?: string
}

export function addSettingsOptions(command: Command): Command {
  const { nbd, http, log, tls } = defaultSettings()
  return command
    .option('--config <file>', `settings, which the options below go before (default: ${DEFAULT_CONFIG_FILE}, if there is one)`)
    .option('--nbd <address...>', `HOST:PORT, [IPV6]:PORT or unix:PATH; may be repeated (default: ${nbd.listen.join(' ')})`)
    .addOption(new Option('--threads <count>', `threads that serve connections (default: one for each processor, ${nbd.threads})`).argParser(threadCount))
    .option('--default-export <name>', 'what clients get that name no export (default: the only CVD)')
    .addOption(new Option('--cache <size>', 'memory for what is read, as 512M or 2G (default: an eighth of the memory, at least 256M, at most 4G)').argParser(cacheBytes))
    .option('--http <address>', `metrics, health and API; off: none (default: ${http.listen})`)
    .option('--recovery <directory>', 'offer what varve recovery build made in it under /boot/, for machines that boot from the network')
    .option('--images', 'offer snapshots and layers as image files under /images/ of HTTP')
    .addOption(new Option('--log-level <level>', `logs are JSON on standard error (default: ${log.level})`).choices(LOG_LEVELS))
    .addOption(new Option('--tls <mode>', `whether clients may or must use TLS (default: ${tls.mode})`).choices(TLS_MODES))
    .option('--tls-cert <file>', 'certificate of the server with its chain, PEM')
    .option('--tls-key <file>', 'its key, PEM')
    .option('--tls-ca <file>', 'authorities that sign certificates of clients, PEM')
    .option('--tls-verify-peer', 'clients must have such a certificate')
    .option('--tls-psk <file>', 'keys of clients, lines USER:HEXKEY')
}

function threadCount(text: string): number {
  const count = Number(text)
  if (!Number.isInteger(count) || count < 1 || count > THREADS_MAX) throw new InvalidArgumentError(`a whole number from 1 to ${THREADS_MAX} is wanted.`)
  return count
}

function cacheBytes(text: string): number {
  const bytes = Math.floor(parseSize(text) ?? 0)
  const { min, max } = CACHE_BYTES_RANGE
  if (bytes < min || bytes > max) throw new InvalidArgumentError('a size from 16M to 1T is wanted.')
  return bytes
}

export function overridesOf(options: SettingsOptions, { homeGiven }: Invocation): SettingsOverrides {
  const file = (name: string | undefined) => (name === undefined ? undefined : path.resolve(name))
  return {
    home: homeGiven,
    nbd: { listen: options.nbd, threads: options.threads, defaultExport: options.defaultExport },
    cache: { bytesMax: options.cache },
    http: { listen: options.http, recovery: file(options.recovery), images: options.images },
    log: { level: options.logLevel },
    tls: { mode: options.tls, certificate: file(options.tlsCert), key: file(options.tlsKey), ca: file(options.tlsCa), verifyPeer: options.tlsVerifyPeer, psk: file(options.tlsPsk) },
  }
}
