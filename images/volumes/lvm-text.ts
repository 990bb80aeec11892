/**
 * The text in which LVM2 keeps its metadata: nested sections of `name = value` and `name { ... }`, with numbers, strings and lists.
 * What it looks like: lvm.conf(5), "File format"; vgcfgbackup(8) writes it. Comes from outside: bounded in depth and number of values.
 */
import { VarveError } from '../errors.ts'

export type LvmSection = ReadonlyMap<string, LvmValue>
export type LvmValue = string | number | readonly LvmValue[] | LvmSection

const DEPTH_MAX = 16
/** A logical volume takes about 20 values, and 10 each of its segments. */
const VALUES_MAX = 1 << 20
/** What names and numbers consist of. */
const WORD = /[\w.+/-]/
const NUMBER = /^-?\d+(?:\.\d+)?$/

/** @throws VarveError FORMAT_INVALID, LIMIT_EXCEEDED */
export function parseLvmText(text: string): LvmSection {
  return new Parser(text).whole()
}

class Parser {
  readonly #text: string
  #at = 0
  #values = 0
  /** The token that comes next; '' at the end. Strings keep their quotes. */
  #next = ''

  constructor(text: string) {
    this.#text = text
    this.#advance()
  }

  whole(): LvmSection {
    const section = this.#entries(0)
    if (this.#next !== '') throw this.#invalid()
    return section
  }

  #entries(depth: number): LvmSection {
    if (depth > DEPTH_MAX) throw new VarveError('LIMIT_EXCEEDED', `LVM: sections are nested more than ${DEPTH_MAX} deep`)
    const section = new Map<string, LvmValue>()
    while (WORD.test(this.#next[0] ?? '')) {
      const name = this.#advance()
      this.#count()
      if (this.#take('{')) {
        section.set(name, this.#entries(depth + 1))
        this.#expect('}')
      } else {
        this.#expect('=')
        section.set(name, this.#value())
      }
    }
    return section
  }

  #value(): LvmValue {
    if (this.#next !== '[') return this.#scalar()
    this.#expect('[')
    const list: LvmValue[] = []
    for (;;) {
      if (this.#take(']')) return list
      if (list.length > 0) this.#expect(',')
      if (this.#take(']')) return list
      list.push(this.#scalar())
    }
  }

  #scalar(): string | number {
    this.#count()
    const token = this.#advance()
    if (token.startsWith('"')) return token.slice(1, -1).replace(/\\([^])/g, '$1')
    if (!NUMBER.test(token)) throw this.#invalid()
    return Number(token)
  }

  #count(): void {
    if (++this.#values > VALUES_MAX) throw new VarveError('LIMIT_EXCEEDED', `LVM: more than ${VALUES_MAX} values`)
  }

  #expect(token: string): void {
    if (!this.#take(token)) throw this.#invalid()
  }

  #take(token: string): boolean {
    if (this.#next !== token) return false
    this.#advance()
    return true
  }

  /** By hand: texts may be long, and an expression would go back in them. @returns the token that was next */
  #advance(): string {
    const before = this.#next
    const text = this.#text
    let at = this.#at
    while (at < text.length && (text.charCodeAt(at) <= 0x20 || text[at] === '#')) {
      if (text[at] === '#') at = text.indexOf('\n', at) < 0 ? text.length : text.indexOf('\n', at)
      else at++
    }
    let end = at + 1
    if (text[at] === '"') {
      while (end < text.length && text[end] !== '"') end += text[end] === '\\' ? 2 : 1
      if (++end > text.length) throw this.#invalid()
    } else if (WORD.test(text[at] ?? '')) {
      while (end < text.length && WORD.test(text[end])) end++
    }
    this.#next = text.slice(at, end)
    this.#at = end
    return before
  }

  #invalid(): VarveError {
    return new VarveError('FORMAT_INVALID', `LVM: its metadata cannot be understood near ${JSON.stringify(this.#text.slice(Math.max(0, this.#at - 20), this.#at + 20))}`)
  }
}
