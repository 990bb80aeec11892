/**
 * `varve config`: the configuration file of `varve serve`, checked and shown.
 */
import type { Command } from 'commander'
import { action } from '../invocation.ts'
import { DEFAULT_CONFIG_FILE, formatSettings, loadSettings, requireSettings } from '../service/config-file.ts'
import { addSettingsOptions, overridesOf, type SettingsOptions } from '../service/settings-options.ts'
import { ExitStatus } from '../terminal.ts'

export function addConfigCommands(program: Command): void {
  const config = program.command('config').description('the configuration of varve serve')

  config.command('check').argument('[file]', 'the configuration file', DEFAULT_CONFIG_FILE)
    .description('list all mistakes of a configuration file; exit status 1 if there are any')
    .action(action(async (invocation, file: string) => {
      const { mistakes } = loadSettings(file)
      invocation.result({ file, mistakes }, mistakes.length === 0 ? `${file}: sound` : mistakes.join('\n'))
      if (mistakes.length > 0) invocation.finish(ExitStatus.failed)
    }))

  addSettingsOptions(config.command('show'))
    .description('print the settings that varve serve would have with these options, as a configuration file')
    .action(action(async (invocation, options: SettingsOptions) => {
      const { settings } = requireSettings(options.config, overridesOf(options, invocation))
      const effective = { ...settings, home: settings.home ?? invocation.homeDirectory }
      invocation.result(effective, formatSettings(effective).trimEnd())
    }))
}
