/**
 * Agents in the catalog: endpoints that are known by their key, and the tokens that make one known. What a token is to its holder: tools/streaming/agent-token.ts
 */
import { randomUUID } from 'node:crypto'
import type { Transaction } from 'kysely'
import { VarveError } from '../errors.ts'
import type { AgentRow, CatalogTables } from './catalog-schema.ts'
import type { Queries } from './catalog-rows.ts'
import { checkName } from './names.ts'

/** Bytes of a public key of Ed25519, raw. */
export const AGENT_KEY_BYTES = 32
/** Agents that one token can make known. */
export const TOKEN_USES_MAX = 1_000_000

/** An endpoint. One that was revoked stays, so that its key is not made known again. */
export interface Agent {
  id: string
  /** What it calls itself, for people; several may have the same. */
  name: string
  /** Ed25519, raw. */
  publicKey: Uint8Array
  /** CVDs that it may open, snapshots of theirs included; null: all. */
  cvds: string[] | null
  createdAtMs: number
  /** When it last connected, to the minute; null: never. */
  seenAtMs: number | null
  revokedAtMs: number | null
}

export interface AgentTokenInit {
  /** SHA-256 of the secret, hexadecimal: who reads the catalog cannot use its tokens. */
  hash: string
  /** What agents of this token may open; null: all. */
  cvds: readonly string[] | null
  uses: number
  expiresAtMs: number
}

export interface Enrolment {
  /** Of the token's secret, as in AgentTokenInit. */
  tokenHash: string
  publicKey: Uint8Array
  name: string
}

/** When an agent was last seen is written down when it is off by more than this, ms. */
const SEEN_NOTED_EACH_MS = 60_000

export async function insertAgentToken(db: Transaction<CatalogTables>, { hash, cvds, uses, expiresAtMs }: AgentTokenInit): Promise<void> {
  // Tokens that are of no use to anybody any more go when one is made.
  await db.deleteFrom('agent_tokens').where('expires_at_ms', '<=', Date.now()).execute()
  const known = new Set((await db.selectFrom('cvds').select('name').execute()).map(({ name }) => name))
  for (const cvd of cvds ?? []) if (!known.has(cvd)) throw new VarveError('NOT_FOUND', `there is no CVD ${JSON.stringify(cvd)}`)
  await db.insertInto('agent_tokens').values({ hash, cvds: cvds === null ? null : JSON.stringify(cvds), uses_left: uses, created_at_ms: Date.now(), expires_at_ms: expiresAtMs }).execute()
}

/** What a look at the catalog says; it may be otherwise when the right to write has been had. */
export async function isTokenGood(db: Queries, hash: string): Promise<boolean> {
  return (await db.selectFrom('agent_tokens').select('hash').where('hash', '=', hash).where('expires_at_ms', '>', Date.now()).executeTakeFirst()) !== undefined
}

/** Whoever asks again with the same token and key, since the answer was lost, gets the same answer and uses nothing. */
export async function insertAgent(db: Transaction<CatalogTables>, { tokenHash, publicKey, name }: Enrolment): Promise<Agent> {
  checkName(name, 'agent')
  const key = Buffer.from(publicKey).toString('hex')
  const known = await db.selectFrom('agents').selectAll().where('public_key', '=', key).executeTakeFirst()
  if (known !== undefined && known.token_hash === tokenHash && known.revoked_at_ms === null) return agentOf(known)
  const token = await db.selectFrom('agent_tokens').selectAll().where('hash', '=', tokenHash).executeTakeFirst()
  if (token === undefined || token.uses_left < 1 || token.expires_at_ms <= Date.now()) throw invalidToken()
  if (known !== undefined) throw new VarveError('ALREADY_EXISTS', `an agent with this key is known already, as ${known.id}`)
  await db.updateTable('agent_tokens').set({ uses_left: token.uses_left - 1 }).where('hash', '=', tokenHash).execute()
  const row: AgentRow = { id: randomUUID(), name, public_key: key, cvds: token.cvds, token_hash: tokenHash, created_at_ms: Date.now(), seen_at_ms: null, revoked_at_ms: null }
  await db.insertInto('agents').values(row).execute()
  return agentOf(row)
}

export function invalidToken(): VarveError {
  return new VarveError('TOKEN_INVALID', 'the token is not known here, has been used, or has expired; varve agent token makes another')
}

export async function findAgent(db: Queries, id: string): Promise<Agent> {
  const row = await db.selectFrom('agents').selectAll().where('id', '=', id).executeTakeFirst()
  if (row === undefined) throw new VarveError('NOT_FOUND', `there is no agent ${JSON.stringify(id)}`)
  return agentOf(row)
}

export async function setAgentRevoked(db: Transaction<CatalogTables>, id: string): Promise<Agent> {
  const agent = await findAgent(db, id)
  if (agent.revokedAtMs !== null) return agent
  const revokedAtMs = Date.now()
  await db.updateTable('agents').set({ revoked_at_ms: revokedAtMs }).where('id', '=', id).execute()
  return { ...agent, revokedAtMs }
}

/** True if the time that is known of is not the present. */
export function isSeenNews({ seenAtMs }: Agent): boolean {
  return seenAtMs === null || Math.abs(Date.now() - seenAtMs) > SEEN_NOTED_EACH_MS
}

export function agentOf(row: AgentRow): Agent {
  return {
    id: row.id,
    name: row.name,
    publicKey: new Uint8Array(Buffer.from(row.public_key, 'hex')),
    cvds: row.cvds === null ? null : JSON.parse(row.cvds) as string[],
    createdAtMs: row.created_at_ms,
    seenAtMs: row.seen_at_ms,
    revokedAtMs: row.revoked_at_ms,
  }
}
