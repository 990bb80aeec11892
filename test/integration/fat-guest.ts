/**
 * A small guest whose kernel uses volumes of FAT and exFAT as years of it leave them, and says what it finds there.
 */
import { mkdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { packInitrd } from '@varve/tools/demo/debian.ts'
import { Guest } from '@varve/tools/demo/guest.ts'
import { downloadPackages, kernelPackage, unpackPackage } from '@varve/tools/recovery/debian-packages.ts'
import type { Random } from '../random.ts'

export interface GuestVolume {
  image: string
  type: 'vfat' | 'exfat'
  sectorBytes: number
  /** Bytes of which it is filled once; 0 if it is not to be filled. */
  fillBytes: number
  /** Of one file. */
  bytesMax: number
  /** It is not unmounted when the guest ends. Such volumes come last, for others are synced. */
  isLeftMounted: boolean
}

/** What the kernel says of a name. */
export interface GuestEntry {
  /** Below the volume's root, bytes in latin1; '' for the root. */
  path: string
  /** As stat(2). */
  mode: number
  sizeBytes: number
  mtimeSeconds: number
  /** Hexadecimal, of files. */
  sha256: string | undefined
}

const REPORT_BYTES_MAX = 16 << 20
/** Files that fill a volume; then every other is removed. */
const FILLERS = 100
const LETTERS = [...'abcdefXYZ019 ._-~ßéÖЖ漢+,;=[]😀']
const OPTIONS = { vfat: 'utf8,codepage=437,tz=UTC,noatime', exfat: 'noatime' }

/** Boots the guest, which ages each volume and reports. @returns entries by volume */
export async function useVolumes(volumes: readonly GuestVolume[], { scratch, random, steps }: { scratch: string; random: Random; steps: number }): Promise<GuestEntry[][]> {
  const report = path.join(scratch, 'report')
  writeFileSync(report, '')
  truncateSync(report, REPORT_BYTES_MAX)
  const kernel = buildKernel(scratch, volumes.map((volume, index) => useOf(volume, `/dev/vd${'bcdefghij'[index]}`, random, steps)).join(''))
  const drives = [{ image: report, sectorBytes: 512 }, ...volumes].flatMap(({ image, sectorBytes }, index) => [
    '-drive', `file=${image},format=raw,if=none,id=drive${index}`,
    '-device', `virtio-blk-pci,drive=drive${index},logical_block_size=${sectorBytes},physical_block_size=${sectorBytes}`,
  ])
  await using guest = new Guest({ kernel, memoryMiB: 512, extra: drives })
  await guest.waitFor(/guest: done/, { timeoutMs: 900_000 })
  await guest.exited
  if (/guest: (\S+ )?failed/.test(guest.console)) throw new Error(`the guest failed: ${guest.console.slice(-4000)}`)
  return readReport(readFileSync(report).toString('latin1'), volumes.length)
}

/** Shell commands that age a volume and report what is there. */
function useOf({ type, fillBytes, bytesMax, isLeftMounted }: GuestVolume, device: string, random: Random, steps: number): string {
  const lines = [`mount -t ${type} -o ${OPTIONS[type]} ${device} /root || echo "guest: mount failed ${device}"`, 'cd /root']
  const files: string[] = []
  const directories = ['.']
  let names = 0
  const newPath = (): string => {
    const length = random.chance(0.1) ? random.between(20, 50) : random.between(1, 12)
    const name = `${Array.from({ length }, () => random.pick(LETTERS)).join('').replace(/^[. ]+/, '')}k${names++}`
    return `${random.pick(directories)}/${random.chance(0.2) ? name.toUpperCase().replace(/[^A-Z0-9]/g, '').slice(0, 8) + (names % 10) : name}`
  }
  const anyFile = (): string | undefined => (files.length === 0 ? undefined : random.pick(files))
  const content = (bytes: number): string => `yes '${random.uint32().toString(36)} ${names}' | head -c ${bytes}`
  const uses: ((file: string) => string)[] = [
    (file) => `rm '${file}'`,
    (file) => `rm '${file}'`,
    (file) => {
      const target = newPath()
      files.push(target)
      return `mv '${file}' '${target}'`
    },
    (file) => `${content(random.below(bytesMax))} >'${file}'`,
    (file) => `${content(random.below(bytesMax))} >>'${file}'`,
    (file) => `truncate -s ${random.below(bytesMax)} '${file}'`,
    (file) => `${content(random.below(20_000))} | dd of='${file}' bs=${random.between(1000, 5000)} seek=${random.below(10)} conv=notrunc`,
    (file) => `chmod a-w '${file}'`,
  ]
  const step = (): string => {
    const file = random.chance(0.5) ? anyFile() : undefined
    if (file !== undefined) return random.pick(uses)(file)
    const target = newPath()
    if (random.chance(0.15)) {
      directories.push(target)
      return `mkdir '${target}'`
    }
    files.push(target)
    return `${content(random.pick([0, 1, 512, 4096, random.below(bytesMax)]))} >'${target}'`
  }
  for (let count = 0; count < steps; count++) {
    // What the volume has no room for fails, and so does what needs a file that is gone: what is there in the end counts.
    lines.push(`{ ${step()}; } 2>/dev/null`)
    if (count === steps >> 1 && fillBytes > 0) lines.push(`i=0; while [ $i -lt ${FILLERS} ] && yes filler $i | head -c ${Math.ceil(fillBytes / FILLERS)} >filler$i; do i=$((i + 1)); done 2>/dev/null; for j in $(seq 0 2 $i); do rm -f filler$j; done`)
  }
  lines.push('sync')
  // A filesystem that is synced is clean in exFAT, a file that is synced is not enough.
  if (isLeftMounted) lines.push('echo late >late', 'fsync late')
  lines.push('echo 3 >/proc/sys/vm/drop_caches', `echo "volume ${device}" >>/report`, "find . -exec stat -c '%f %s %Y %n' {} + >>/report", 'echo contents >>/report', 'find . -type f -exec sha256sum {} + >>/report', 'cd /', `echo "guest: used ${device}"`)
  lines.push(isLeftMounted ? `mkdir -p /left${device} && mount --move /root /left${device}` : 'umount /root')
  return `${lines.join('\n')}\n`
}

function buildKernel(scratch: string, use: string): { image: string; initrd: string; commandLine: string } {
  const kernel = kernelPackage('cloud-amd64')
  const version = kernel.replace('linux-image-', '')
  const root = path.join(scratch, 'kernel')
  const content = path.join(scratch, 'initrd')
  for (const folder of [root, content]) mkdirSync(folder)
  unpackPackage(downloadPackages([kernel], path.join(scratch, 'packages'))[0], root)
  const initrd = path.join(scratch, 'initrd.img')
  packInitrd({ root, version, file: initrd, scratch: content, modules: ['virtio_pci', 'virtio_blk', 'nls_cp437', 'nls_ascii', 'vfat', 'exfat'], init: `/bin/busybox --install -s /bin
export PATH=/bin
: >/report
${use}dd if=/report of=/dev/vda bs=1M conv=notrunc,fsync 2>/dev/null || echo "guest: report failed"
echo "guest: done"
poweroff -n -f
` })
  return { image: path.join(root, `boot/vmlinuz-${version}`), initrd, commandLine: 'console=ttyS0 panic=-1 quiet' }
}

function readReport(report: string, volumes: number): GuestEntry[][] {
  const parts = report.replace(/\0[^]*/, '').split(/^volume .*\n/m).slice(1)
  if (parts.length !== volumes) throw new Error(`the guest reports ${parts.length} volumes of ${volumes}`)
  return parts.map((part) => {
    const [nodes, contents] = part.split(/^contents\n/m)
    const digests = new Map<string, string>()
    for (const [, digest, name] of contents.matchAll(/^([0-9a-f]{64}) {2}(.*)$/gm)) digests.set(name, digest)
    return Array.from(nodes.matchAll(/^([0-9a-f]+) (\d+) (-?\d+) (.*)$/gm), ([, mode, size, mtime, name]) => ({
      path: name.replace(/^\.\/?/, ''),
      mode: parseInt(mode, 16),
      sizeBytes: Number(size),
      mtimeSeconds: Number(mtime),
      sha256: digests.get(name),
    }))
  })
}
