/**
 * Names of exports that are images of disks: `image:FORMAT:DISK`, read-only. Access rules speak of the disk.
 */
const IMAGE_NAME = /^image:([a-z0-9]+):([^]+)$/

/** @returns undefined for the name of a disk */
export function parseImageName(name: string): { format: string; disk: string } | undefined {
  const [, format, disk] = IMAGE_NAME.exec(name) ?? []
  return format === undefined ? undefined : { format, disk }
}

export function formatImageName({ format, disk }: { format: string; disk: string }): string {
  return `image:${format}:${disk}`
}
