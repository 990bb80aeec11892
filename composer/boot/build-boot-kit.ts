/**
 * Builds a boot kit with grub-mkimage. The only part of the boot loader's way that touches the machine; the result is kept (boot-kit.ts).
 */
import { execFile } from 'node:child_process'
import { mkdtemp, mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { digestOf } from '@varve/images/chunk/digest.ts'
import type { Digest } from '@varve/images/chunk/digest.ts'
import { VarveError } from '@varve/images/errors.ts'
import { BOOT_CODE_BYTES_MAX, SECTOR_BYTES } from '@varve/images/formats/mbr.ts'
import { CORE_BYTES_MAX, EFI_BYTES_MAX } from './boot-kit.ts'
import type { BootKit } from './boot-kit.ts'
import { DEPENDENCIES_FILE, INFO_FILE, readGrubFile, withDependencies } from './grub-modules.ts'
import type { GrubFiles, GrubPlatform } from './grub-modules.ts'

/** GRUB's files for both platforms. */
export type GrubSources = Record<GrubPlatform, GrubFiles>

const PLATFORMS: readonly GrubPlatform[] = ['i386-pc', 'x86_64-efi']
/** Number of the EFI system partition on the disks that we lay out. */
const ESP_PARTITION = 2
const MKIMAGE_TIMEOUT_MS = 60_000

/** What both platforms need to read our disks, run our grub.cfg and load Linux; `ls`, `cat` and the like are for people at its prompt. */
const MODULES = [
  'part_gpt', 'fat', 'ext2', 'normal', 'configfile', 'linux', 'search', 'search_fs_uuid', 'regexp', 'test', 'echo',
  'terminal', 'terminfo', 'serial', 'all_video', 'gzio', 'zstd', 'ls', 'cat', 'minicmd', 'reboot', 'halt', 'sleep',
] // prettier-ignore

/** The prefix is where GRUB looks for grub.cfg. BIOS tells it the disk, UEFI the partition. */
const PLATFORM: Record<GrubPlatform, { prefix: string; modules: string[]; files: string[] }> = {
  'i386-pc': { prefix: `(,gpt${ESP_PARTITION})/grub`, modules: ['biosdisk'], files: ['kernel.img', 'diskboot.img', 'lzma_decompress.img'] },
  'x86_64-efi': { prefix: '/grub', modules: [], files: ['kernel.img'] },
}

/**
 * What a kit would be built from, as a digest: the version of the packages, and what is asked of them. Equal keys give equal kits.
 * @throws VarveError BOOT_MISSING
 */
export async function bootKitKey(sources: GrubSources): Promise<Digest> {
  const parts: Uint8Array[] = [digestOf(Buffer.from(JSON.stringify([MODULES, PLATFORM])))]
  for (const platform of PLATFORMS) {
    for (const name of [INFO_FILE, DEPENDENCIES_FILE, ...PLATFORM[platform].files]) parts.push(digestOf(await readGrubFile(sources[platform], platform, name)))
  }
  parts.push(digestOf(await readGrubFile(sources['i386-pc'], 'i386-pc', 'boot.img')))
  return digestOf(Buffer.concat(parts))
}

/** @throws VarveError BOOT_MISSING, naming what to install */
export async function buildBootKit(sources: GrubSources, options: { signal?: AbortSignal } = {}): Promise<BootKit> {
  const directory = await mkdtemp(join(tmpdir(), 'varve-boot-kit-'))
  try {
    const coreImage = padToSectors(await makeImage('i386-pc', sources['i386-pc'], directory, options))
    const efiImage = await makeImage('x86_64-efi', sources['x86_64-efi'], directory, options)
    if (coreImage.length > CORE_BYTES_MAX || efiImage.length > EFI_BYTES_MAX) {
      throw new VarveError('LIMIT_EXCEEDED', `GRUB's images of ${coreImage.length} and ${efiImage.length} bytes are too large; at most ${CORE_BYTES_MAX} and ${EFI_BYTES_MAX}`)
    }
    const boot = await readGrubFile(sources['i386-pc'], 'i386-pc', 'boot.img')
    return { bootImage: boot.slice(0, BOOT_CODE_BYTES_MAX), coreImage, efiImage }
  } finally {
    await rm(directory, { recursive: true, force: true })
  }
}

async function makeImage(platform: GrubPlatform, files: GrubFiles, directory: string, options: { signal?: AbortSignal }): Promise<Uint8Array> {
  const { prefix, modules, files: fileNames } = PLATFORM[platform]
  const wanted = [...modules, ...MODULES]
  const dependencies = Buffer.from(await readGrubFile(files, platform, DEPENDENCIES_FILE)).toString('latin1')
  const moduleDirectory = join(directory, platform)
  await mkdir(moduleDirectory)
  for (const name of [DEPENDENCIES_FILE, ...fileNames, ...withDependencies(wanted, dependencies).map((module) => `${module}.mod`)]) {
    await writeFile(join(moduleDirectory, name), await readGrubFile(files, platform, name))
  }
  const image = join(directory, `${platform}.img`)
  await runMkimage(['-d', moduleDirectory, '-O', platform, '-p', prefix, '-o', image, ...wanted], options)
  return await readFile(image)
}

async function runMkimage(parameters: string[], { signal }: { signal?: AbortSignal }): Promise<void> {
  try {
    await promisify(execFile)('grub-mkimage', parameters, { signal, timeout: MKIMAGE_TIMEOUT_MS, env: { PATH: `${process.env.PATH}:/usr/sbin`, LC_ALL: 'C' } })
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') {
      throw new VarveError('BOOT_MISSING', 'there is no grub-mkimage on this machine; install the package grub-common, or give the CVD --boot none', { cause })
    }
    if (signal?.aborted === true) throw cause
    throw new VarveError('BOOT_MISSING', `grub-mkimage failed: ${(cause as { stderr?: string }).stderr?.trim() ?? String(cause)}`, { cause })
  }
}

function padToSectors(bytes: Uint8Array): Uint8Array {
  const padded = new Uint8Array(Math.ceil(bytes.length / SECTOR_BYTES) * SECTOR_BYTES)
  padded.set(bytes)
  return padded
}
