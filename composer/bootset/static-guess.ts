/**
 * Static guess: the boot set of a disk that never booted, from what its files say: boot loader, kernel, initrd, init, the units of the default
 * target with their programs, the libraries of these, and what every boot of such a system reads besides. Bounded in files and bytes.
 */
import { isVarveError } from '@varve/images/errors.ts'
import type { FileNode } from '@varve/images/filesystems/filesystem.ts'
import { readElf } from '@varve/images/formats/elf.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import { compareVersions } from '../boot/version-order.ts'
import { BOOT_SET_ENTRIES_MAX, BootSet, Part } from './boot-set.ts'
import type { BootSetEntry } from './boot-set.ts'
import { AreaName } from './disk-view.ts'
import type { DiskView } from './disk-view.ts'
import { parseUnitFile } from './unit-file.ts'

/** Of all files together. */
const GUESS_BYTES_MAX = 1 << 30
/** Larger files are data that a boot reads a part of, if any. */
const FILE_BYTES_MAX = 64 << 20
const IMAGE_BYTES_MAX = 512 << 20
/** Of a list of all modules; it is looked into whole. */
const MODULE_INDEX_BYTES_MAX = 8 << 20
/** Of a file of configuration; a larger one is data. */
const CONFIGURATION_BYTES_MAX = 256 << 10
const DEPTH_MAX = 8
const UNITS_MAX = 4096
/** Names of units that wait to be looked at. */
const UNITS_PENDING_MAX = 1 << 16

const UNIT_DIRECTORIES = ['etc/systemd/system', 'usr/lib/systemd/system', 'lib/systemd/system']
const PROGRAM_DIRECTORIES = ['usr/sbin', 'usr/bin', 'sbin', 'bin']
const LIBRARY_DIRECTORIES = ['lib/x86_64-linux-gnu', 'usr/lib/x86_64-linux-gnu', 'lib/aarch64-linux-gnu', 'usr/lib/aarch64-linux-gnu', 'lib64', 'usr/lib64', 'lib', 'usr/lib', 'usr/local/lib']
/** What init reads before it knows its units. */
const EARLY = ['etc/ld.so.cache', 'etc/os-release', 'etc/machine-id', 'etc/locale.conf', 'etc/hostname', 'etc/fstab', 'etc/nsswitch.conf', 'etc/passwd', 'etc/group']
const GENERATORS = ['usr/lib/systemd/system-generators', 'usr/lib/systemd/system-environment-generators']
/** Started by whatever: generated units, udev, a login. */
const PROGRAMS = ['kmod', 'mount', 'umount', 'udevadm', 'sh', 'bash', 'agetty', 'login', 'systemctl', 'systemd-tmpfiles', 'fsck', 'fsck.ext4', 'e2scrub_all', 'dbus-daemon', 'Xorg']
const PROGRAM_PATHS = ['usr/lib/systemd/systemd-executor', 'usr/lib/systemd/systemd-shutdown', 'usr/lib/systemd/systemd-fsck', 'usr/lib/systemd/systemd-makefs', 'usr/lib/systemd/systemd-growfs', 'usr/lib/xorg/Xorg']
/** Directories of small files that are read whole at each boot, with all below them. */
const CONFIGURATION = [
  'usr/lib/udev/rules.d', 'etc/udev', 'usr/lib/modprobe.d', 'usr/lib/modules-load.d', 'usr/lib/sysctl.d', 'usr/lib/sysusers.d', 'usr/lib/tmpfiles.d', 'usr/lib/environment.d', 'usr/lib/binfmt.d',
  'usr/lib/systemd/network', 'usr/lib/systemd/system-preset', 'usr/share/dbus-1', 'etc',
]
/** Modules that systemd asks for by name, and those of processors, buses and filesystems that nearly every machine of 64 bits loads. */
const MODULES = new Set([
  'autofs4', 'configfs', 'dm_mod', 'drm', 'efi_pstore', 'efivarfs', 'fuse', 'loop', 'ip_tables', 'x_tables', 'ipv6', 'unix',
  'kvm', 'kvm_intel', 'kvm_amd', 'aesni_intel', 'cryptd', 'crypto_simd', 'ghash_clmulni_intel', 'sha1_ssse3', 'sha256_ssse3', 'sha512_ssse3', 'crc32_pclmul', 'crct10dif_pclmul', 'polyval_clmulni',
  'acpi_cpufreq', 'button', 'evdev', 'serio_raw', 'psmouse', 'qemu_fw_cfg', 'virtio_net', 'virtio_blk', 'virtio_scsi', 'virtio_gpu', 'virtio_balloon', 'virtio_rng', 'sg', 'vfat', 'nls_ascii', 'nls_cp437',
])
const LOCALE = ['usr/lib/locale/C.utf8', 'usr/lib/locale/C.UTF-8']

