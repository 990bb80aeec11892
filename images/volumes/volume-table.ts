/**
 * Volumes of a disk: what filesystems may lie on. Partitions of a GPT or an MBR, or the whole disk if it has neither, and the logical volumes of LVM
 * whose physical volumes are on this disk. docs/volumes.md
 */
import type { ReadableDisk } from '../device/block-device.ts'
import { readGpt } from '../formats/gpt-reader.ts'
import { readMbr } from '../formats/mbr-reader.ts'
import type { MbrTable } from '../formats/mbr-reader.ts'
import { readLogicalVolumes } from './lvm.ts'
import { VolumeView } from './volume-view.ts'
import type { VolumeSegment } from './volume-view.ts'

export interface Volume {
  /** A partition's number, `GROUP/VOLUME` of a logical volume; '' for the disk itself. */
  name: string
  /** GUID in lower case of a GPT, such as `0x83` of an MBR, `lvm` of a logical volume; '' for the disk itself. */
  type: string
  /** What the table calls it; '' if nothing. */
  label: string
  /** In order, without gaps: where its bytes are on the disk. */
  segments: readonly VolumeSegment[]
  /** Its bytes, from 0 on; borrows the disk. */
  view: VolumeView
}

export interface VolumeTable {
  scheme: 'gpt' | 'mbr' | 'none'
  /**
   * Partitions in the order of their numbers, then logical volumes by name; or the disk itself. A partition (or disk) that holds
   * physical volumes of LVM is among them, too: its logical volumes lie inside of it.
   */
  volumes: Volume[]
  /** Logical volumes whose content cannot be read: why, in words. */
  refused: { name: string; reason: string }[]
  /** What is wrong with the tables, in words. */
  notices: string[]
}

/** @param disk borrowed, as long as its volumes are used @throws what `disk.read` throws; damage is told by `notices` and `refused` */
export async function readVolumes(disk: ReadableDisk): Promise<VolumeTable> {
  const table = await readPartitions(disk)
  await readLogicalVolumes(disk, table)
  return table
}

async function readPartitions(disk: ReadableDisk): Promise<VolumeTable> {
  const mbr = await readMbr(disk)
  const gpt = await readGpt(disk)
  // As Linux: a GPT counts if the MBR names it. If there is no MBR at all, somebody has erased it.
  if (gpt !== undefined && (mbr === undefined || mbr.isProtective)) {
    const notices = mbr === undefined ? ['the MBR that should protect the GPT is damaged', ...gpt.notices] : gpt.notices
    const volumes = gpt.partitions.map(({ number, typeGuid, name, firstByte, byteLength }) => volumeOf(disk, { name: String(number), type: typeGuid, label: name }, { firstByte, byteLength }))
    return { scheme: 'gpt', volumes, refused: [], notices }
  }
  const volumes = mbr?.partitions.map(({ number, type, ...range }) => volumeOf(disk, { name: String(number), type: typeText(type), label: '' }, range)) ?? []
  const notices = noticesOf(mbr, gpt !== undefined)
  if (volumes.length > 0) return { scheme: 'mbr', volumes, refused: [], notices }
  return { scheme: 'none', volumes: disk.sizeBytes > 0 ? [volumeOf(disk, { name: '', type: '', label: '' }, { firstByte: 0, byteLength: disk.sizeBytes })] : [], refused: [], notices }
}

function noticesOf(mbr: MbrTable | undefined, hasGpt: boolean): string[] {
  if (mbr === undefined) return []
  if (hasGpt) return ['there is a GPT, but the MBR does not name it; the MBR is used', ...mbr.notices]
  return mbr.isProtective ? ['the MBR names a GPT, but both its tables are damaged', ...mbr.notices] : mbr.notices
}

function typeText(type: number): string {
  return `0x${type.toString(16).padStart(2, '0')}`
}

function volumeOf(disk: ReadableDisk, names: Pick<Volume, 'name' | 'type' | 'label'>, { firstByte, byteLength }: { firstByte: number; byteLength: number }): Volume {
  const segments = [{ offset: 0, diskOffset: firstByte, length: byteLength }]
  return { ...names, segments, view: new VolumeView(disk, segments) }
}
