/**
 * Difference between two trees, by path: what `varve layer diff` lists. Content is compared by digest, never read.
 */
import { Kind } from './tree.ts'
import type { Tree } from './tree.ts'

export interface TreeChange {
  /** Bytes in latin1; '' is the root. */
  path: string
  change: 'added' | 'removed' | 'changed'
  /** For `changed`: what differs, of `kind`, `mode`, `owner`, `mtime`, `size`, `content`, `target`, `device`, `xattrs`, `opaque`. */
  what: string[]
}

/** Changes that lead from `before` to `after`, directory by directory. What lies below an added or removed directory is listed too. */
export function* diffTrees(before: Tree, after: Tree): Generator<TreeChange> {
  const pairs: [number, number][] = [[0, 0]]
  for (let at = 0; at < pairs.length; at++) {
    const [a, b] = pairs[at]
    if (a < 0 || b < 0) {
      const [tree, entry, change] = a < 0 ? [after, b, 'added' as const] : [before, a, 'removed' as const]
      yield { path: tree.path(entry), change, what: [] }
    } else {
      const what = differences(before, before.inode[a], after, after.inode[b])
      if (what.length > 0) yield { path: after.path(b), change: 'changed', what }
    }
    pairs.push(...children(before, a, after, b))
  }
}

/** Pairs of entries with one name below a pair of directories; -1 where one side has none. */
function* children(before: Tree, a: number, after: Tree, b: number): Generator<[number, number]> {
  let left = a < 0 ? 0 : before.firstChild[a]
  let right = b < 0 ? 0 : after.firstChild[b]
  const leftEnd = left + (a < 0 ? 0 : before.childCount[a])
  const rightEnd = right + (b < 0 ? 0 : after.childCount[b])
  while (left < leftEnd || right < rightEnd) {
    const order = left === leftEnd ? 1 : right === rightEnd ? -1 : compare(before.names[left], after.names[right])
    if (order < 0) yield [left++, -1]
    else if (order > 0) yield [-1, right++]
    else yield [left++, right++]
  }
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0
}

function differences(before: Tree, a: number, after: Tree, b: number): string[] {
  const what: string[] = []
  const differs = (name: string, different: boolean): void => {
    if (different) what.push(name)
  }
  differs('kind', before.kind[a] !== after.kind[b])
  differs('mode', before.mode[a] !== after.mode[b])
  differs('owner', before.uid[a] !== after.uid[b] || before.gid[a] !== after.gid[b])
  differs('mtime', before.mtimeSeconds[a] !== after.mtimeSeconds[b] || before.mtimeNanoseconds[a] !== after.mtimeNanoseconds[b])
  differs('opaque', before.opaque[a] !== after.opaque[b])
  differs('size', before.sizeBytes[a] !== after.sizeBytes[b])
  differs('content', before.kind[a] === Kind.file && after.kind[b] === Kind.file && contentDiffers(before, a, after, b))
  differs('target', !sameBytes(before.targets.get(a), after.targets.get(b)))
  differs('device', before.deviceMajor[a] !== after.deviceMajor[b] || before.deviceMinor[a] !== after.deviceMinor[b])
  differs('xattrs', xattrsDiffer(before, a, after, b))
  return what
}

function contentDiffers(before: Tree, a: number, after: Tree, b: number): boolean {
  const count = before.pieceCount[a]
  if (count !== after.pieceCount[b]) return true
  for (let index = 0; index < count; index++) {
    const left = before.firstPiece[a] + index
    const right = after.firstPiece[b] + index
    if (before.pieceBytes[left] !== after.pieceBytes[right]) return true
    const leftChunk = before.pieceDigest(left)
    const rightChunk = after.pieceDigest(right)
    if (!sameBytes(leftChunk, rightChunk)) return true
  }
  return false
}

function xattrsDiffer(before: Tree, a: number, after: Tree, b: number): boolean {
  const left = before.xattrSets[before.xattrSet[a]]
  const right = after.xattrSets[after.xattrSet[b]]
  return left.length !== right.length || left.some(({ name, value }, index) => name !== right[index].name || !sameBytes(value, right[index].value))
}

function sameBytes(a: Uint8Array | undefined, b: Uint8Array | undefined): boolean {
  if (a === undefined || b === undefined) return a === b
  return Buffer.compare(a, b) === 0
}
