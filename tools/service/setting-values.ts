/**
 * Readers of single values of a configuration file. Each gives a value of its type, or throws NotAllowed, which says what is allowed.
 */
import path from 'node:path'
import { clientMatcher } from '@varve/blockserver/nbd/access.ts'
import { STRING_BYTES_MAX, type LimitRange } from '@varve/blockserver/nbd/limits.ts'
import { parseDayMinute } from '@varve/blockserver/stream/rate-limits.ts'
import { parseAddress } from '@varve/blockserver/listen-address.ts'

/** @param directory of the configuration file: what relative paths start from */
export type ValueReader<Value> = (value: unknown, directory: string) => Value

/** The message continues `KEY ...`, in one line. */
export class NotAllowed extends Error {
  override name = 'NotAllowed'

  constructor(allowed: string, value: unknown) {
    super(`must be ${allowed}, not ${shown(value)}`)
  }
}

const SHOWN_CHARACTERS_MAX = 60

export function shown(value: unknown): string {
  const text = JSON.stringify(value) ?? String(value)
  return text.length > SHOWN_CHARACTERS_MAX ? `${text.slice(0, SHOWN_CHARACTERS_MAX)}...` : text
}

export function oneOf<const Value extends string>(values: readonly Value[]): ValueReader<Value> {
  return (value) => {
    const found = values.find((one) => one === value)
    if (found === undefined) throw new NotAllowed(values.map((one) => `"${one}"`).join(' or '), value)
    return found
  }
}

export function wholeNumber({ min, max, multipleOf = 1 }: LimitRange): ValueReader<number> {
  return (value) => {
    if (typeof value === 'number' && Number.isInteger(value) && value >= min && value <= max && value % multipleOf === 0) return value
    throw new NotAllowed(`a whole number from ${min} to ${max}${multipleOf === 1 ? '' : `, a multiple of ${multipleOf}`}`, value)
  }
}

export const flag: ValueReader<boolean> = (value) => {
  if (typeof value !== 'boolean') throw new NotAllowed('true or false', value)
  return value
}

export const text: ValueReader<string> = (value) => {
  if (typeof value !== 'string' || value === '' || Buffer.byteLength(value) > STRING_BYTES_MAX) throw new NotAllowed(`a text of 1 to ${STRING_BYTES_MAX} bytes`, value)
  return value
}

export function pathOf(what: 'a file' | 'a directory'): ValueReader<string> {
  return (value, directory) => {
    if (typeof value !== 'string' || value === '' || value.includes('\0')) throw new NotAllowed(`the path of ${what}`, value)
    return path.resolve(directory, value)
  }
}

/** A text that `parse` understands. @param allowed what it understands, in words */
function understoodBy(parse: (text: string) => unknown, allowed: string): ValueReader<string> {
  return (value) => {
    try {
      if (typeof value === 'string') {
        parse(value)
        return value
      }
    } catch {
      // Said below, in the words of this file.
    }
    throw new NotAllowed(allowed, value)
  }
}

export const address = understoodBy(parseAddress, 'HOST:PORT, [IPV6]:PORT or unix:PATH')

export const addressOrOff: ValueReader<string> = (value, directory) => {
  try {
    return value === 'off' ? value : address(value, directory)
  } catch {
    throw new NotAllowed('HOST:PORT, [IPV6]:PORT, unix:PATH or "off"', value)
  }
}

export const addresses: ValueReader<string[]> = (value, directory) => {
  if (!Array.isArray(value) || value.length === 0) throw new NotAllowed('a list of addresses, like ["127.0.0.1:10809"]', value)
  return value.map((one) => address(one, directory))
}

/** An IP address, a CIDR block, `unix` for clients on unix sockets, or `uid:N` for those of one user. */
export const client = understoodBy(clientMatcher, 'an IP address, a block like "10.0.0.0/8", "unix" or "uid:N"')

/** Addresses of a site. */
export const clients: ValueReader<string[]> = (value) => {
  const isAddress = (one: unknown) => typeof one === 'string' && /^[\d.:a-fA-F/]+$/.test(one)
  if (Array.isArray(value) && value.length > 0 && value.every(isAddress)) {
    try {
      value.forEach((one: string) => clientMatcher(one))
      return value as string[]
    } catch {
      // Said below, in the words of this file.
    }
  }
  throw new NotAllowed('a list of IP addresses and blocks, like ["10.0.0.0/8"]', value)
}

export const dayTime = understoodBy((text) => {
  if (parseDayMinute(text) === undefined) throw new RangeError(text)
}, 'a time of day like "08:30"')
