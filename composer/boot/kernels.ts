/**
 * Kernels: which of them a tree holds, newest first, and what the tree says about the one to boot.
 * Debian's paths (`boot/vmlinuz-VERSION`, `boot/initrd.img-VERSION`), with the initrd names of Fedora and Alpine beside them.
 */
import { Kind } from '@varve/images/tree/tree.ts'
import type { Tree } from '@varve/images/tree/tree.ts'
import { compareVersions } from './version-order.ts'

export interface Kernel {
  /** What follows `vmlinuz-`; bytes in latin1. */
  version: string
  /** Path of the kernel, without a leading slash. */
  path: string
  /** Path of its initrd, if the tree has one. */
  initrdPath: string | undefined
}

/** What installers keep pointing at the kernel to boot, Debian's first. */
export const KERNEL_LINKS = [
  { kernel: 'vmlinuz', initrd: 'initrd.img' },
  { kernel: 'boot/vmlinuz', initrd: 'boot/initrd.img' },
] as const

const PREFIX = 'vmlinuz-'
const INITRD_NAMES = [
  (version: string) => `initrd.img-${version}`,
  (version: string) => `initramfs-${version}.img`,
  (version: string) => `initramfs-${version}`,
  (version: string) => `initrd-${version}`,
]
/** Links to links that are followed, at most. */
const LINK_HOPS_MAX = 40

/** All kernels of a tree, newest first (Debian's order of versions). */
export function findKernels(tree: Tree): Kernel[] {
  const boot = tree.find('boot')
  if (boot < 0) return []
  const kernels: Kernel[] = []
  for (let entry = tree.firstChild[boot]; entry < tree.firstChild[boot] + tree.childCount[boot]; entry++) {
    const name = tree.names[entry]
    if (!name.startsWith(PREFIX) || !isFile(tree, entry)) continue
    const version = name.slice(PREFIX.length)
    // GRUB's language has no way to write these; no package makes them.
    if (!/^[\w.+~:-]+$/.test(version)) continue
    const initrd = INITRD_NAMES.map((nameOf) => nameOf(version)).find((candidate) => isFile(tree, tree.child(boot, candidate)))
    kernels.push({ version, path: `boot/${name}`, initrdPath: initrd === undefined ? undefined : `boot/${initrd}` })
  }
  return kernels.sort((a, b) => compareVersions(b.version, a.version) || (a.version < b.version ? 1 : -1))
}

/** The pair of links that leads to exactly this kernel and its initrd, or undefined. */
export function linksTo(tree: Tree, kernel: Kernel): (typeof KERNEL_LINKS)[number] | undefined {
  return KERNEL_LINKS.find(
    (links) =>
      resolve(tree, links.kernel) === tree.find(kernel.path) &&
      (kernel.initrdPath === undefined || resolve(tree, links.initrd) === tree.find(kernel.initrdPath)),
  )
}

function isFile(tree: Tree, entry: number): boolean {
  return entry >= 0 && tree.kind[tree.inode[entry]] === Kind.file && tree.sizeBytes[tree.inode[entry]] > 0
}

/** Entry that a path leads to, links followed, or -1. */
export function resolve(tree: Tree, path: string): number {
  const pending = path.split('/').reverse()
  let at = 0
  for (let hops = 0; pending.length > 0; ) {
    const name = pending.pop()!
    if (name === '' || name === '.') continue
    if (name === '..') {
      at = tree.parent[at]
      continue
    }
    const entry = tree.child(at, name)
    if (entry < 0) return -1
    if (tree.kind[tree.inode[entry]] !== Kind.symlink) {
      at = entry
      continue
    }
    if (++hops > LINK_HOPS_MAX) return -1
    const target = Buffer.from(tree.targets.get(tree.inode[entry])!).toString('latin1')
    if (target.startsWith('/')) at = 0
    pending.push(...target.split('/').reverse())
  }
  return at
}
