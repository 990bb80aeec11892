/**
 * Judges of VHD and VHDX that are neither ours nor QEMU (image-judge.ts): libvhdi, which reads differencing images too. And files of a directory, for images that name others.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import type { BlockDevice } from '@varve/images/device/block-device.ts'
import { FileDevice } from '@varve/images/device/file-device.ts'
import { VarveError } from '@varve/images/errors.ts'
import type { ImageFiles } from '@varve/images/formats/disk-image.ts'

const PART_BYTES = 1 << 20

/** Files of a directory, by any name that leads there. */
export class DirectoryFiles implements ImageFiles {
  readonly #directory: string

  constructor(directory: string) {
    this.#directory = directory
  }

  async open(name: string): Promise<{ file: FileDevice; files: ImageFiles }> {
    const path = join(this.#directory, name)
    if (!existsSync(path)) throw new VarveError('SOURCE_INVALID', `${name} is not there`)
    return { file: FileDevice.open({ path, readOnly: true }), files: new DirectoryFiles(dirname(path)) }
  }
}

/** Fails unless a program that follows the specification sector by sector finds the same disk in a differencing VHD. */
export async function assertSectorsAre(image: string, disk: BlockDevice): Promise<void> {
  await assertPrintsDisk('vhd-chain-digest.py', [image], disk)
}

/**
 * Fails unless libvhdi finds the same disk in a chain of images, the lowest first.
 * It takes a sector of a VHD for present if one before it in the same byte of the bitmap is (release 20210425): changes are of whole bytes, or not judged by it.
 */
export async function assertLibvhdiSees(chain: readonly string[], disk: BlockDevice): Promise<void> {
  await assertPrintsDisk('libvhdi-digest.py', chain, disk)
}

async function assertPrintsDisk(program: string, parameters: readonly string[], disk: BlockDevice): Promise<void> {
  const printed = execFileSync('/usr/bin/python3', [join(import.meta.dirname, program), ...parameters], { encoding: 'utf8' })
  assert.equal(printed.trim(), `${disk.sizeBytes} ${await contentDigest(disk)}`, program)
}

/** SHA-256 of all of a device. */
export async function contentDigest(device: BlockDevice): Promise<string> {
  const hash = createHash('sha256')
  for (let at = 0; at < device.sizeBytes; at += PART_BYTES) {
    const bytes = Buffer.alloc(Math.min(PART_BYTES, device.sizeBytes - at))
    await device.read(bytes, at)
    hash.update(bytes)
  }
  return hash.digest('hex')
}
