/**
 * The EFI system partition of a composed disk: GRUB for UEFI, and the grub.cfg that both firmwares end up with.
 */
import { cutContent } from '@varve/images/chunk/cut.ts'
import type { ChunkWriter } from '@varve/images/store/chunk-store.ts'
import { TreeBuilder } from '@varve/images/tree/tree-builder.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import type { Tree } from '@varve/images/tree/tree.ts'
import type { BootKit } from '../boot/boot-kit.ts'

/** Size of the partition unless its content needs more, bytes. */
export const EFI_BYTES_MIN = 64 << 20

/** Its tree; the files' chunks are put into `writer`. @param config text of grub.cfg, bytes in latin1 */
export function efiTree(kit: BootKit, config: string, timeSeconds: number, writer: ChunkWriter): Tree {
  const common = { uid: 0, gid: 0, mtimeSeconds: timeSeconds, mtimeNanoseconds: 0 }
  const directory = { ...common, kind: Kind.directory, mode: 0o755 }
  const builder = new TreeBuilder(directory)
  const addFile = (parent: number, name: string, bytes: Uint8Array) => {
    const inode = builder.addInode({ ...common, kind: Kind.file, mode: 0o644 })
    const chunks: number[] = []
    const lengths: number[] = []
    let start = 0
    for (const end of cutContent(bytes)) {
      chunks.push(builder.addChunk(writer.put(bytes.subarray(start, end)), end - start))
      lengths.push(end - start)
      start = end
    }
    builder.setContent(inode, chunks, lengths)
    builder.addEntry(parent, name, inode)
  }
  const efi = builder.addEntry(0, 'EFI', builder.addInode(directory))
  const boot = builder.addEntry(efi, 'BOOT', builder.addInode(directory))
  addFile(boot, 'BOOTX64.EFI', kit.efiImage)
  const grub = builder.addEntry(0, 'grub', builder.addInode(directory))
  addFile(grub, 'grub.cfg', Buffer.from(config, 'latin1'))
  return builder.build()
}
