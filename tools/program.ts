/**
 * The program behind the varve command: its nouns and verbs.
 */
import { Command, CommanderError } from 'commander'
import manifest from './package.json' with { type: 'json' }
import { ExitStatus } from './terminal.ts'

type AddCommands = (program: Command) => void

const fileCommands = async (): Promise<AddCommands> => (await import('./commands/files.ts')).addFileCommands
const storeCommands = async (): Promise<AddCommands> => (await import('./commands/store.ts')).addStoreCommands
/** By noun, in the order in which help lists them. */
const COMMANDS: Record<string, () => Promise<AddCommands>> = {
  layer: async () => (await import('./commands/layer.ts')).addLayerCommands,
  cvd: async () => (await import('./commands/cvd.ts')).addCvdCommands,
  compose: async () => (await import('./commands/compose.ts')).addComposeCommand,
  export: async () => (await import('./commands/export.ts')).addExportCommand,
  serve: async () => (await import('./commands/serve.ts')).addServeCommand,
  config: async () => (await import('./commands/config.ts')).addConfigCommands,
  agent: async () => (await import('./commands/agent.ts')).addAgentCommands,
  recovery: async () => (await import('./commands/recovery.ts')).addRecoveryCommands,
  restore: async () => (await import('./commands/agent-stream.ts')).addRestoreCommand,
  ls: fileCommands,
  cat: fileCommands,
  cp: fileCommands,
  find: fileCommands,
  diff: fileCommands,
  mount: async () => (await import('./commands/mount.ts')).addMountCommand,
  snapshot: async () => (await import('./commands/snapshot.ts')).addSnapshotCommands,
  bootset: async () => (await import('./commands/bootset.ts')).addBootSetCommands,
  gc: storeCommands,
  verify: storeCommands,
  doctor: storeCommands,
}

const program = new Command('varve')
  .description('composes layers of files into bootable disks without copying, and serves them')
  .version(manifest.version, '--version', 'print the version')
  .option('--home <directory>', 'where everything is kept (default: $VARVE_HOME, else ~/.local/share/varve)')
  .option('--json', 'print one JSON document on standard output')
  .exitOverride()
  .showHelpAfterError('(varve --help lists the commands)')

for (const load of new Set(wantedNouns(process.argv.slice(2)).map((noun) => COMMANDS[noun]))) (await load())(program)

/** Only what may be asked for is loaded: start-up is most of a small command. */
function wantedNouns(words: readonly string[]): string[] {
  const nouns = Object.keys(COMMANDS)
  const named = nouns.filter((noun) => words.includes(noun))
  if (words.some((word) => word === 'help' || word === '--help' || word === '-h')) return nouns
  return named.length > 0 || words.includes('--version') ? named : nouns
}

/** Subcommands take the options of the whole command too, wherever they stand. */
function inherit(command: Command): void {
  for (const child of command.commands) {
    child.exitOverride()
    if (child.commands.length === 0) child.option('--home <directory>', 'where everything is kept').option('--json', 'print one JSON document')
    inherit(child)
  }
}
inherit(program)

try {
  await program.parseAsync()
} catch (error) {
  if (!(error instanceof CommanderError)) throw error
  process.exitCode = error.exitCode === 0 ? ExitStatus.done : ExitStatus.usage
}