/** @throws VarveError CHUNK_MISSING, CHUNK_CORRUPT */
export async function guessBootSet(view: DiskView): Promise<BootSet> {
  const guess = new Guess(view)
  for (const step of [() => guess.addBootLoader(), () => guess.addInit(), () => guess.addUnits(), () => guess.addPrograms(), () => guess.addModules(), () => guess.addConfiguration(), () => guess.addServices()]) {
    try {
      await step()
    } catch (error) {
      // What is damaged, or beyond a limit, ends its step: the rest is as good a guess as before.
      if (!isVarveError(error, 'FORMAT_INVALID', 'FORMAT_UNSUPPORTED', 'LIMIT_EXCEEDED')) throw error
    }
  }
  return guess.set()
}

class Guess {
  readonly #view: DiskView
  readonly #entries: BootSetEntry[] = []
  readonly #paths = new Set<string>()
  /** Names and paths of libraries and programs that have been looked for. */
  readonly #sought = new Set<string>()
  readonly #units = new Set<string>()
  #bytes = 0

  constructor(view: DiskView) {
    this.#view = view
  }

  set(): BootSet {
    return new BootSet(0, this.#entries)
  }

  /** Firmware and boot loader read the partitions before the root filesystem, and what the loader starts. Without such partitions, none of it is read from the disk. */
  async addBootLoader(): Promise<void> {
    const partitions = this.#view.areas.filter(({ name }) => name.startsWith('partition '))
    this.#addArea(AreaName.table)
    for (const { name } of partitions) if (name !== AreaName.table) this.#addArea(name)
    this.#addArea(AreaName.head)
    if (partitions.length > 1) {
      const names = await this.#names('boot')
      const newest = (prefix: string): string[] => names.filter((name) => name.startsWith(prefix)).sort((a, b) => compareVersions(b, a)).slice(0, 1).map((name) => `boot/${name}`)
      const first = async (...paths: string[]): Promise<void> => {
        for (const path of paths) if (await this.#addFile(path, IMAGE_BYTES_MAX)) return
      }
      await first('vmlinuz', 'boot/vmlinuz', ...newest('vmlinuz-'))
      await first('initrd.img', 'boot/initrd.img', ...newest('initrd.img-'), ...newest('initramfs-'))
    }
    for (const name of [AreaName.journal, AreaName.blockBitmaps, AreaName.inodeBitmaps]) this.#addArea(name)
  }

  async addInit(): Promise<void> {
    await this.#addProgram('sbin/init')
    for (const path of EARLY) await this.#addFile(path)
    for (const directory of LOCALE) await this.#addBelow(directory, FILE_BYTES_MAX)
    for (const directory of GENERATORS) for (const name of await this.#names(directory)) await this.#addProgram(`${directory}/${name}`)
  }

  /** The default target and what it pulls in, nearest first; a socket brings its service. */
  async addUnits(): Promise<void> {
    const pending = ['default.target', 'sysinit.target', 'basic.target', 'multi-user.target', 'getty@tty1.service', 'serial-getty@ttyS0.service', 'systemd-logind.service', 'user@0.service']
    for (let index = 0; index < pending.length && this.#units.size < UNITS_MAX; index++) {
      if (this.#units.has(pending[index])) continue
      this.#units.add(pending[index])
      for (const unit of await this.#addUnit(pending[index])) if (pending.length < UNITS_PENDING_MAX && !this.#units.has(unit)) pending.push(unit)
    }
  }

  async addPrograms(): Promise<void> {
    for (const name of PROGRAMS) await this.#addProgram(name)
    for (const path of PROGRAM_PATHS) await this.#addProgram(path)
  }

  /** Of the kernel that is booted: indexes, and modules with those that they need. */
  async addModules(): Promise<void> {
    for (const parent of ['usr/lib/modules', 'lib/modules']) {
      for (const version of (await this.#names(parent)).sort((a, b) => compareVersions(b, a)).slice(0, 1)) {
        const directory = `${parent}/${version}`
        for (const name of await this.#names(directory)) if (/^modules\.(?:.*\.bin|softdep|devname)$/.test(name)) await this.#addFile(`${directory}/${name}`)
        // Lines of `MODULE: NEEDED ...`, the last one needed is loaded first.
        for (const line of (await this.#text(`${directory}/modules.dep`, MODULE_INDEX_BYTES_MAX)).split('\n')) {
          const [module, needed = ''] = line.split(':', 2)
          const name = module.slice(module.lastIndexOf('/') + 1).split('.', 1)[0]
          if (!MODULES.has(name.replaceAll('-', '_'))) continue
          for (const path of [...needed.split(' ').reverse(), module]) if (path !== '') await this.#addFile(`${directory}/${path}`)
        }
      }
    }
  }

  async addConfiguration(): Promise<void> {
    for (const directory of CONFIGURATION) await this.#addBelow(directory, CONFIGURATION_BYTES_MAX)
    await this.#addFile('usr/lib/udev/hwdb.bin')
  }

  /** Modules of name services and of authentication, which are loaded by name. */
  async addServices(): Promise<void> {
    for (const directory of LIBRARY_DIRECTORIES) {
      for (const name of await this.#names(directory)) if (/^libnss_(?:files|systemd|compat|dns)/.test(name)) await this.#addProgram(`${directory}/${name}`)
    }
    const modules = new Set<string>()
    for (const name of await this.#names('etc/pam.d')) {
      for (const [module] of (await this.#text(`etc/pam.d/${name}`)).matchAll(/\bpam_\w+\.so\b/g)) modules.add(module)
    }
    for (const directory of LIBRARY_DIRECTORIES) for (const module of modules) await this.#addProgram(`${directory}/security/${module}`)
  }

  /** @returns the units that it pulls in */
  async #addUnit(name: string): Promise<string[]> {
    const template = name.replace(/@[^@]*(\.\w+)$/, '@$1')
    const found: string[] = []
    const take = async (path: string): Promise<void> => {
      const { units, programs } = parseUnitFile(await this.#text(path))
      if (!(await this.#addFile(path, CONFIGURATION_BYTES_MAX))) return
      found.push(...units)
      for (const program of programs) await this.#addProgram(program.replace(/^\//, ''))
    }
    for (const own of new Set([name, template])) {
      for (const directory of UNIT_DIRECTORIES) {
        await take(`${directory}/${own}`)
        for (const part of await this.#names(`${directory}/${own}.d`)) await take(`${directory}/${own}.d/${part}`)
        for (const kind of ['wants', 'requires', 'upholds']) for (const other of await this.#names(`${directory}/${own}.${kind}`)) found.push(other)
      }
    }
    if (name.endsWith('.socket')) found.push(name.replace(/socket$/, 'service'))
    return found
  }

  /** A program or library with the libraries that it needs, or a script with its interpreter. @param name a path, or a name to look for */
  async #addProgram(name: string, directories: readonly string[] = PROGRAM_DIRECTORIES): Promise<boolean> {
    if (this.#sought.has(name)) return true
    this.#sought.add(name)
    for (const path of name.includes('/') ? [name] : directories.map((directory) => `${directory}/${name}`)) {
      const found = await this.#view.resolve(path)
      if (found?.node.kind !== Kind.file) continue
      const isNew = !this.#paths.has(found.path)
      await this.#add(found.path, found.node, FILE_BYTES_MAX)
      if (isNew) await this.#addNeeds(found.path, found.node)
      return true
    }
    this.#sought.delete(name)
    return false
  }

  async #addNeeds(path: string, file: FileNode): Promise<void> {
    const elf = await readElf((offset, length) => this.#content(file, offset, length))
    if (elf === undefined) {
      const script = /^#!\s*(\S+)/.exec((await this.#content(file, 0, 256)).toString('latin1'))?.[1]
      if (script !== undefined) await this.#addProgram(script.replace(/^\//, ''))
      return
    }
    const own = path.slice(0, Math.max(0, path.lastIndexOf('/')))
    const directories = [...elf.runPath.map((directory) => directory.replace(/^\$(?:ORIGIN|\{ORIGIN\})/, own).replace(/^\//, '')), ...LIBRARY_DIRECTORIES]
    if (elf.interpreter !== undefined) await this.#addProgram(elf.interpreter.replace(/^\//, ''))
    for (const library of elf.needed) await this.#addProgram(library, directories)
  }

  async #addBelow(directory: string, bytesMax: number, depth = 0): Promise<void> {
    for (const name of (await this.#names(directory)).sort()) {
      const path = `${directory}/${name}`
      const node = (await this.#view.trail(path))?.at(-1)?.node
      if (node?.kind === Kind.directory && depth < DEPTH_MAX) await this.#addBelow(path, bytesMax, depth + 1)
      else if (node?.kind === Kind.file) await this.#addFile(path, bytesMax)
    }
  }

  /** @returns false if the path leads to no file, or to one that is too large */
  async #addFile(path: string, bytesMax = FILE_BYTES_MAX): Promise<boolean> {
    const found = await this.#view.resolve(path)
    if (found?.node.kind !== Kind.file || found.node.sizeBytes > bytesMax) return false
    await this.#add(found.path, found.node, bytesMax)
    return true
  }

  async #add(path: string, { id, sizeBytes }: FileNode, bytesMax: number): Promise<void> {
    const { pieces } = await this.#view.placesOf(id)
    if (this.#paths.has(path) || sizeBytes > bytesMax || this.#bytes + sizeBytes > GUESS_BYTES_MAX) return
    this.#paths.add(path)
    this.#bytes += sizeBytes
    for (const piece of pieces) this.#addRange(Part.file, path, piece)
  }

  #addArea(name: string): void {
    let offset = 0
    for (const { start, length } of this.#view.segmentsOf(name)) {
      this.#addRange(Part.area, name, { offset, start, length })
      offset += length
    }
  }

  #addRange(part: Part, path: string, { offset, start, length }: { offset: number; start: number; length: number }): void {
    this.#view.forEachChunk(start, length, (chunk, before, shown) => {
      if (this.#entries.length === BOOT_SET_ENTRIES_MAX) return
      this.#entries.push({ part, path, offset: offset + before, length: shown, digest: this.#view.map.chunkDigest(chunk).slice(), boots: 1, rank: this.#entries.length })
    })
  }

  /** Names in a directory; none if there is no such directory. */
  async #names(path: string): Promise<string[]> {
    const found = await this.#view.resolve(path)
    if (found?.node.kind !== Kind.directory) return []
    return (await this.#view.files!.list(found.node.id)).map(({ name }) => name)
  }

  /** Content of a file of configuration; nothing if there is none. */
  async #text(path: string, bytesMax = CONFIGURATION_BYTES_MAX): Promise<string> {
    const found = await this.#view.resolve(path)
    if (found?.node.kind !== Kind.file || found.node.sizeBytes > bytesMax) return ''
    return (await this.#content(found.node, 0, bytesMax)).toString('latin1')
  }

  /** Fewer than `length` bytes at the end of the file. */
  async #content({ id, sizeBytes }: FileNode, offset: number, length: number): Promise<Buffer> {
    const bytes = Buffer.alloc(Math.max(0, Math.min(length, sizeBytes - offset)))
    if (bytes.length > 0) await this.#view.files!.read(id, bytes, offset)
    return bytes
  }
}
