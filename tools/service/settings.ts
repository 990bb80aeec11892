/**
 * Settings of `varve serve`: what there is, what it is if nobody says otherwise, and what a configuration file may say.
 * The file (TOML) has the same sections and names, in kebab-case: `nbd.drainMsMax` is `drain-ms-max` in `[nbd]`. docs/service.md lists them.
 */
import os from 'node:os'
import { type AccessRule, ALLOWANCES } from '@varve/blockserver/nbd/access.ts'
import { type LimitRange, NBD_LIMIT_RANGES, NBD_LIMITS, type NbdLimits } from '@varve/blockserver/nbd/limits.ts'
import { STREAM_LIMIT_RANGES, STREAM_LIMITS, type StreamLimits } from '@varve/blockserver/stream/limits.ts'
import { RATE_OWNERS, type RateRule, type Site } from '@varve/blockserver/stream/rate-limits.ts'
import { addresses, addressOrOff, clients, dayTime, client, flag, oneOf, pathOf, text, type ValueReader, wholeNumber } from './setting-values.ts'

export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error'] as const
export const TLS_MODES = ['off', 'optional', 'required'] as const
/** Who speaks HTTP speaks it with TLS or without from the first byte. */
export const HTTP_TLS_MODES = ['off', 'required'] as const

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
    /** By the certificate of `tls`. */
    tls: (typeof HTTP_TLS_MODES)[number]
    /** Directory of what `varve recovery build` made, which is offered under /boot/. */
    recovery: string | undefined
    /** Whether disks are offered as image files under /images/, by the rules of [[access]]. */
    images: boolean
  }
  log: { level: (typeof LOG_LEVELS)[number] }
  limits: NbdLimits
  /** Streams of agents, on the address of HTTP. */
  stream: StreamLimits
  tls: TlsFiles
  access: AccessRule[]
  site: Site[]
  rate: RateRule[]
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
    http: { listen: '127.0.0.1:8470', tls: 'off', recovery: undefined, images: false },
    log: { level: 'warn' },
    limits: { ...NBD_LIMITS },
    stream: { ...STREAM_LIMITS },
    tls: { mode: 'off', certificate: undefined, key: undefined, ca: undefined, verifyPeer: false, psk: undefined },
    access: [],
    site: [],
    rate: [],
  }
}

/** An eighth of the memory that there is, or that the process may use; at least 256 MiB, at most 4 GiB. */
export function defaultCacheBytes(): number {
  const memory = Math.min(os.totalmem(), process.constrainedMemory() || Infinity)
  return Math.min(CACHE_BYTES_MOST, Math.max(CACHE_BYTES_LEAST, Math.floor(memory / 8 / MEBI) * MEBI))
}

type Readers<Section> = { readonly [Name in keyof Section]-?: ValueReader<NonNullable<Section[Name]>> }

/** Sections of the file that are tables of values. */
export const SECTIONS: { readonly [Name in 'nbd' | 'cache' | 'http' | 'log' | 'limits' | 'stream' | 'tls']: Readers<Settings[Name]> } = {
  nbd: { listen: addresses, threads: wholeNumber({ min: 1, max: THREADS_MAX }), defaultExport: text, drainMsMax: wholeNumber({ min: 0, max: DRAIN_MS_LONGEST }) },
  cache: { bytesMax: wholeNumber(CACHE_BYTES_RANGE) },
  http: { listen: addressOrOff, tls: oneOf(HTTP_TLS_MODES), recovery: pathOf('a directory'), images: flag },
  log: { level: oneOf(LOG_LEVELS) },
  limits: limitReaders(NBD_LIMIT_RANGES),
  stream: limitReaders(STREAM_LIMIT_RANGES),
  tls: { mode: oneOf(TLS_MODES), certificate: pathOf('a file'), key: pathOf('a file'), ca: pathOf('a file'), verifyPeer: flag, psk: pathOf('a file') },
}

function limitReaders<Name extends string>(ranges: Readonly<Record<Name, LimitRange>>): Record<Name, ValueReader<number>> {
  return Object.fromEntries(Object.entries<LimitRange>(ranges).map(([name, range]) => [name, wholeNumber(range)])) as Record<Name, ValueReader<number>>
}

/** Values outside of sections. */
export const TOP: Readers<Pick<Settings, 'home'>> = { home: pathOf('a directory') }

const BITS_PER_SECOND_RANGE = { min: 8000, max: 1e12 }

/** Lists of tables: `[[access]]`, `[[site]]`, `[[rate]]`. Each table has what is required; the others are what they are unless given. */
export const LISTS: { readonly [Name in 'access' | 'site' | 'rate']: { readers: Readers<Settings[Name][number]>; required: readonly (keyof Settings[Name][number])[]; others: Partial<Settings[Name][number]> } } = {
  access: { readers: { export: text, client, identity: text, allow: oneOf(ALLOWANCES) }, required: ['allow'], others: { export: '*', client: undefined, identity: undefined } },
  site: { readers: { name: text, clients }, required: ['name', 'clients'], others: {} },
  rate: {
    readers: { per: oneOf(RATE_OWNERS), site: text, from: dayTime, to: dayTime, bitsPerSecondMax: wholeNumber(BITS_PER_SECOND_RANGE) },
    required: ['per', 'bitsPerSecondMax'],
    others: { site: undefined, from: undefined, to: undefined },
  },
}

export interface Mistake {
  /** As in the file: `tls.key`, `access[1].allow`. */
  key: string
  /** Continues the key: `must be ...`, `needs ...`. */
  message: string
}

/** What each value may be by itself, but not together. */
export function contradictions({ limits, http, tls, access, site, rate }: Settings): Mistake[] {
  const mistakes: Mistake[] = []
  const needs = (wrong: boolean, key: string, message: string) => {
    if (wrong) mistakes.push({ key, message })
  }
  needs(limits.sharedBytesMax < limits.requestBytesMax, 'limits.shared-bytes-max', 'must hold at least one request: limits.request-bytes-max')
  needs(tls.certificate !== undefined && tls.key === undefined, 'tls.certificate', 'needs its key: tls.key')
  needs(tls.key !== undefined && tls.certificate === undefined, 'tls.key', 'needs its certificate: tls.certificate')
  needs(tls.verifyPeer && tls.ca === undefined, 'tls.verify-peer', 'needs the authorities that sign certificates of clients: tls.ca')
  needs(tls.mode !== 'off' && tls.certificate === undefined && tls.psk === undefined, 'tls.mode', 'needs tls.certificate and tls.key, or tls.psk')
  needs(http.tls !== 'off' && tls.certificate === undefined, 'http.tls', 'needs tls.certificate and tls.key')
  for (const [index, { name }] of site.entries()) needs(site.findIndex((one) => one.name === name) < index, `site[${index}].name`, 'is the name of another site')
  for (const [index, { site: name, from, to }] of rate.entries()) {
    needs(name !== undefined && !site.some((one) => one.name === name), `rate[${index}].site`, 'is no name of a [[site]]')
    needs(from !== undefined && from === to, `rate[${index}].to`, 'is when it begins')
  }
  for (const [index, { identity }] of access.entries()) needs(identity !== undefined && tls.mode === 'off', `access[${index}].identity`, 'is known by TLS only, and tls.mode is "off"')
  return mistakes
}

/** `drainMsMax` -> `drain-ms-max` */
export function kebab(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
}
