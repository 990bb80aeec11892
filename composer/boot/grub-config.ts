/**
 * grub.cfg of a composed disk: one text for BIOS and UEFI. It lies on the EFI system partition, the kernels on the root filesystem.
 */
import type { Kernel } from './kernels.ts'

export interface GrubConfigOptions {
  /** Newest first; at least one. */
  kernels: readonly Kernel[]
  /** Where GRUB reads the kernels: from the root filesystem, or from the partition that grub.cfg is on. */
  kernelsOn: 'root' | 'efi'
  /** Links that lead to the newest kernel as composed; a guest that upgrades its kernel moves them. Only on the root filesystem. */
  links?: { kernel: string; initrd: string }
  /** UUID of the root filesystem, text form. */
  rootUuid: string
  /** GUID of the root partition, text form: for kernels without an initrd, which know partitions only. */
  rootPartitionGuid: string
  /** Number of the root partition, first is 1. */
  rootPartition: number
  /** Added to the kernel's command line: printable ASCII. */
  kernelCommandLine: string
}

/** What a fallback looks for if the guest has removed the kernel that was composed. */
const DEFAULT_LINKS = { kernel: 'vmlinuz', initrd: 'initrd.img' }

/** The text of grub.cfg, bytes in latin1. */
export function grubConfig(options: GrubConfigOptions): string {
  const [newest, ...further] = options.kernels
  const entries = [defaultEntry(newest, options), ...further.map((kernel) => entry(`Linux ${kernel.version}`, [`set kernel=/${kernel.path}`, initrdOf(kernel)], options))]
  return `# Written when the disk was composed; it is the same for BIOS and UEFI.
if [ "$grub_platform" = pc ]; then
  if serial --unit=0 --speed=115200; then
    terminal_input console serial
    terminal_output console serial
  fi
fi

${options.kernelsOn === 'root' ? findRoot(options) : ''}set default=0
set timeout_style=hidden
set timeout=${entries.length > 1 ? 1 : 0}

${entries.join('\n')}`
}

function findRoot(options: GrubConfigOptions): string {
  return `# The root filesystem is on the disk that this file was read from; only if it is not, all disks are searched.
regexp --set=1:disk '^\\(([^,)]*),' "$prefix"
search --no-floppy --fs-uuid --set=root --hint="$disk,gpt${options.rootPartition}" ${options.rootUuid}

`
}

/** Boots what the guest's own links name, if they named the newest kernel when the disk was composed; otherwise that kernel itself; otherwise what there is. */
function defaultEntry(newest: Kernel, options: GrubConfigOptions): string {
  if (options.kernelsOn === 'efi') return entry('Linux', [`set kernel=/${newest.path}`, initrdOf(newest)], options)
  const preferred = options.links === undefined ? [`set kernel=/${newest.path}`, initrdOf(newest)] : linked(options.links, newest)
  const otherwise = options.links === undefined ? linked(DEFAULT_LINKS, { ...newest, initrdPath: DEFAULT_LINKS.initrd }) : [`set kernel=/${newest.path}`, initrdOf(newest)]
  return entry('Linux', [...preferred, 'if [ ! -e "$kernel" ]; then', ...otherwise.map((line) => `  ${line}`), 'fi'], options)
}

function linked(links: { kernel: string; initrd: string }, kernel: Kernel): string[] {
  return [`set kernel=/${links.kernel}`, `set initrd=${kernel.initrdPath === undefined ? '' : `/${links.initrd}`}`]
}

function initrdOf(kernel: Kernel): string {
  return `set initrd=${kernel.initrdPath === undefined ? '' : `/${kernel.initrdPath}`}`
}

function entry(title: string, choice: string[], options: GrubConfigOptions): string {
  const more = options.kernelCommandLine.split(/ +/).filter((word) => word !== '').map((word) => ` ${quoted(word)}`).join('')
  return `menuentry '${title}' {
${choice.map((line) => `  ${line}\n`).join('')}  if [ -n "$initrd" -a -e "$initrd" ]; then
    linux "$kernel" root=UUID=${options.rootUuid} rw${more}
    initrd "$initrd"
  else
    linux "$kernel" root=PARTUUID=${options.rootPartitionGuid} rootwait rw${more}
  fi
}
`
}

/** One word of GRUB's language. */
function quoted(word: string): string {
  return /^[\w.,:=/@+%-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`
}
