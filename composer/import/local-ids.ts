/**
 * Local ids: numbers of the users and groups of this machine, for ACLs in archives that name them. Owners are never looked up: they come as numbers.
 */
import { readFileSync } from 'node:fs'

const FILES = { user: '/etc/passwd', group: '/etc/group' } as const

/** A look-up that reads each file once, when it is first needed. */
export function localIds(): (name: string, of: 'user' | 'group') => number | undefined {
  const known: Partial<Record<'user' | 'group', Map<string, number>>> = {}
  return (name, of) => (known[of] ??= readIds(FILES[of])).get(name)
}

function readIds(file: string): Map<string, number> {
  const ids = new Map<string, number>()
  let text
  try {
    text = readFileSync(file, 'latin1')
  } catch {
    return ids
  }
  for (const line of text.split('\n')) {
    const [name, , id] = line.split(':')
    if (/^\d+$/.test(id ?? '')) ids.set(name, Number(id))
  }
  return ids
}
