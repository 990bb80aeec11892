/**
 * `varve recovery build`: the medium that streams a CVD to blank hardware.
 */
import path from 'node:path'
import type { Command } from 'commander'
import { action } from '../invocation.ts'
import { formatBytes, formatTable } from '../terminal.ts'

interface BuildOptions {
  out: string
  kernelArguments?: string
  flavour?: string
  certificates?: string
}

export function addRecoveryCommands(program: Command): void {
  program.command('recovery').description('the medium that streams a CVD to blank hardware').command('build')
    .requiredOption('--out <directory>', 'where vmlinuz, initrd.img and recovery.img go')
    .option('--kernel-arguments <text>', 'for recovery.img, such as "varve.server=https://varve.example:8470 varve.cvd=desk"; what is not said is asked')
    .option('--flavour <name>', 'kind of Debian kernel: amd64, cloud-amd64 (default: amd64)')
    .option('--certificates <file>', 'authorities that sign the server\'s certificate, PEM')
    .description('build it from packages of this Debian: to boot by BIOS, by UEFI and from the network')
    .action(action(async (invocation, options: BuildOptions) => {
      const { buildRecovery } = await import('../recovery/build-recovery.ts')
      const { files, kernelVersion } = await buildRecovery({ ...options, directory: path.resolve(options.out), onStep: (what) => invocation.note(what) })
      invocation.result({ kernel: kernelVersion, files }, formatTable([...files.map(({ file, bytes }) => [file, formatBytes(bytes)]), ['kernel', kernelVersion]]))
    }))
}
