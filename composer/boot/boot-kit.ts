/**
 * Boot kit: the boot loader of a disk, independent of what it boots: a boot sector and a core image for BIOS, an application for UEFI.
 * Built once from GRUB's files and kept as an object; its digest stands in the recipe, so that composing needs nothing of the machine.
 * Bytes: docs/formats/disk.md#boot-kit
 */
import { VarveError } from '@varve/images/errors.ts'
import { BOOT_CODE_BYTES_MAX, SECTOR_BYTES } from '@varve/images/formats/mbr.ts'

export interface BootKit {
  /** First sector: 440 bytes of boot code. */
  bootImage: Uint8Array
  /** What the boot code loads; whole sectors. */
  coreImage: Uint8Array
  /** The UEFI application, EFI/BOOT/BOOTX64.EFI. */
  efiImage: Uint8Array
}

/** Room of the BIOS boot partition, bytes. */
export const CORE_BYTES_MAX = 1 << 20
/** Bytes. */
export const EFI_BYTES_MAX = 16 << 20

const MAGIC = Buffer.from('varvboot', 'latin1')
const VERSION = 1
const HEADER_BYTES = 24

/** Offset in boot.img of the sector that it loads, 64 bits. */
const BOOT_CORE_LBA_OFFSET = 0x5c
/** Offset in boot.img of a jump that trusts the BIOS's word on the boot drive; two NOPs make it check. */
const BOOT_DRIVE_CHECK_OFFSET = 0x66
const NOP = 0x90
/** Offset in core.img, which begins with diskboot.img, of the sector where its remainder begins, 64 bits. */
const CORE_NEXT_LBA_OFFSET = 0x1f4

/** The kit as bytes. */
export function encodeBootKit(kit: BootKit): Uint8Array {
  const header = Buffer.alloc(HEADER_BYTES)
  header.set(MAGIC)
  header.writeUInt32LE(VERSION, 8)
  header.writeUInt32LE(kit.bootImage.length, 12)
  header.writeUInt32LE(kit.coreImage.length, 16)
  header.writeUInt32LE(kit.efiImage.length, 20)
  return Buffer.concat([header, kit.bootImage, kit.coreImage, kit.efiImage])
}

/** Views of `bytes`. @throws VarveError FORMAT_INVALID, FORMAT_UNSUPPORTED */
export function decodeBootKit(bytes: Uint8Array): BootKit {
  const header = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  if (bytes.length < HEADER_BYTES || !header.subarray(0, MAGIC.length).equals(MAGIC)) throw new VarveError('FORMAT_INVALID', 'the boot kit does not begin as one')
  if (header.readUInt32LE(8) !== VERSION) throw new VarveError('FORMAT_UNSUPPORTED', `a boot kit of version ${header.readUInt32LE(8)}; this Varve knows ${VERSION}`)
  const [boot, core, efi] = [12, 16, 20].map((offset) => header.readUInt32LE(offset))
  if (boot !== BOOT_CODE_BYTES_MAX || core === 0 || core % SECTOR_BYTES !== 0 || core > CORE_BYTES_MAX || efi === 0 || efi > EFI_BYTES_MAX || HEADER_BYTES + boot + core + efi !== bytes.length) {
    throw new VarveError('FORMAT_INVALID', 'the lengths in the boot kit are impossible')
  }
  return {
    bootImage: bytes.subarray(HEADER_BYTES, HEADER_BYTES + boot),
    coreImage: bytes.subarray(HEADER_BYTES + boot, HEADER_BYTES + boot + core),
    efiImage: bytes.subarray(HEADER_BYTES + boot + core),
  }
}

/**
 * Boot code and core image for a core image that lies at `coreOffset`: what grub-install does on a disk.
 * @param coreOffset bytes from the start of the disk, whole sectors
 */
export function placeBiosBoot(kit: BootKit, coreOffset: number): { bootCode: Uint8Array; core: Uint8Array } {
  const lba = BigInt(coreOffset / SECTOR_BYTES)
  const bootCode = Buffer.from(kit.bootImage)
  bootCode.writeBigUInt64LE(lba, BOOT_CORE_LBA_OFFSET)
  bootCode.fill(NOP, BOOT_DRIVE_CHECK_OFFSET, BOOT_DRIVE_CHECK_OFFSET + 2)
  const core = Buffer.from(kit.coreImage)
  core.writeBigUInt64LE(lba + 1n, CORE_NEXT_LBA_OFFSET)
  return { bootCode, core }
}
