/**
 * The program behind the varve command: its nouns and verbs.
 */
import { Command, CommanderError } from 'commander'
import { addComposeCommand } from './commands/compose.ts'
import { addConfigCommands } from './commands/config.ts'
import { addCvdCommands } from './commands/cvd.ts'
import { addLayerCommands } from './commands/layer.ts'
import { addServeCommand } from './commands/serve.ts'
import { addSnapshotCommands } from './commands/snapshot.ts'
import { addStoreCommands } from './commands/store.ts'
import { ExitStatus } from './terminal.ts'

const program = new Command('varve')
  .description('composes layers of files into bootable disks without copying, and serves them')
  .option('--home <directory>', 'where everything is kept (default: $VARVE_HOME, else ~/.local/share/varve)')
  .option('--json', 'print one JSON document on standard output')
  .exitOverride()
  .showHelpAfterError('(varve --help lists the commands)')

addLayerCommands(program)
addCvdCommands(program)
addComposeCommand(program)
addServeCommand(program)
addConfigCommands(program)
addSnapshotCommands(program)
addStoreCommands(program)

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
