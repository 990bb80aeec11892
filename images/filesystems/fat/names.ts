/**
 * Names of a FAT directory: long names (VFAT) and the unique 8.3 alias that each of them needs.
 * Specified by Microsoft's "FAT: General Overview of On-Disk Format", version 1.03, section "FAT Long Directory Entries".
 */
import { VarveError } from '../../errors.ts'

/** UTF-16 units of the longest name. */
export const LONG_NAME_UNITS_MAX = 255
/** UTF-16 units in one directory entry of a long name. */
export const UNITS_PER_LONG_ENTRY = 13
/** Directory entries of the longest name. */
export const LONG_ENTRIES_MAX = Math.ceil(LONG_NAME_UNITS_MAX / UNITS_PER_LONG_ENTRY)
/** Bytes of a short name: 8 and 3, padded with spaces, without the dot. */
export const SHORT_NAME_BYTES = 11

export interface FatName {
  /** 11 characters of ASCII: base and extension, padded with spaces. */
  short: string
  /** Undefined if the name is exactly its short name. */
  long: string | undefined
}

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })
const FORBIDDEN = /[\u0000-\u001f"*/:<>?\\|\u007f]/
const SHORT = /^([A-Za-z0-9!#$%&'()\-@^_`{}~]{1,8})(?:\.([A-Za-z0-9!#$%&'()\-@^_`{}~]{1,3}))?$/
const NOT_SHORT = /[^A-Z0-9!#$%&'()\-@^_`{}~]/g

/**
 * Names of the entries of one directory, in the same order. The aliases depend on nothing but the names and their order.
 * @param names bytes in latin1, as in Tree
 * @param where path of the directory, for messages
 * @throws VarveError NAME_INVALID for a name that FAT cannot hold, or that differs from another by case only
 */
export function fatNames(names: readonly string[], where: string): FatName[] {
  const decoded = names.map((name) => decodeName(name, where))
  const folded = new Map<string, string>()
  for (const name of decoded) {
    const fold = foldCase(name)
    const other = folded.get(fold)
    if (other !== undefined) throw new VarveError('NAME_INVALID', `${where}: FAT takes the names ${other} and ${name} for one; rename one of them`)
    folded.set(fold, name)
  }
  const used = new Set<string>()
  const whole = decoded.map((name) => {
    const match = SHORT.exec(name)
    if (match === null) return undefined
    const short = (match[1].padEnd(8) + (match[2] ?? '').padEnd(3)).toUpperCase()
    used.add(short)
    return short
  })
  const counters = new Map<string, number>()
  return decoded.map((name, index) => ({
    short: whole[index] ?? alias(name, used, counters),
    long: whole[index] !== undefined && name === name.toUpperCase() ? undefined : name,
  }))
}

function decodeName(name: string, where: string): string {
  let text
  try {
    text = utf8.decode(Buffer.from(name, 'latin1'))
  } catch (cause) {
    throw new VarveError('NAME_INVALID', `${where}: FAT cannot hold the name ${JSON.stringify(name)}, which is not UTF-8`, { cause })
  }
  if (text.length > LONG_NAME_UNITS_MAX || FORBIDDEN.test(text) || /[. ]$/.test(text)) {
    throw new VarveError('NAME_INVALID', `${where}: FAT cannot hold the name ${JSON.stringify(text)}; rename it`)
  }
  return text
}

/** Upper case, unit by unit, where that does not change the length: how FAT compares names. */
export function foldCase(name: string): string {
  let fold = ''
  for (let index = 0; index < name.length; index++) {
    const upper = name[index].toUpperCase()
    fold += upper.length === 1 ? upper : name[index]
  }
  return fold
}

/**
 * An unused short name with a numeric tail. `counters` knows the next number by stem and digits,
 * so that any number of alike names costs a constant time each.
 */
function alias(name: string, used: Set<string>, counters: Map<string, number>): string {
  const trimmed = name.toUpperCase().replace(/^[. ]+/, '').replaceAll(' ', '')
  const dot = trimmed.lastIndexOf('.')
  const base = (dot < 0 ? trimmed : trimmed.slice(0, dot)).replaceAll('.', '').replace(NOT_SHORT, '_') || '_'
  const extension = dot < 0 ? '' : trimmed.slice(dot + 1).replace(NOT_SHORT, '_').slice(0, 3)
  for (let digits = 1; digits <= 6; digits++) {
    const stem = base.slice(0, 7 - digits)
    const key = `${digits}${stem}.${extension}`
    let number = counters.get(key) ?? 10 ** (digits - 1)
    for (; number < 10 ** digits; number++) {
      const short = `${stem}~${number}`.padEnd(8) + extension.padEnd(3)
      if (used.has(short)) continue
      used.add(short)
      counters.set(key, number + 1)
      return short
    }
    counters.set(key, number)
  }
  throw new VarveError('LIMIT_EXCEEDED', `FAT has no short name left for ${name}`)
}
