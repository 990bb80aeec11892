/**
 * How paths and names, which are bytes, are printed: as UTF-8 where they are, every other byte, control characters and the backslash escaped.
 * The escaping can be undone, so that a printed path names one path only.
 */

/**
 * @param bytes a path or name, bytes in latin1
 * @returns UTF-8 text; `\xHH` for a byte that is not part of valid UTF-8 or is a control character; `\\` for a backslash
 */
export function printPath(bytes: string): string {
  if (/^[\x20-\x5b\x5d-\x7e]*$/.test(bytes)) return bytes
  let printed = ''
  for (let at = 0; at < bytes.length; ) {
    const length = sequenceLength(bytes, at)
    const part = bytes.slice(at, at + Math.max(length, 1))
    const text = length === 0 ? '' : Buffer.from(part, 'latin1').toString('utf8')
    if (text === '\\') printed += '\\\\'
    else if (text === '' || /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/u.test(text)) printed += [...part].map(escapeByte).join('')
    else printed += text
    at += part.length
  }
  return printed
}

function escapeByte(byte: string): string {
  return `\\x${byte.charCodeAt(0).toString(16).padStart(2, '0')}`
}

/** Bytes of the UTF-8 sequence at `at` (RFC 3629, table 3-7 of Unicode), or 0 if there is none. */
function sequenceLength(bytes: string, at: number): number {
  const lead = bytes.charCodeAt(at)
  if (lead < 0x80) return 1
  const length = lead >= 0xc2 && lead <= 0xdf ? 2 : lead >= 0xe0 && lead <= 0xef ? 3 : lead >= 0xf0 && lead <= 0xf4 ? 4 : 0
  if (at + length > bytes.length) return 0
  for (let index = 1; index < length; index++) {
    const low = index === 1 && lead === 0xe0 ? 0xa0 : index === 1 && lead === 0xf0 ? 0x90 : 0x80
    const high = index === 1 && lead === 0xed ? 0x9f : index === 1 && lead === 0xf4 ? 0x8f : 0xbf
    const byte = bytes.charCodeAt(at + index)
    if (byte < low || byte > high) return 0
  }
  return length
}
