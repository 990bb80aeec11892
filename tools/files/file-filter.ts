/**
 * What `varve find` is asked for.
 */
import { VarveError } from '@varve/images/errors.ts'
import type { FileNode } from '@varve/images/filesystems/filesystem.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import { parseDuration } from '../duration.ts'
import { parseSize } from '../size.ts'
import { kindOfLetter } from './file-listing.ts'

export interface FilterOptions {
  /** `*` and `?` stand for other characters. */
  name?: string
  /** Letters of kinds. */
  type?: string
  /** `+10M`: larger; `-10M`: smaller; `10M`: exactly. */
  size?: string
  newer?: string
  older?: string
}

/** @returns whether a file is wanted, by its name (latin1) and node @throws VarveError SOURCE_INVALID for an option that cannot be understood */
export function fileFilter({ name, type, size, newer, older }: FilterOptions): (name: string, node: FileNode) => boolean {
  const tests: ((name: string, node: FileNode) => boolean)[] = []
  if (name !== undefined) {
    const pattern = nameMatcher(name)
    tests.push((found) => pattern(found))
  }
  if (type !== undefined) {
    const kinds = new Set([...type.replaceAll(',', '')].map((letter) => kindOfLetter(letter) ?? refuse(`--type ${type}`, 'letters of f, d, l, b, c, p, s')))
    tests.push((_, node) => kinds.has(node.kind))
  }
  if (size !== undefined) {
    const bytes = parseSize(size.replace(/^[+-]/, '')) ?? refuse(`--size ${size}`, 'such as +10M, -4K or 512')
    tests.push((_, node) => node.kind === Kind.file && (size.startsWith('+') ? node.sizeBytes > bytes : size.startsWith('-') ? node.sizeBytes < bytes : node.sizeBytes === bytes))
  }
  if (newer !== undefined) {
    const since = timeOf('--newer', newer)
    tests.push((_, node) => milliseconds(node) > since)
  }
  if (older !== undefined) {
    const until = timeOf('--older', older)
    tests.push((_, node) => milliseconds(node) <= until)
  }
  return (found, node) => tests.every((test) => test(found, node))
}

/** Without regular expressions: a pattern takes no more time than its length times that of a name. */
function nameMatcher(text: string): (name: string) => boolean {
  const pattern = Buffer.from(text).toString('latin1')
  return (name) => {
    let [at, in_, star, starAt] = [0, 0, -1, 0]
    while (at < name.length) {
      if (in_ < pattern.length && pattern[in_] === '*') [star, starAt] = [in_++, at]
      else if (in_ < pattern.length && (pattern[in_] === '?' || pattern[in_] === name[at])) [at, in_] = [at + 1, in_ + 1]
      else if (star >= 0) [in_, at] = [star + 1, ++starAt]
      else return false
    }
    while (pattern[in_] === '*') in_++
    return in_ === pattern.length
  }
}

function milliseconds({ modified }: FileNode): number {
  return modified.seconds * 1000 + modified.nanoseconds / 1e6
}

/** A date, with time or without, or a duration before now: milliseconds since 1970. */
function timeOf(option: string, text: string): number {
  const ago = parseDuration(text)
  if (ago !== undefined) return Date.now() - ago
  const time = /^\d{4}-\d\d-\d\d/.test(text) ? Date.parse(text) : NaN
  return Number.isNaN(time) ? refuse(`${option} ${text}`, 'a date such as 2026-11-22T10:00, or a duration such as 7d') : time
}

function refuse(what: string, wanted: string): never {
  throw new VarveError('SOURCE_INVALID', `${what} is not understood: give ${wanted}`)
}
