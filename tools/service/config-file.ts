/**
 * The configuration file of `varve serve`: TOML, read whole and checked whole, so that all mistakes are known at once.
 */
import { readFileSync, statSync } from 'node:fs'
import path from 'node:path'
import { parse, stringify, TomlError } from 'smol-toml'
import { isVarveError, VarveError } from '@varve/images/errors.ts'
import { httpCredentials, policyOptions } from './policy-settings.ts'
import { contradictions, defaultSettings, kebab, LISTS, SECTIONS, TOP } from './settings.ts'
import type { Mistake, Settings } from './settings.ts'
import { NotAllowed, shown } from './setting-values.ts'
import type { ValueReader } from './setting-values.ts'

export const DEFAULT_CONFIG_FILE = '/etc/varve/varve.toml'
const FILE_BYTES_MAX = 1024 * 1024

/** What the command line says; it goes before the file. */
export type SettingsOverrides = { [Section in 'nbd' | 'cache' | 'http' | 'log' | 'tls']?: Partial<Settings[Section]> } & { home?: string }

export interface LoadedSettings {
  settings: Settings
  /** undefined if there is none. */
  file: string | undefined
  /** One line each, which names the file and the place in it. Settings are not to be used if there are any. */
  mistakes: string[]
}

/**
 * Settings of a file, with what goes before it.
 * @param file undefined: DEFAULT_CONFIG_FILE, if there is one
 */
export function loadSettings(file: string | undefined, overrides: SettingsOverrides = {}): LoadedSettings {
  const chosen = file ?? DEFAULT_CONFIG_FILE
  const settings = defaultSettings()
  const mistakes: string[] = []
  const text = readText(chosen, mistakes)
  const found = text !== undefined || mistakes.length > 0
  if (file !== undefined && !found) mistakes.push(`${chosen}: there is no such file`)
  if (text !== undefined) {
    const reading = new Reading(settings, path.dirname(path.resolve(chosen)))
    try {
      reading.document(parse(text))
    } catch (error) {
      if (!(error instanceof TomlError)) throw error
      mistakes.push(`${chosen}:${error.line}:${error.column}: ${error.message.split('\n')[0]}`)
    }
    for (const { key, message } of reading.mistakes) mistakes.push(`${chosen}: ${key} ${message}`)
  }
  override(settings, overrides)
  // Values that were refused are as nobody had said them, and would contradict others.
  if (mistakes.length === 0) for (const { key, message } of mistakesOf(settings)) mistakes.push(`${found ? `${chosen}: ` : ''}${key} ${message}`)
  return { settings, file: found ? chosen : undefined, mistakes }
}

/** @throws VarveError CONFIG_INVALID */
export function requireSettings(file: string | undefined, overrides: SettingsOverrides = {}): LoadedSettings {
  const loaded = loadSettings(file, overrides)
  const { mistakes } = loaded
  if (mistakes.length === 1) throw new VarveError('CONFIG_INVALID', mistakes[0])
  if (mistakes.length > 1) throw new VarveError('CONFIG_INVALID', `${mistakes[0]}; and ${mistakes.length - 1} more, which varve config check lists`)
  return loaded
}

/** Settings as a configuration file; what is not set is left out. */
export function formatSettings(settings: Settings): string {
  const { access, site, rate } = settings
  const unlessEmpty = <One>(list: One[]) => (list.length > 0 ? list : undefined)
  return stringify(kebabKeys({ ...settings, access: unlessEmpty(access), site: unlessEmpty(site), rate: unlessEmpty(rate) }))
}

function readText(file: string, mistakes: string[]): string | undefined {
  try {
    const { size } = statSync(file)
    if (size <= FILE_BYTES_MAX) return readFileSync(file, 'utf8')
    mistakes.push(`${file}: a configuration file has at most ${FILE_BYTES_MAX} bytes`)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code !== 'ENOENT' && code !== 'ENOTDIR') mistakes.push(`${file}: cannot be read: ${code ?? String(error)}`)
  }
  return undefined
}

