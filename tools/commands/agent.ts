/**
 * `varve agent`: token, list, revoke: who may stream from this home. Whoever has the home decides that; over HTTP an agent can only make itself known.
 */
import { type Command, InvalidArgumentError, Option } from 'commander'
import { type Agent, TOKEN_USES_MAX } from '@varve/images/store/catalog-agents.ts'
import { parseDuration } from '../duration.ts'
import { action } from '../invocation.ts'
import { formatTime } from '../names.ts'
import { DEFAULT_CONFIG_FILE, requireSettings } from '../service/config-file.ts'
import { makeToken } from '../streaming/agent-token.ts'
import { formatTable } from '../terminal.ts'
import { addAgentStreamCommands } from './agent-stream.ts'

const VALID_DEFAULT = '7d'
const VALID_MS_MAX = 10 * 365 * 24 * 3600 * 1000

interface TokenOptions {
  cvd?: string[]
  uses: number
  valid: number
  config?: string
}

export function addAgentCommands(program: Command): void {
  const agent = program.command('agent').description('agents: endpoints that stream CVDs to their own disks')
  addAdmissionCommands(agent)
  addAgentStreamCommands(agent)
}

function addAdmissionCommands(agent: Command): void {
  agent.command('token').description('print a token, which makes an agent known to this home')
    .option('--cvd <name...>', 'CVDs that such an agent may open, with their snapshots; may be repeated (default: all)')
    .addOption(new Option('--uses <count>', 'agents that it makes known').argParser(useCount).default(1))
    .addOption(new Option('--valid <duration>', 'how long it can be used: 30m, 12h, 7d').argParser(validMs).default(parseDuration(VALID_DEFAULT)!, VALID_DEFAULT))
    .option('--config <file>', `settings of the server, whose certificate the token names if HTTP has TLS (default: ${DEFAULT_CONFIG_FILE}, if there is one)`)
    .action(action(async (invocation, { cvd, uses, valid, config }: TokenOptions) => {
      const { settings: { home: configured, http, tls } } = requireSettings(config, { home: invocation.homeGiven })
      await using home = await invocation.openHome(configured)
      const { token, hash } = makeToken(http.tls === 'off' ? undefined : tls.certificate)
      const expiresAtMs = Date.now() + valid
      await home.catalog.addAgentToken({ hash, cvds: cvd ?? null, uses, expiresAtMs })
      invocation.note(`good for ${uses === 1 ? 'one agent' : `${uses} agents`} until ${formatTime(expiresAtMs)}; it is printed only now`)
      invocation.result({ token, cvds: cvd ?? null, uses, expiresAt: formatTime(expiresAtMs) }, token)
    }))

  agent.command('list').description('all agents that are or were known').action(action(async (invocation) => {
    await using home = await invocation.openHome()
    const documents = (await home.catalog.agents()).map(agentDocument)
    const rows = documents.map(({ agent: id, name, cvds, createdAt, seenAt, revokedAt }) => [id, name, createdAt, seenAt ?? '-', revokedAt ?? '-', cvds === null ? 'all' : cvds.join(', ')])
    invocation.result(documents, formatTable([['AGENT', 'NAME', 'CREATED', 'SEEN', 'REVOKED', 'CVDS'], ...rows]))
  }))

  agent.command('revoke').argument('<id>').description('refuse an agent from now on; its connections end within seconds').action(action(async (invocation, id: string) => {
    await using home = await invocation.openHome()
    const revoked = await home.catalog.revokeAgent(id)
    invocation.result(agentDocument(revoked), `revoked ${id} (${revoked.name})`)
  }))
}

function agentDocument({ id, name, cvds, createdAtMs, seenAtMs, revokedAtMs }: Agent) {
  const time = (timeMs: number | null) => (timeMs === null ? null : formatTime(timeMs))
  return { agent: id, name, cvds, createdAt: formatTime(createdAtMs), seenAt: time(seenAtMs), revokedAt: time(revokedAtMs) }
}

function useCount(text: string): number {
  const count = Number(text)
  if (!Number.isInteger(count) || count < 1 || count > TOKEN_USES_MAX) throw new InvalidArgumentError(`a whole number from 1 to ${TOKEN_USES_MAX} is wanted.`)
  return count
}

function validMs(text: string): number {
  const valid = parseDuration(text)
  if (valid === undefined || valid < 1 || valid > VALID_MS_MAX) throw new InvalidArgumentError('a duration is wanted: 90s, 30m, 12h, 7d.')
  return valid
}
