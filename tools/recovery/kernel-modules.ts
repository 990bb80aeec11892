/**
 * The kernel modules that a recovery medium carries: drivers of disks, network cards, keyboards, and filesystems. None of graphics or sound: until it
 * reboots into its own kernel, a streamed system has the firmware's screen, unless it has modules of the medium's kernel itself.
 */
import { copyFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { execFileSync } from 'node:child_process'
import path from 'node:path'
import { run } from './debian-packages.ts'

/** Folders, or modules, below `kernel/`. What they depend on comes with them. */
const WANTED = [
  'drivers/ata/', 'drivers/nvme/', 'drivers/mmc/', 'drivers/block/virtio_blk', 'drivers/block/nbd', 'drivers/md/dm-mod',
  'drivers/scsi/sd_mod', 'drivers/scsi/virtio_scsi', 'drivers/scsi/vmw_pvscsi', 'drivers/scsi/hv_storvsc', 'drivers/scsi/hpsa', 'drivers/scsi/aacraid/',
  'drivers/scsi/megaraid/', 'drivers/scsi/mpt3sas/', 'drivers/scsi/smartpqi/', 'drivers/message/fusion/', 'drivers/usb/storage/', 'drivers/usb/host/',
  'drivers/net/ethernet/', 'drivers/net/phy/', 'drivers/net/usb/', 'drivers/net/hyperv/', 'drivers/net/vmxnet3/', 'drivers/net/virtio_net', 'drivers/net/xen-netfront',
  'drivers/virtio/', 'drivers/hv/', 'drivers/hid/hid-generic', 'drivers/hid/usbhid/', 'drivers/hid/hid-hyperv', 'drivers/input/keyboard/', 'drivers/input/serio/',
  'fs/ext4/', 'fs/xfs/', 'fs/btrfs/', 'fs/fat/', 'fs/nls/', 'crypto/crc32c_generic', 'arch/x86/crypto/crc32', 'lib/',
]
/** What depmod and modprobe need beside the modules. */
const LISTS = ['modules.order', 'modules.builtin', 'modules.builtin.modinfo']

/** Copies them from the unpacked kernel package at `from` into the root directory `to`, decompressed. */
export function copyModules(options: { from: string; to: string; version: string }): void {
  const [from, to] = [options.from, options.to].map((root) => path.join(root, 'lib/modules', options.version))
  run('depmod', ['-b', options.from, options.version])
  const dependencies = new Map(readFileSync(path.join(from, 'modules.dep'), 'utf8').split('\n').filter((line) => line !== '').map((line) => {
    const [module, needed] = line.split(':')
    return [module, needed.split(' ').filter((one) => one !== '')]
  }))
  const chosen = new Set([...dependencies.keys()].filter((module) => WANTED.some((wanted) => module.startsWith(`kernel/${wanted}`))))
  // The list of a module holds what is needed by what it needs, too.
  for (const module of [...chosen]) for (const needed of dependencies.get(module)!) chosen.add(needed)
  for (const module of chosen) {
    const target = path.join(to, module.replace(/\.(xz|zst)$/, ''))
    mkdirSync(path.dirname(target), { recursive: true })
    const source = path.join(from, module)
    if (target.length === path.join(to, module).length) copyFileSync(source, target)
    else writeFileSync(target, execFileSync(module.endsWith('.xz') ? 'xz' : 'zstd', ['-dc', source], { maxBuffer: 64 << 20 }))
  }
  for (const list of LISTS) if (existsSync(path.join(from, list))) copyFileSync(path.join(from, list), path.join(to, list))
  run('depmod', ['-b', options.to, options.version])
}
