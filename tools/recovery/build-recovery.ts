/**
 * Builds the recovery medium: a kernel and an initrd that streams a CVD to the machine's own disk and goes on into it (init.sh), as files for a
 * network boot, and as a disk image that boots by BIOS and UEFI. The image is a disk as Varve composes them. docs/recovery.md
 */
import { chmodSync, closeSync, copyFileSync, ftruncateSync, mkdirSync, mkdtempSync, openSync, rmSync, statSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { compose } from '@varve/composer/compose.ts'
import { importLayer } from '@varve/composer/import/import-layer.ts'
import { prepareRecipe } from '@varve/composer/prepare-recipe.ts'
import { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { MapDevice } from '@varve/images/device/map-device.ts'
import { Home } from '@varve/images/store/home.ts'
import { fillAgentRoot } from './agent-root.ts'
import { downloadPackages, kernelPackage, run, unpackPackage } from './debian-packages.ts'
import { copyModules } from './kernel-modules.ts'
import { copyInto, copyPrograms } from './programs.ts'

/** Names of what is built. `varve serve` offers the first two under /boot/. */
export const RECOVERY_FILES = { kernel: 'vmlinuz', initrd: 'initrd.img', disk: 'recovery.img' } as const
/** Questions are asked on the screen, unless the last console is another. */
export const RECOVERY_CONSOLES = 'console=ttyS0,115200 console=tty0'

const NAME = 'recovery'
const COPY_BYTES = 1 << 20
const CACHE_BYTES = 64 << 20
/** For metadata of the root filesystem, and the partitions beside it. */
const SPARE_BYTES = 128 << 20
const MEBI = 1 << 20

export interface RecoveryOptions {
  /** Is made if it is not there. */
  directory: string
  /** For the disk image: what it is to do without asking, and other consoles. */
  kernelArguments?: string
  /** Debian's name of the kernel's kind, what follows `linux-image-`: `amd64`, `cloud-amd64`. */
  flavour?: string
  /** PEM file of authorities that sign the server's certificate. */
  certificates?: string
  onStep?: (what: string) => void
}

/** @returns the files, absolute, with their sizes, and the version of the kernel */
export async function buildRecovery(options: RecoveryOptions): Promise<{ files: { file: string; bytes: number }[]; kernelVersion: string }> {
  const { flavour = 'amd64', onStep = () => {} } = options
  const scratch = mkdtempSync(path.join(tmpdir(), 'varve-recovery-'))
  const place = (name: string): string => path.resolve(options.directory, name)
  mkdirSync(options.directory, { recursive: true })
  try {
    onStep('downloading a kernel')
    const kernelName = kernelPackage(flavour)
    const kernelVersion = kernelName.replace('linux-image-', '')
    const unpacked = path.join(scratch, 'kernel')
    unpackPackage(downloadPackages([kernelName], path.join(scratch, 'packages'))[0], unpacked)
    onStep('gathering the initrd')
    const boot = path.join(scratch, 'disk/boot')
    mkdirSync(boot, { recursive: true })
    const [kernel, initrd] = [`vmlinuz-${kernelVersion}`, `initrd.img-${kernelVersion}`].map((name) => path.join(boot, name))
    copyFileSync(path.join(unpacked, 'boot', path.basename(kernel)), kernel)
    packInitrd({ root: path.join(scratch, 'initrd'), unpacked, kernelVersion, file: initrd, certificates: options.certificates })
    copyFileSync(kernel, place(RECOVERY_FILES.kernel))
    copyFileSync(initrd, place(RECOVERY_FILES.initrd))
    onStep('laying out the disk')
    await composeDisk({ source: path.join(scratch, 'disk'), home: path.join(scratch, 'home'), file: place(RECOVERY_FILES.disk), kernelArguments: options.kernelArguments })
    return { files: Object.values(RECOVERY_FILES).map((name) => ({ file: place(name), bytes: statSync(place(name)).size })), kernelVersion }
  } finally {
    rmSync(scratch, { recursive: true, force: true })
  }
}

/** The kernel unpacks zstd by itself since 5.9. */
function packInitrd(options: { root: string; unpacked: string; kernelVersion: string; file: string; certificates?: string }): void {
  const { root, unpacked, kernelVersion, file, certificates } = options
  fillAgentRoot(path.join(root, 'agent.initrd'), { certificates })
  copyInto(root, ['/bin/busybox'])
  copyPrograms(root, ['/usr/sbin/nbd-client'])
  copyModules({ from: unpacked, to: root, version: kernelVersion })
  copyFileSync(path.join(import.meta.dirname, 'init.sh'), path.join(root, 'init'))
  chmodSync(path.join(root, 'init'), 0o755)
  run('sh', ['-c', 'cd "$1" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0 | zstd -q -f -T0 -12 -o "$2"', 'sh', root, file])
}

async function composeDisk(options: { source: string; home: string; file: string; kernelArguments?: string }): Promise<void> {
  await using home = await Home.open(options.home)
  await importLayer({ home, name: NAME, kind: 'base', source: `dir:${options.source}` })
  const contentBytes = Number(run('du', ['-s', '--apparent-size', '--block-size=1', options.source]).split('\t')[0])
  const sizeBytes = Math.ceil((contentBytes * 1.1 + SPARE_BYTES) / MEBI) * MEBI
  await home.catalog.createCvd({ name: NAME, layers: [NAME], policy: { sizeBytes, kernelCommandLine: [RECOVERY_CONSOLES, options.kernelArguments ?? ''].join(' ').trim() } })
  const { map } = await compose(await prepareRecipe({ cvd: NAME }, home), home)
  await using device = new MapDevice(map, home.store, ChunkCache.create({ bytesMax: CACHE_BYTES }))
  const fd = openSync(options.file, 'w')
  try {
    ftruncateSync(fd, device.sizeBytes)
    const buffer = new Uint8Array(COPY_BYTES)
    for (const { type, offset, length } of device.extents(0, device.sizeBytes)) {
      if (type !== 'data') continue
      for (let at = offset; at < offset + length; at += buffer.length) {
        const part = buffer.subarray(0, Math.min(buffer.length, offset + length - at))
        await device.read(part, at)
        writeSync(fd, part, 0, part.length, at)
      }
    }
  } finally {
    closeSync(fd)
  }
}
