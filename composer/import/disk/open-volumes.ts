/**
 * Volumes of a disk that is imported: which of them hold filesystems, and where each has its place in the one tree of the layer.
 * What cannot be read is no error: its bytes are kept as they are, and it is said. docs/formats/import.md#disk
 */
import type { ReadableDisk } from '@varve/images/device/block-device.ts'
import { isVarveError } from '@varve/images/errors.ts'
import type { ErrorCode } from '@varve/images/errors.ts'
import type { VolumeFilesystem } from '@varve/images/filesystems/filesystem.ts'
import { openFilesystem } from '@varve/images/filesystems/open-filesystem.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import { readVolumes } from '@varve/images/volumes/volume-table.ts'
import type { VolumeView } from '@varve/images/volumes/volume-view.ts'

/** Codes of what is wrong with a disk's content, not with the reading of it. */
export const CONTENT_CODES: readonly ErrorCode[] = ['FORMAT_INVALID', 'FORMAT_UNSUPPORTED', 'LIMIT_EXCEEDED', 'SOURCE_INVALID', 'SOURCE_UNSUPPORTED']
/** A larger /etc/fstab is not looked at, bytes. */
const FSTAB_BYTES_MAX = 1 << 20
const MOUNT_POINTS_MAX = 1000

/** What of a disk is not in the tree of its layer, though its bytes are kept. */
export interface DiskProblem {
  /** A volume, or a path in the tree, bytes in latin1. */
  where: string
  problem: string
}

export interface MountedVolume {
  /** As VolumeTable has it. */
  name: string
  filesystem: VolumeFilesystem
  view: VolumeView
  /** Path of its root in the tree, without a leading slash, bytes in latin1; '' for the root volume. */
  mountPoint: string
}

/** Volumes that hold a filesystem, the root first, then so that what is mounted inside of another comes after it. @param disk borrowed, as long as they are used */
export async function openVolumes(disk: ReadableDisk): Promise<{ volumes: MountedVolume[]; problems: DiskProblem[] }> {
  const { volumes, refused, notices } = await readVolumes(disk)
  const problems: DiskProblem[] = [
    ...notices.map((problem) => ({ where: 'partitions', problem })),
    ...refused.map(({ name, reason }) => ({ where: volumeText(name), problem: reason })),
  ]
  const opened: MountedVolume[] = []
  for (const { name, view } of volumes) {
    const filesystem = await ifReadable(volumeText(name), problems, () => openFilesystem(view))
    if (filesystem !== undefined) opened.push({ name, filesystem, view, mountPoint: '' })
  }
  return { volumes: await mounted(opened, problems), problems }
}

export function volumeText(name: string): string {
  return name === '' ? 'the disk' : `volume ${name}`
}

/** @returns undefined for what the disk's content is to blame for, which is noted */
export async function ifReadable<Result>(where: string, problems: DiskProblem[], read: () => Result | Promise<Result>): Promise<Result | undefined> {
  try {
    return await read()
  } catch (error) {
    if (!isVarveError(error, ...CONTENT_CODES)) throw error
    problems.push({ where, problem: error.message })
    return undefined
  }
}

async function mounted(opened: readonly MountedVolume[], problems: DiskProblem[]): Promise<MountedVolume[]> {
  const ranks = new Map<MountedVolume, number>()
  for (const volume of opened) ranks.set(volume, (await ifReadable(volumeText(volume.name), problems, () => rank(volume.filesystem))) ?? 0)
  const [root, ...others] = opened.toSorted((a, b) => ranks.get(b)! - ranks.get(a)! || b.filesystem.sizeBytes - a.filesystem.sizeBytes)
  if (root === undefined) return []
  const table = (await ifReadable(volumeText(root.name), problems, () => mountTable(root.filesystem))) ?? []
  const taken = new Set([''])
  for (const volume of others) {
    const wanted = table.find(({ names, path }) => !taken.has(path) && names.some((name) => isMeant(name, volume)))
    volume.mountPoint = wanted?.path ?? `mnt/volume-${volume.name.replaceAll(/[^\w.-]/g, '-')}`
    taken.add(volume.mountPoint)
  }
  return [root, ...others.toSorted((a, b) => (a.mountPoint < b.mountPoint ? -1 : 1))]
}

/** How much it looks like the root of a system. */
async function rank(filesystem: VolumeFilesystem): Promise<number> {
  for (const path of ['etc/fstab', 'sbin/init', 'usr/sbin/init', 'usr/lib/systemd/systemd']) if ((await resolve(filesystem, path)) !== undefined) return 2
  return (await resolve(filesystem, 'Windows/System32')) === undefined ? 0 : 1
}

/** Id of a path; symlinks are not followed. */
async function resolve(filesystem: VolumeFilesystem, path: string): Promise<number | undefined> {
  let id: number | undefined = filesystem.root
  for (const name of path.split('/')) {
    if ((await filesystem.node(id)).kind !== Kind.directory) return undefined
    id = await filesystem.child(id, name)
    if (id === undefined) return undefined
  }
  return id
}

/** Of /etc/fstab: what is mounted where. fstab(5) */
async function mountTable(filesystem: VolumeFilesystem): Promise<{ names: string[]; path: string }[]> {
  const id = await resolve(filesystem, 'etc/fstab')
  const node = id === undefined ? undefined : await filesystem.node(id)
  if (node === undefined || node.kind !== Kind.file || node.sizeBytes > FSTAB_BYTES_MAX) return []
  const text = Buffer.alloc(node.sizeBytes)
  await filesystem.read(node.id, text, 0)
  const table: { names: string[]; path: string }[] = []
  for (const line of text.toString('latin1').split('\n')) {
    const [device, point] = line.trim().split(/\s+/)
    if (device === undefined || device.startsWith('#') || point === undefined || !point.startsWith('/') || table.length === MOUNT_POINTS_MAX) continue
    const names = unescaped(point).split('/').filter((name) => name !== '')
    if (names.length === 0 || names.some((name) => name === '.' || name === '..' || name.includes('\0'))) continue
    table.push({ names: [unescaped(device).replaceAll('"', '')], path: names.join('/') })
  }
  return table
}

function unescaped(field: string): string {
  return field.replaceAll(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(parseInt(digits, 8) & 0xff))
}

/** What fstab calls a volume: by UUID, by label, by its logical volume, or by the number of its partition. */
function isMeant(name: string, { name: volumeName, filesystem: { uuid, label } }: MountedVolume): boolean {
  const [, tag, value] = /^(UUID|LABEL)=(.*)$/.exec(name) ?? []
  if (tag === 'UUID') return value.toLowerCase() === uuid.toLowerCase()
  if (tag === 'LABEL') return label !== '' && value === label
  const [, partition] = /^\/dev\/(?:[hsv]d[a-z]|xvd[a-z]|(?:nvme\d+n|mmcblk)\d+p)(\d+)$/.exec(name) ?? []
  if (partition !== undefined) return volumeName === partition
  const logical = /^\/dev\/(?:mapper\/)?(.+)$/.exec(name)?.[1]
  return logical !== undefined && (logical === volumeName || logical.replaceAll('--', '\0').replace('-', '/').replaceAll('\0', '-') === volumeName)
}
