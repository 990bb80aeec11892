/**
 * Protective MBR: the first sector of a GPT disk, which keeps tools that know only MBR away, and holds the BIOS boot code.
 * Not a partition table of its own; those are read by mbr-reader.ts. Bytes: UEFI specification 2.10, section 5.2.
 */

/** Bytes per sector of every disk that we lay out. */
export const SECTOR_BYTES = 512
/** Bytes of boot code that an MBR has room for. */
export const BOOT_CODE_BYTES_MAX = 440

export const PARTITION_TABLE_OFFSET = 446
export const SIGNATURE_OFFSET = 510
export const TYPE_GPT_PROTECTIVE = 0xee

/**
 * The first sector of a GPT disk, 512 bytes.
 * @param bootCode what a BIOS runs, up to 440 bytes; without it nothing boots by BIOS
 */
export function protectiveMbr(diskBytes: number, bootCode?: Uint8Array): Uint8Array {
  const sector = Buffer.alloc(SECTOR_BYTES)
  if (bootCode !== undefined) {
    if (bootCode.length > BOOT_CODE_BYTES_MAX) throw new RangeError(`boot code of ${bootCode.length} bytes does not fit an MBR`)
    sector.set(bootCode)
  }
  const at = PARTITION_TABLE_OFFSET
  const sectors = diskBytes / SECTOR_BYTES - 1
  sector.writeUIntBE(0x000200, at + 1, 3)
  sector[at + 4] = TYPE_GPT_PROTECTIVE
  sector.writeUIntBE(lastSectorChs(sectors), at + 5, 3)
  sector.writeUInt32LE(1, at + 8)
  sector.writeUInt32LE(Math.min(sectors, 0xffffffff), at + 12)
  sector.writeUInt16LE(0xaa55, SIGNATURE_OFFSET)
  return sector
}

/** Cylinder, head and sector of the last sector in the geometry 255 x 63, as the table spells it (head, sector, cylinder); ffffff where it does not fit. */
function lastSectorChs(lba: number): number {
  const cylinder = Math.floor(lba / (255 * 63))
  if (cylinder > 1023) return 0xffffff
  const head = Math.floor(lba / 63) % 255
  const sector = (lba % 63) + 1
  return (head << 16) | (((cylinder >> 2) & 0xc0) << 8) | (sector << 8) | (cylinder & 0xff)
}
