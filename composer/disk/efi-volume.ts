/**
 * The EFI system partition of a composed disk: GRUB for UEFI, and the grub.cfg that both firmwares end up with.
 */
import { cutContent } from '@varve/images/chunk/cut.ts'
import type { Digest } from '@varve/images/chunk/digest.ts'
import type { ChunkWriter } from '@varve/images/store/chunk-store.ts'
import { TreeBuilder } from '@varve/images/tree/tree-builder.ts'
import { HOLE, Kind } from '@varve/images/tree/tree.ts'
import type { Tree } from '@varve/images/tree/tree.ts'
import type { BootKit } from '../boot/boot-kit.ts'
import type { Kernel } from '../boot/kernels.ts'

/** Size of the partition unless its content needs more, bytes. */
export const EFI_BYTES_MIN = 64 << 20

/**
 * Its tree; chunks of generated files are put into `writer`.
 * @param config text of grub.cfg, bytes in latin1
 * @param kernels which of its files `source` lends to the directory `boot`
 */
export function efiTree(kit: BootKit, config: string, options: { timeSeconds: number; writer: ChunkWriter; source: Tree; kernels: readonly LentFile[] }): Tree {
  const common = { uid: 0, gid: 0, mtimeSeconds: options.timeSeconds, mtimeNanoseconds: 0 }
  const directory = { ...common, kind: Kind.directory, mode: 0o755 }
  const file = { ...common, kind: Kind.file, mode: 0o644 }
  const builder = new TreeBuilder(directory)
  const addFile = (parent: number, name: string, content: Content) => {
    const inode = builder.addInode(file)
    builder.setContent(inode, content.map(({ digest, bytes }) => (digest === undefined ? HOLE : builder.addChunk(digest, bytes))), content.map(({ bytes }) => bytes))
    builder.addEntry(parent, name, inode)
  }
  const addDirectory = (parent: number, name: string) => builder.addEntry(parent, name, builder.addInode(directory))
  addFile(addDirectory(addDirectory(0, 'EFI'), 'BOOT'), 'BOOTX64.EFI', putContent(kit.efiImage, options.writer))
  addFile(addDirectory(0, 'grub'), 'grub.cfg', putContent(Buffer.from(config, 'latin1'), options.writer))
  if (options.kernels.length > 0) {
    const boot = addDirectory(0, LENT_DIRECTORY)
    for (const { name, path } of options.kernels) addFile(boot, name, contentOf(options.source, path))
  }
  return builder.build()
}

/** A file of the root filesystem that the partition shows too. */
export interface LentFile {
  name: string
  /** In the source tree. */
  path: string
}

/** Where kernels lie on the partition. */
const LENT_DIRECTORY = 'boot'

/**
 * The kernels as they are named on this partition: their own names need not be names of FAT.
 * @returns kernels with paths on the partition, and what is to be lent for them
 */
export function lendKernels(kernels: readonly Kernel[]): { kernels: Kernel[]; files: LentFile[] } {
  const files: LentFile[] = []
  const lend = (name: string, path: string): string => {
    files.push({ name, path })
    return `${LENT_DIRECTORY}/${name}`
  }
  const lent = kernels.map(({ version, path, initrdPath }, index) => ({
    version,
    path: lend(`kernel-${index}`, path),
    initrdPath: initrdPath === undefined ? undefined : lend(`initrd-${index}`, initrdPath),
  }))
  return { kernels: lent, files }
}

/** In file order; without a digest, a hole. */
type Content = { digest?: Digest; bytes: number }[]

function putContent(bytes: Uint8Array, writer: ChunkWriter): Content {
  const content: Content = []
  let start = 0
  for (const end of cutContent(bytes)) {
    content.push({ digest: writer.put(bytes.subarray(start, end)), bytes: end - start })
    start = end
  }
  return content
}

function contentOf(tree: Tree, path: string): Content {
  const inode = tree.inode[tree.find(path)]
  const content: Content = []
  for (let piece = tree.firstPiece[inode]; piece < tree.firstPiece[inode] + tree.pieceCount[inode]; piece++) {
    const chunk = tree.pieceChunk[piece]
    content.push({ digest: chunk === HOLE ? undefined : tree.chunkDigest(chunk), bytes: tree.pieceBytes[piece] })
  }
  return content
}
