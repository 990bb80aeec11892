/**
 * Options of the command that say what a CVD's disk is to be like, and the policy that is kept of them.
 */
import { Option } from 'commander'
import type { Command } from 'commander'
import { checkPolicy } from '@varve/composer/prepare-recipe.ts'
import type { ComposePolicy } from '@varve/composer/prepare-recipe.ts'
import { VarveError } from '@varve/images/errors.ts'
import type { JsonObject } from '@varve/images/store/catalog.ts'
import { parseSize } from './size.ts'

/** As commander gives them. */
export interface PolicyOptions {
  boot?: ComposePolicy['boot']
  size?: string
  label?: string
  kernelArguments?: string
  decide?: string[]
}

/** Sizes are rounded up to this, so that every partition is aligned. */
const SIZE_STEP_BYTES = 1 << 20
const SIZE_BYTES_MAX = 2 ** 46

export function withPolicyOptions(command: Command): Command {
  return command
    .addOption(new Option('--boot <loader>', 'grub (BIOS and UEFI), none (for -kernel boots and data disks), or own (a disk as it was imported)').choices(['grub', 'none', 'own']))
    .option('--size <bytes>', 'size of the disk, such as 40G; default: content + 25%, at least 1 GiB free')
    .option('--label <text>', 'label of the root filesystem')
    .option('--kernel-arguments <text>', 'appended to the kernel command line')
    .option('--decide <conflict=layer>', 'which layer is right in a conflict; may be repeated', (value: string, before: string[] = []) => [...before, value])
}

/** Only what was said on the command line. @throws VarveError NAME_INVALID, LIMIT_EXCEEDED */
export function policyDocument(options: PolicyOptions): JsonObject {
  const policy: ComposePolicy = {}
  if (options.boot !== undefined) policy.boot = options.boot
  if (options.size !== undefined) policy.sizeBytes = diskSize(options.size)
  if (options.label !== undefined) policy.label = options.label
  if (options.kernelArguments !== undefined) policy.kernelCommandLine = options.kernelArguments
  if (options.decide !== undefined) policy.decisions = Object.fromEntries(options.decide.map(parseDecision))
  checkPolicy(policy)
  return policy as JsonObject
}

function parseDecision(text: string): [string, string] {
  const at = text.lastIndexOf('=')
  if (at <= 0) throw new VarveError('NAME_INVALID', `--decide ${text}: give CONFLICT=LAYER, as the dry run prints them`)
  return [text.slice(0, at), text.slice(at + 1)]
}

function diskSize(text: string): number {
  const bytes = parseSize(text) ?? 0
  if (!(bytes > 0 && bytes <= SIZE_BYTES_MAX)) throw new VarveError('NAME_INVALID', `--size ${text}: give a size such as 40G, at most 64T`)
  return Math.ceil(bytes / SIZE_STEP_BYTES) * SIZE_STEP_BYTES
}
