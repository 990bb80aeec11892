/**
 * Kept xattrs: which extended attributes belong to a tree.
 */
import type { Xattr } from '@varve/images/tree/tree.ts'

const NAMESPACES = ['user.', 'trusted.', 'security.']
/** The rest of `system` is how a filesystem shows something of its own (NFS, NTFS, Btrfs, Ceph), which no other takes back. */
const ACLS = ['system.posix_acl_access', 'system.posix_acl_default']

/** The attributes that a filesystem takes back as they are. */
export function keptXattrs(xattrs: Xattr[]): Xattr[] {
  return xattrs.every(isKept) ? xattrs : xattrs.filter(isKept)
}

function isKept({ name }: Xattr): boolean {
  return NAMESPACES.some((namespace) => name.startsWith(namespace) && name.length > namespace.length) || ACLS.includes(name)
}
