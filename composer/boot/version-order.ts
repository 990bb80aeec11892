/**
 * Order of versions as Debian defines it (deb-version(7)): digits compare as numbers, `~` sorts before everything, even the end,
 * letters sort before all else. Epochs and revisions are not split off: names of kernels have none.
 */

/** Negative if `a` is older than `b`, 0 if they are equal, positive if `a` is newer. */
export function compareVersions(a: string, b: string): number {
  let atA = 0
  let atB = 0
  while (atA < a.length || atB < b.length) {
    while ((atA < a.length && !isDigit(a, atA)) || (atB < b.length && !isDigit(b, atB))) {
      const difference = weight(a, atA) - weight(b, atB)
      if (difference !== 0) return difference
      atA++
      atB++
    }
    const numberA = digits(a, atA)
    const numberB = digits(b, atB)
    atA += numberA.length
    atB += numberB.length
    const difference = compareNumbers(numberA, numberB)
    if (difference !== 0) return difference
  }
  return 0
}

function isDigit(text: string, at: number): boolean {
  return text[at] >= '0' && text[at] <= '9'
}

/** A digit and the end weigh nothing, `~` less, letters their code, all else more than any letter. */
function weight(text: string, at: number): number {
  if (at >= text.length || isDigit(text, at)) return 0
  if (text[at] === '~') return -1
  return /[A-Za-z]/.test(text[at]) ? text.charCodeAt(at) : text.charCodeAt(at) + 256
}

function digits(text: string, from: number): string {
  let to = from
  while (to < text.length && isDigit(text, to)) to++
  return text.slice(from, to)
}

/** Numbers of any length. */
function compareNumbers(a: string, b: string): number {
  const shortA = a.replace(/^0+/, '')
  const shortB = b.replace(/^0+/, '')
  if (shortA.length !== shortB.length) return shortA.length - shortB.length
  return shortA < shortB ? -1 : shortA > shortB ? 1 : 0
}
