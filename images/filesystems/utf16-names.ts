/**
 * Names: UTF-16 on the disk, UTF-8 as bytes in latin1 outside. Halves of surrogate pairs, which Windows allows alone, are encoded as if they were characters.
 */

/** A name on the disk that nobody may see as such: '' and what a path cannot hold. */
export function isPossibleName(name: string): boolean {
  return name !== '' && name !== '.' && name !== '..' && !name.includes('/') && !name.includes('\0')
}

/** @param name in UTF-16 @returns UTF-8, one character a byte */
export function encodeName(name: string): string {
  let isAscii = true
  for (let at = 0; at < name.length && isAscii; at++) isAscii = name.charCodeAt(at) < 0x80
  if (isAscii) return name
  let encoded = ''
  for (const character of name) {
    const code = character.codePointAt(0)!
    if (code < 0x80) encoded += character
    else if (code < 0x800) encoded += String.fromCharCode(0xc0 | (code >> 6), 0x80 | (code & 63))
    else if (code < 0x10000) encoded += String.fromCharCode(0xe0 | (code >> 12), 0x80 | ((code >> 6) & 63), 0x80 | (code & 63))
    else encoded += String.fromCharCode(0xf0 | (code >> 18), 0x80 | ((code >> 12) & 63), 0x80 | ((code >> 6) & 63), 0x80 | (code & 63))
  }
  return encoded
}

/** The name whose encoding `encoded` is, in UTF-16; undefined if it is none. */
export function decodeName(encoded: string): string | undefined {
  let name = ''
  for (let at = 0; at < encoded.length;) {
    const lead = encoded.charCodeAt(at)
    const length = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4
    let code = length === 1 ? lead : lead & (0x7f >> length)
    for (let index = 1; index < length; index++) code = (code << 6) | (encoded.charCodeAt(at + index) & 63)
    if (Number.isNaN(code) || code > 0x10ffff) return undefined
    name += String.fromCodePoint(code)
    at += length
  }
  return encodeName(name) === encoded ? name : undefined
}
