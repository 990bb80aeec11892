/**
 * Names in directories that do not distinguish cases (casefold): the kernel compares them decomposed and folded (Unicode 12.1; fs/unicode of Linux).
 * Node's own Unicode is newer: names with characters of later versions may be taken for the same where the kernel tells them apart.
 */

/** @param name bytes in latin1 @returns the name itself if it is not UTF-8, as the kernel compares it */
export function foldedName(name: string): string {
  const text = Buffer.from(name, 'latin1').toString('utf8')
  if (Buffer.from(text, 'utf8').toString('latin1') !== name) return name
  return text.normalize('NFD').replace(/\p{Default_Ignorable_Code_Point}/gu, '').toUpperCase().toLowerCase().normalize('NFD')
}
