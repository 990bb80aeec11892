/**
 * The volume of a disk whose files are looked at: the one that holds an operating system, or else the largest that has a filesystem.
 */
import type { BlockDevice, DeviceView } from '@varve/images/device/block-device.ts'
import { MapDevice } from '@varve/images/device/map-device.ts'
import { digestToHex } from '@varve/images/chunk/digest.ts'
import { SPECIAL_MIN } from '@varve/images/blockmap/extent-columns.ts'
import { VarveError } from '@varve/images/errors.ts'
import type { FileNode, VolumeFilesystem } from '@varve/images/filesystems/filesystem.ts'
import { openFilesystem } from '@varve/images/filesystems/open-filesystem.ts'
import { readVolumes } from '@varve/images/volumes/volume-table.ts'
import type { Volume } from '@varve/images/volumes/volume-table.ts'
import type { FilesystemVolume } from '@varve/blockserver/fuse/mounted-filesystem.ts'
import type { ReadFiles } from './open-files.ts'

/** Directories by which an operating system is known: one of each line. */
const SYSTEM_DIRECTORIES = [['etc', 'usr'], ['Windows', 'Users']]
/** Parts of a file that are compared by their chunks; of more, the bytes are. */
const KEY_PARTS_MAX = 4096

/** @param name of the volume, as `readVolumes` has it @throws VarveError NOT_FOUND, FORMAT_INVALID, FORMAT_UNSUPPORTED */
export async function openVolume(device: BlockDevice, name: string | undefined): Promise<ReadFiles> {
  const { volumes } = await readVolumes(device)
  const bySize = volumes.filter((volume) => name === undefined || volume.name === name).sort((a, b) => b.view.sizeBytes - a.view.sizeBytes)
  const failures: string[] = []
  let largest: ReadFiles | undefined
  for (const volume of bySize) {
    try {
      const files = await openFilesystem(volume.view)
      if (files === undefined) continue
      const read = readFiles(device, volume, files)
      if (await holdsSystem(files)) return read
      largest ??= read
    } catch (error) {
      if (!(error instanceof VarveError)) throw error
      if (name !== undefined) throw error
      failures.push(error.message)
    }
  }
  if (largest !== undefined) return largest
  const known = volumes.map((volume) => `${volume.name === '' ? 'the whole disk' : volume.name} (${volume.view.sizeBytes} bytes${volume.label === '' ? '' : `, ${volume.label}`})`).join(', ')
  if (failures.length > 0) throw new VarveError('FORMAT_UNSUPPORTED', `no filesystem of the disk can be read: ${failures.join('; ')}`)
  throw new VarveError('NOT_FOUND', `there is no filesystem that Varve reads ${name === undefined ? 'on the disk' : `on volume ${name}`}; its volumes are ${known || 'none'}`)
}

async function holdsSystem(files: VolumeFilesystem): Promise<boolean> {
  for (const names of SYSTEM_DIRECTORIES) {
    const ids = await Promise.all(names.map(async (name) => files.child(files.root, name)))
    if (ids.every((id) => id !== undefined)) return true
  }
  return false
}

function readFiles(device: BlockDevice, { view }: Volume, files: VolumeFilesystem): ReadFiles {
  const volume: FilesystemVolume = { read: (into, offset) => view.read(into, offset) }
  if (device.view !== undefined) {
    volume.view = (offset, length): DeviceView | undefined => {
      const places = view.places(offset, length)
      return places.length === 1 ? device.view!(places[0].diskOffset, length) : undefined
    }
  }
  return { files, volume, ...(device instanceof MapDevice ? { contentKey: (file: FileNode) => contentKey(device, { view }, files, file) } : {}) }
}

/** Which chunks hold a file's content, all of it, in the words of TreeFilesystem.contentKey. */
async function contentKey({ map }: MapDevice, { view }: Pick<Volume, 'view'>, files: VolumeFilesystem, { id, sizeBytes }: FileNode): Promise<string | undefined> {
  const words: string[] = []
  let end = 0
  for (const { fileOffset, length, diskOffset } of await files.extents(id)) {
    if (diskOffset === undefined) return undefined
    if (fileOffset > end) words.push(`hole ${fileOffset - end}`)
    for (const place of view.places(diskOffset, length)) {
      const stop = place.diskOffset + place.length
      for (let at = place.diskOffset, index = map.indexAt(at); at < stop; index++) {
        if (words.length >= KEY_PARTS_MAX) return undefined
        const bytes = Math.min(map.endOf(index), stop) - at
        const from = map.chunkOffsets[index] + at - map.starts[index]
        words.push(map.refs[index] >= SPECIAL_MIN ? `zero ${bytes}` : `${digestToHex(map.chunkDigest(map.refs[index]))} ${from} ${bytes}`)
        at += bytes
      }
    }
    end = fileOffset + length
  }
  if (end < sizeBytes) words.push(`hole ${sizeBytes - end}`)
  return words.join(',')
}
