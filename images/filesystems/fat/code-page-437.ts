/** Code page 437, in which short names and labels are, unless a system was told another: the upper half of its characters. */
const UPPER_HALF = 'ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u00a0'

export function decodeCodePage437(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => (byte < 0x80 ? String.fromCharCode(byte) : UPPER_HALF[byte - 0x80])).join('')
}

/** Lower case, of characters whose lower case the code page has. */
export function lowerCodePage437(text: string): string {
  return text.replace(/./gsu, (character) => {
    const lower = character.toLowerCase()
    return lower < '\x80' || UPPER_HALF.includes(lower) ? lower : character
  })
}
