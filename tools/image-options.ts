/**
 * Options of commands that open disk images.
 */
import { Option } from 'commander'
import type { Command } from 'commander'
import { DISK_FORMATS } from '@varve/images/formats/disk-image.ts'
import type { DiskFormat } from '@varve/images/formats/disk-image.ts'

/** As commander gives them, and `openImage` takes them. */
export interface ImageOptions {
  format?: DiskFormat
  allow?: string[]
}

export function withImageOptions(command: Command): Command {
  return command
    .addOption(new Option('--format <format>', 'of a disk image; default: found in its content').choices(DISK_FORMATS))
    .option('--allow <directory...>', 'besides its own, directories in which a disk image may name backing files')
}
