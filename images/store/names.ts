/**
 * Names of layers, CVDs and snapshots as people write them: `NAME`, `NAME@3`, `CVD@snapshot`.
 */
import { VarveError } from '../errors.ts'

/** Longest name, characters. */
export const NAME_LENGTH_MAX = 100
/** Highest version of a layer. */
export const VERSION_MAX = 2 ** 31 - 1

const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]*$/
const VERSION = /^[1-9][0-9]{0,9}$/

/**
 * @param what what it names, for the message: `layer`, `CVD`, `snapshot`
 * @throws VarveError NAME_INVALID
 */
export function checkName(name: string, what: string): void {
  if (name.length > NAME_LENGTH_MAX || !NAME.test(name)) {
    throw new VarveError('NAME_INVALID', `${JSON.stringify(name.slice(0, 200))} is not a name of a ${what}: letters, digits, '.', '-' and '_', at most ${NAME_LENGTH_MAX}, a letter or digit first`)
  }
}

/**
 * `NAME` or `NAME@N`; without N the latest version is meant.
 * @throws VarveError NAME_INVALID
 */
export function parseLayerName(text: string): { name: string; version?: number } {
  const at = text.indexOf('@')
  const name = at < 0 ? text : text.slice(0, at)
  checkName(name, 'layer')
  if (at < 0) return { name }
  const version = text.slice(at + 1)
  if (!VERSION.test(version) || Number(version) > VERSION_MAX) throw new VarveError('NAME_INVALID', `${JSON.stringify(version.slice(0, 200))} is not a version of a layer: a whole number from 1`)
  return { name, version: Number(version) }
}

export function formatLayerName({ name, version }: { name: string; version: number }): string {
  return `${name}@${version}`
}

/**
 * `CVD` or `CVD@snapshot`.
 * @throws VarveError NAME_INVALID
 */
export function parseCvdName(text: string): { cvd: string; snapshot?: string } {
  const at = text.indexOf('@')
  const cvd = at < 0 ? text : text.slice(0, at)
  checkName(cvd, 'CVD')
  if (at < 0) return { cvd }
  const snapshot = text.slice(at + 1)
  checkName(snapshot, 'snapshot')
  return { cvd, snapshot }
}
