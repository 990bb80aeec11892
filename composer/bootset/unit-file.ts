/**
 * What a unit file of systemd says of other units and of programs. Only what pulls something in; conditions, specifiers and orders are not looked at.
 * Syntax: systemd.syntax(7), systemd.unit(5).
 */

export interface UnitFile {
  /** Names of units that it pulls in. */
  units: string[]
  /** Programs that it starts, as they are written: `/usr/bin/x`, or `x`. */
  programs: string[]
}

const PULLS_IN = new Set(['Requires', 'Requisite', 'Wants', 'BindsTo', 'Upholds', 'Sockets'])
const STARTS = /^Exec(?:Condition|StartPre|Start|StartPost)$/
/** `-`, `@`, `:`, `+`, `!` and `!!` before a program say how it is run. */
const PROGRAM = /^[-@:+!|]*"?([^\s"]+)/
/** Of a file that names no end of them. */
const NAMES_MAX = 1024
/** Of a unit's name, as systemd has it. */
const NAME_CHARACTERS_MAX = 255

export function parseUnitFile(text: string): UnitFile {
  const unit: UnitFile = { units: [], programs: [] }
  for (const line of text.replaceAll(/\\\r?\n/g, ' ').split('\n')) {
    const equals = line.indexOf('=')
    const key = line.slice(0, Math.max(equals, 0)).trim()
    const value = line.slice(equals + 1).trim()
    if (PULLS_IN.has(key)) for (const name of value.split(/\s+/)) if (name !== '' && name.length <= NAME_CHARACTERS_MAX) unit.units.push(name)
    const program = STARTS.test(key) ? PROGRAM.exec(value)?.[1] : undefined
    if (program !== undefined) unit.programs.push(program)
  }
  return { units: unit.units.slice(0, NAMES_MAX), programs: unit.programs.slice(0, NAMES_MAX) }
}