class Reading {
  readonly mistakes: Mistake[] = []
  readonly #settings: Settings
  readonly #directory: string

  constructor(settings: Settings, directory: string) {
    this.#settings = settings
    this.#directory = directory
  }

  document(document: Record<string, unknown>): void {
    const sections = SECTIONS as unknown as Record<string, Record<string, ValueReader<unknown>>>
    for (const [name, value] of Object.entries(document)) {
      if (Object.hasOwn(LISTS, name)) this.#list(name as keyof typeof LISTS, value)
      else if (Object.hasOwn(TOP, name)) this.#value(this.#settings, TOP, name, name, value)
      else if (!Object.hasOwn(sections, name)) this.#mistake(name, `is not known; there are ${[...Object.keys(TOP), ...Object.keys(sections).map((section) => `[${section}]`), ...Object.keys(LISTS).map((list) => `[[${list}]]`)].join(', ')}`)
      else if (!isTable(value)) this.#mistake(name, `must be a section: [${name}]`)
      else this.#table(this.#settings[name as 'nbd'], sections[name], name, value)
    }
  }

  #table(into: object, readers: Record<string, ValueReader<unknown>>, prefix: string, table: Record<string, unknown>): void {
    const names = new Map(Object.keys(readers).map((name) => [kebab(name), name]))
    for (const [key, value] of Object.entries(table)) {
      const name = names.get(key)
      if (name === undefined) this.#mistake(`${prefix}.${key}`, `is not known; there are ${[...names.keys()].join(', ')}`)
      else this.#value(into, readers, name, `${prefix}.${key}`, value)
    }
  }

  #list(name: keyof typeof LISTS, value: unknown): void {
    if (!Array.isArray(value) || !value.every(isTable)) return this.#mistake(name, `must be a list of tables, each under [[${name}]]`)
    const { readers, required, others } = LISTS[name]
    const tables = value.map((table, index) => {
      const read: object = { ...others }
      this.#table(read, readers, `${name}[${index}]`, table)
      for (const key of required) if (!Object.hasOwn(table, kebab(key))) this.#mistake(`${name}[${index}].${kebab(key)}`, 'is missing')
      return read
    });
    (this.#settings as unknown as Record<string, object[]>)[name] = tables
  }

  #value(into: object, readers: object, name: string, key: string, value: unknown): void {
    try {
      const read = (readers as Record<string, ValueReader<unknown>>)[name];
      (into as Record<string, unknown>)[name] = read(value, this.#directory)
    } catch (error) {
      if (!(error instanceof NotAllowed)) throw error
      this.#mistake(key, error.message)
    }
  }

  #mistake(key: string, message: string): void {
    // Keys of a file may have any characters; a mistake has one line.
    this.mistakes.push({ key: /^[\w.[\]-]{1,100}$/.test(key) ? key : shown(key), message })
  }
}

function isTable(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof Date)
}

function override(settings: Settings, { home, ...sections }: SettingsOverrides): void {
  if (home !== undefined) settings.home = home
  for (const [section, values] of Object.entries(sections)) {
    for (const [name, value] of Object.entries(values)) if (value !== undefined) (settings[section as 'nbd'] as Record<string, unknown>)[name] = value
  }
}

function mistakesOf(settings: Settings): Mistake[] {
  const found = contradictions(settings)
  return found.length > 0 ? found : credentialMistakes(settings)
}

/** Files of TLS that cannot be used. */
function credentialMistakes(settings: Settings): Mistake[] {
  try {
    policyOptions(settings)
    httpCredentials(settings)
    return []
  } catch (error) {
    if (!isVarveError(error, 'CREDENTIALS_INVALID')) throw error
    return [{ key: 'tls', message: `cannot be used: ${error.message}` }]
  }
}

function kebabKeys(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(kebabKeys)
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(Object.entries(value).filter(([, one]) => one !== undefined).map(([name, one]) => [kebab(name), kebabKeys(one)]))
}
