/**
 * Internal snapshots of a qcow2 image: section "Snapshots" of docs/interop/qcow2.rst in QEMU. Each has an L1 table of its own.
 */
import type { ReadableDisk } from '../../device/block-device.ts'
import { VarveError } from '../../errors.ts'
import { readPart } from '../table-pages.ts'
import { checkedNumber, checkedOffset, invalid } from './header.ts'
import type { Qcow2Header } from './header.ts'

/** As in QEMU. */
const SNAPSHOTS_MAX = 65_536
const EXTRA_BYTES_MAX = 1024
/** What is fixed of an entry. */
const ENTRY_BYTES = 40
/** Extra data that holds the disk's size. */
const DISK_SIZE_EXTRA_BYTES = 16

export interface Qcow2Snapshot {
  id: string
  name: string
  l1Offset: number
  l1Entries: number
  /** Bytes of the disk at that time. */
  sizeBytes: number
}

/** @throws VarveError FORMAT_INVALID, LIMIT_EXCEEDED */
async function* readQcow2Snapshots(file: ReadableDisk, header: Qcow2Header): AsyncGenerator<Qcow2Snapshot, void> {
  if (header.snapshotCount > SNAPSHOTS_MAX) throw new VarveError('LIMIT_EXCEEDED', `qcow2: ${header.snapshotCount} snapshots are more than ${SNAPSHOTS_MAX}`)
  let at = header.snapshotsOffset
  for (let index = 0; index < header.snapshotCount; index++) {
    const entry = await readPart(file, at, ENTRY_BYTES, `snapshot ${index + 1}`)
    const idBytes = entry.readUInt16BE(12)
    const nameBytes = entry.readUInt16BE(14)
    const extraBytes = entry.readUInt32BE(36)
    if (extraBytes > EXTRA_BYTES_MAX) throw invalid(`snapshot ${index + 1} has ${extraBytes} bytes of extra data`)
    const rest = await readPart(file, at + ENTRY_BYTES, extraBytes + idBytes + nameBytes, `snapshot ${index + 1}`)
    yield {
      id: rest.toString('utf8', extraBytes, extraBytes + idBytes),
      name: rest.toString('utf8', extraBytes + idBytes),
      l1Offset: checkedOffset(entry, 0, header.clusterBytes, 'the L1 table of a snapshot'),
      l1Entries: entry.readUInt32BE(8),
      sizeBytes: extraBytes >= DISK_SIZE_EXTRA_BYTES ? checkedNumber(rest, 8, 'disk size of a snapshot') : header.sizeBytes,
    }
    at += Math.ceil((ENTRY_BYTES + rest.length) / 8) * 8
  }
}

/** @param wanted an id, or a name if none has that id @throws VarveError NOT_FOUND and as above */
export async function findQcow2Snapshot(file: ReadableDisk, header: Qcow2Header, wanted: string): Promise<Qcow2Snapshot> {
  let named: Qcow2Snapshot | undefined
  for await (const snapshot of readQcow2Snapshots(file, header)) {
    if (snapshot.id === wanted) return snapshot
    if (snapshot.name === wanted) named ??= snapshot
  }
  if (named === undefined) throw new VarveError('NOT_FOUND', `the image has no snapshot ${JSON.stringify(wanted)}; 'qemu-img snapshot -l' lists them`)
  return named
}
