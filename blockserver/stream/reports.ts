/**
 * Payloads of HEAT and BOOT: what an agent tells about the use of a disk's chunks. Bytes: docs/formats/stream.md
 */
import { VarveError } from '@varve/images/errors.ts'

/** Bytes of a varint of 32 bits. */
const VARINT_BYTES_MAX = 5
const UINT32_MAX = 2 ** 32 - 1

/** @param payload behind the digest @returns numbers of chunks, ascending @throws VarveError PROTOCOL_INVALID */
export function decodeHeat(payload: Uint8Array, chunkCount: number): Uint32Array {
  const steps = varints(payload)
  let number = 0
  return steps.map((step, index) => {
    if (index > 0 && step === 0) throw invalid('HEAT', `chunk ${number} twice`)
    number += step
    if (number >= chunkCount) throw invalid('HEAT', `chunk ${number} of ${chunkCount}`)
    return number
  })
}

/** @param payload behind the digest @throws VarveError PROTOCOL_INVALID */
export function decodeBoot(payload: Uint8Array, chunkCount: number): Uint32Array {
  const numbers = varints(payload)
  const seen = new Uint8Array(chunkCount)
  for (const number of numbers) {
    if (number >= chunkCount) throw invalid('BOOT', `chunk ${number} of ${chunkCount}`)
    if (seen[number]++ > 0) throw invalid('BOOT', `chunk ${number} twice`)
  }
  return numbers
}

/** Behind the digest. @param numbers ascending */
export function encodeHeat(numbers: Uint32Array): Uint8Array {
  return encodeVarints(numbers.map((number, index) => (index === 0 ? number : number - numbers[index - 1])))
}

/** Behind the digest. */
export function encodeBoot(numbers: Uint32Array): Uint8Array {
  return encodeVarints(numbers)
}

function encodeVarints(values: Uint32Array): Uint8Array {
  const bytes = new Uint8Array(values.length * VARINT_BYTES_MAX)
  let at = 0
  for (let value of values) {
    for (; value > 0x7f; value >>>= 7) bytes[at++] = (value & 0x7f) | 0x80
    bytes[at++] = value
  }
  return bytes.subarray(0, at)
}

function varints(bytes: Uint8Array): Uint32Array {
  const values = new Uint32Array(bytes.length)
  let count = 0
  for (let at = 0; at < bytes.length; count++) {
    let value = 0
    for (let length = 0; ; length++) {
      if (at === bytes.length || length === VARINT_BYTES_MAX) throw invalid('a report', 'a number that does not end')
      const byte = bytes[at++]
      value += (byte & 0x7f) * 2 ** (7 * length)
      if (byte < 0x80) {
        if (byte === 0 && length > 0) throw invalid('a report', 'a number that is longer than it needs to be')
        break
      }
    }
    if (value > UINT32_MAX) throw invalid('a report', `${value} is too much`)
    values[count] = value
  }
  return values.slice(0, count)
}

function invalid(what: string, problem: string): VarveError {
  return new VarveError('PROTOCOL_INVALID', `${what}: ${problem}`)
}
