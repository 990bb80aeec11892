/** Limits of trees; docs/formats/tree.md. Whoever builds or reads a tree keeps to them. */

/** Longest name, bytes (NAME_MAX of Linux). */
export const NAME_BYTES_MAX = 255
/** Longest target of a symlink or link, bytes (PATH_MAX of Linux without its NUL). */
export const TARGET_BYTES_MAX = 4095
/** Names from the root to an entry. Sixteen bytes a name fill PATH_BYTES_MAX; PATH_MAX of Linux allows 2,048. */
export const DEPTH_MAX = 4096
/** Longest path, bytes, slashes between the names included. Trees on disk can be deeper than PATH_MAX (4,096), which limits one system call only. */
export const PATH_BYTES_MAX = 65_536
/** Longest name of an extended attribute, bytes (XATTR_NAME_MAX of Linux). */
export const XATTR_NAME_BYTES_MAX = 255
/** Largest value of an extended attribute, bytes (XATTR_SIZE_MAX of Linux). */
export const XATTR_VALUE_BYTES_MAX = 65_536
/** All names of the attributes of one inode, each with a NUL, bytes (XATTR_LIST_MAX of Linux). */
export const XATTR_LIST_BYTES_MAX = 65_536
/** Largest file, and all files of a tree together, holes included, bytes: what a double holds exactly. */
export const CONTENT_BYTES_MAX = Number.MAX_SAFE_INTEGER
/** Largest encoded tree, bytes: about 12 million files. */
export const TREE_BYTES_MAX = 2 ** 30
