/**
 * Settings of `varve serve`: what there is, what it is if nobody says otherwise, and what a configuration file may say.
 * The file (TOML) has the same sections and names, in kebab-case: `nbd.drainMsMax` is `drain-ms-max` in `[nbd]`. docs/service.md lists them.
 */
import os from 'node:os'
import { type AccessRule, ALLOWANCES } from '@varve/blockserver/nbd/access.ts'
import { NBD_LIMIT_RANGES, NBD_LIMITS, type NbdLimits } from '@varve/blockserver/nbd/limits.ts'
import { addresses, addressOrOff, client, flag, oneOf, pathOf, text, type ValueReader, wholeNumber } from './setting-values.ts'

export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error'] as const
export const TLS_MODES = ['off', 'optional', 'required'] as const

export interface Settings {
  /** undefined: as for every command, `$VARVE_HOME` or `~/.local/share/varve`. */
  home: string | undefined
  nbd: {
    listen: string[]
    /** That serve connections. */
    threads: number
    /** What a client gets that names no export; undefined: the only CVD. */
    defaultExport: string | undefined
    /** How long requests in flight are waited for at the end. */
    drainMsMax: number
  }
  cache: {
    /** Memory for chunks as they are read, decompressed, that all connections share. */
    bytesMax: number
  }
  http: {
    /** Address, or `off`. */
    listen: string
  }
  log: { level: (typeof LOG_LEVELS)[number] }
  limits: NbdLimits
  tls: TlsFiles
  access: AccessRule[]
}

export interface TlsFiles {
  mode: (typeof TLS_MODES)[number]
  /** PEM files: certificate of the server (with its chain), its key, and authorities that sign certificates of clients. */
  certificate: string | undefined
  key: string | undefined
  ca: string | undefined
  /** Clients must have a certificate that `ca` signed. */
  verifyPeer: boolean
  /** File of lines `USER:HEXKEY`. */
  psk: string | undefined
}

export const THREADS_MAX = 256
const MEBI = 1024 * 1024
/** Of the default. */
const CACHE_BYTES_LEAST = 256 * MEBI
const CACHE_BYTES_MOST = 4096 * MEBI
/** That can be set. */
export const CACHE_BYTES_RANGE = { min: 16 * MEBI, max: 1024 ** 4 }
const DRAIN_MS_LONGEST = 3600 * 1000

export function defaultSettings(): Settings {
  return {
    home: undefined,
    nbd: { listen: ['127.0.0.1:10809'], threads: os.availableParallelism(), defaultExport: undefined, drainMsMax: 5000 },
    cache: { bytesMax: defaultCacheBytes() },
    http: { listen: '127.0.0.1:8470' },
    log: { level: 'warn' },
    limits: { ...NBD_LIMITS },
    tls: { mode: 'off', certificate: undefined, key: undefined, ca: undefined, verifyPeer: false, psk: undefined },
    access: [],
  }
}

/** An eighth of the memory that there is, or that the process may use; at least 256 MiB, at most 4 GiB. */
function defaultCacheBytes(): number {
  const memory = Math.min(os.totalmem(), process.constrainedMemory() || Infinity)
  return Math.min(CACHE_BYTES_MOST, Math.max(CACHE_BYTES_LEAST, Math.floor(memory / 8 / MEBI) * MEBI))
}

type Readers<Section> = { readonly [Name in keyof Section]-?: ValueReader<NonNullable<Section[Name]>> }

/** Sections of the file that are tables of values. */
export const SECTIONS: { readonly [Name in 'nbd' | 'cache' | 'http' | 'log' | 'limits' | 'tls']: Readers<Settings[Name]> } = {
  nbd: { listen: addresses, threads: wholeNumber({ min: 1, max: THREADS_MAX }), defaultExport: text, drainMsMax: wholeNumber({ min: 0, max: DRAIN_MS_LONGEST }) },
  cache: { bytesMax: wholeNumber(CACHE_BYTES_RANGE) },
  http: { listen: addressOrOff },
  log: { level: oneOf(LOG_LEVELS) },
  limits: Object.fromEntries(Object.entries(NBD_LIMIT_RANGES).map(([name, range]) => [name, wholeNumber(range)])) as unknown as Readers<NbdLimits>,
  tls: { mode: oneOf(TLS_MODES), certificate: pathOf('a file'), key: pathOf('a file'), ca: pathOf('a file'), verifyPeer: flag, psk: pathOf('a file') },
}

/** Values outside of sections. */
export const TOP: Readers<Pick<Settings, 'home'>> = { home: pathOf('a directory') }

/** Each `[[access]]`. */
export const ACCESS_RULE: Readers<AccessRule> = { export: text, client, identity: text, allow: oneOf(ALLOWANCES) }

export interface Mistake {
  /** As in the file: `tls.key`, `access[1].allow`. */
  key: string
  /** Continues the key: `must be ...`, `needs ...`. */
  message: string
}

/** What each value may be by itself, but not together. */
export function contradictions({ limits, tls, access }: Settings): Mistake[] {
  const mistakes: Mistake[] = []
  const needs = (wrong: boolean, key: string, message: string) => {
    if (wrong) mistakes.push({ key, message })
  }
  needs(limits.sharedBytesMax < limits.requestBytesMax, 'limits.shared-bytes-max', 'must hold at least one request: limits.request-bytes-max')
  needs(tls.certificate !== undefined && tls.key === undefined, 'tls.certificate', 'needs its key: tls.key')
  needs(tls.key !== undefined && tls.certificate === undefined, 'tls.key', 'needs its certificate: tls.certificate')
  needs(tls.verifyPeer && tls.ca === undefined, 'tls.verify-peer', 'needs the authorities that sign certificates of clients: tls.ca')
  needs(tls.mode !== 'off' && tls.certificate === undefined && tls.psk === undefined, 'tls.mode', 'needs tls.certificate and tls.key, or tls.psk')
  for (const [index, { identity }] of access.entries()) needs(identity !== undefined && tls.mode === 'off', `access[${index}].identity`, 'is known by TLS only, and tls.mode is "off"')
  return mistakes
}

/** `drainMsMax` -> `drain-ms-max` */
export function kebab(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
}
