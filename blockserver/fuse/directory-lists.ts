/**
 * Lists of directories as READDIR goes through them: a place in a list is the offset of an entry, so lists that were read lately are kept whole.
 */
import type { Answer, DirectoryEntry } from '@varve/images/filesystems/filesystem.ts'

/** Names of all lists that are kept. One longer list is kept by itself. */
const NAMES_KEPT_MAX = 1 << 18
const LISTS_KEPT_MAX = 4096

export class DirectoryLists {
  /** By filesystem and id; used last comes last. */
  readonly #lists = new Map<string, readonly DirectoryEntry[]>()
  #names = 0

  /** @param read gives the same list each time */
  get(filesystem: number, directory: number, read: () => Answer<readonly DirectoryEntry[]>): Answer<readonly DirectoryEntry[]> {
    const key = `${filesystem}:${directory}`
    const kept = this.#lists.get(key)
    if (kept !== undefined) {
      this.#lists.delete(key)
      this.#lists.set(key, kept)
      return kept
    }
    const list = read()
    return list instanceof Promise ? list.then((entries) => this.#keep(key, entries)) : this.#keep(key, list)
  }

  #keep(key: string, entries: readonly DirectoryEntry[]): readonly DirectoryEntry[] {
    if (this.#lists.has(key)) return entries
    this.#lists.set(key, entries)
    this.#names += entries.length
    for (const [oldest, { length }] of this.#lists) {
      if (oldest === key || (this.#names <= NAMES_KEPT_MAX && this.#lists.size <= LISTS_KEPT_MAX)) break
      this.#lists.delete(oldest)
      this.#names -= length
    }
    return entries
  }
}
