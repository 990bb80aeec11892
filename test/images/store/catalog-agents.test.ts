/**
 * Agents and tokens in the catalog: one-time means once, whoever asks at the same time.
 */
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import Database from 'better-sqlite3'
import { digestOf } from '@varve/images/chunk/digest.ts'
import { isVarveError } from '@varve/images/errors.ts'
import { Catalog } from '@varve/images/store/catalog.ts'
import { CATALOG_VERSION } from '@varve/images/store/migrations.ts'
import { TemporaryDirectory } from './temporary-directory.ts'

const HOUR_MS = 3_600_000
const hashOf = (text: string) => createHash('sha256').update(text).digest('hex')
const token = (text: string, more: { cvds?: string[]; uses?: number; expiresAtMs?: number } = {}) => ({ hash: hashOf(text), cvds: null, uses: 1, expiresAtMs: Date.now() + HOUR_MS, ...more })
const enrolment = (text: string, publicKey: Uint8Array = randomBytes(32)) => ({ tokenHash: hashOf(text), publicKey, name: 'front-desk' })

describe('agents', () => {
  test('a token makes as many agents known as it says, and none when it has expired or is not known', async () => {
    using directory = new TemporaryDirectory()
    await using catalog = await Catalog.open(join(directory.path, 'catalog.db'))
    await catalog.addLayer({ name: 'base', kind: 'base', content: 'tree', digest: digestOf(Buffer.from('base')), entries: 0, contentBytes: 0, source: 'dir:/' })
    await catalog.createCvd({ name: 'desk', layers: ['base'] })
    await catalog.addAgentToken(token('two', { uses: 2, cvds: ['desk'] }))
    const key = randomBytes(32)
    const agent = await catalog.enrolAgent(enrolment('two', key))
    assert.deepEqual([agent.name, agent.cvds, agent.seenAtMs, agent.revokedAtMs, Buffer.compare(agent.publicKey, key)], ['front-desk', ['desk'], null, null, 0])
    assert.deepEqual(await catalog.agent(agent.id), agent)
    // The answer was lost: the same again, which uses nothing.
    assert.deepEqual(await catalog.enrolAgent(enrolment('two', key)), agent)
    const second = await catalog.enrolAgent(enrolment('two'))
    assert.deepEqual(await catalog.enrolAgent(enrolment('two', key)), agent)
    await assert.rejects(catalog.enrolAgent(enrolment('two')), { code: 'TOKEN_INVALID' })
    await assert.rejects(catalog.enrolAgent(enrolment('unknown')), { code: 'TOKEN_INVALID' })
    await catalog.addAgentToken(token('late', { expiresAtMs: Date.now() }))
    await assert.rejects(catalog.enrolAgent(enrolment('late')), { code: 'TOKEN_INVALID' })
    await catalog.addAgentToken(token('other'))
    await assert.rejects(catalog.enrolAgent(enrolment('other', key)), { code: 'ALREADY_EXISTS' })
    await assert.rejects(catalog.enrolAgent({ ...enrolment('other'), name: '../x' }), { code: 'NAME_INVALID' })
    assert.equal((await catalog.enrolAgent(enrolment('other'))).cvds, null)
    await assert.rejects(catalog.addAgentToken(token('nowhere', { cvds: ['nowhere'] })), { code: 'NOT_FOUND' })
    assert.deepEqual((await catalog.agents()).slice(0, 2).map(({ id }) => id).sort(), [agent.id, second.id].sort())
  })

  test('an agent that was revoked stays so, with its key', async () => {
    using directory = new TemporaryDirectory()
    await using catalog = await Catalog.open(join(directory.path, 'catalog.db'))
    await catalog.addAgentToken(token('many', { uses: 10 }))
    const key = randomBytes(32)
    const { id } = await catalog.enrolAgent(enrolment('many', key))
    const { revokedAtMs } = await catalog.revokeAgent(id)
    assert.ok(revokedAtMs !== null)
    assert.equal((await catalog.revokeAgent(id)).revokedAtMs, revokedAtMs)
    assert.equal((await catalog.agent(id)).revokedAtMs, revokedAtMs)
    await assert.rejects(catalog.enrolAgent(enrolment('many', key)), { code: 'ALREADY_EXISTS' })
    await assert.rejects(catalog.revokeAgent('nobody'), { code: 'NOT_FOUND' })
  })

  test('when an agent was last seen is written once a minute', async () => {
    using directory = new TemporaryDirectory()
    await using catalog = await Catalog.open(join(directory.path, 'catalog.db'))
    await catalog.addAgentToken(token('one'))
    const agent = await catalog.enrolAgent(enrolment('one'))
    await catalog.noteAgent(agent)
    const seen = await catalog.agent(agent.id)
    assert.ok(seen.seenAtMs !== null)
    await catalog.noteAgent(seen)
    assert.deepEqual(await catalog.agent(agent.id), seen)
    await catalog.noteAgent({ ...seen, seenAtMs: seen.seenAtMs - HOUR_MS })
    assert.ok((await catalog.agent(agent.id)).seenAtMs! >= seen.seenAtMs)
  })

  test('of many that use one token at the same time, over several connections to the catalog, one is known', async () => {
    using directory = new TemporaryDirectory()
    const file = join(directory.path, 'catalog.db')
    await using first = await Catalog.open(file)
    await using second = await Catalog.open(file)
    await using third = await Catalog.open(file)
    for (let round = 0; round < 5; round++) {
      await first.addAgentToken(token(`once ${round}`))
      const results = await Promise.allSettled(Array.from({ length: 12 }, (_, index) => [first, second, third][index % 3].enrolAgent(enrolment(`once ${round}`))))
      const refused = results.flatMap((result) => result.status === 'rejected' ? [result.reason as unknown] : [])
      assert.equal(refused.length, 11)
      for (const reason of refused) assert.ok(isVarveError(reason, 'TOKEN_INVALID'), String(reason))
    }
    assert.equal((await first.agents()).length, 5)
  })

  test('a catalog that was made before there were agents gets their tables, and keeps what it has', async () => {
    using directory = new TemporaryDirectory()
    const file = join(directory.path, 'catalog.db')
    {
      await using catalog = await Catalog.open(file)
      await catalog.addLayer({ name: 'base', kind: 'base', content: 'tree', digest: digestOf(Buffer.from('base')), entries: 0, contentBytes: 0, source: 'dir:/' })
    }
    const database = new Database(file)
    database.exec("DROP TABLE agents; DROP TABLE agent_tokens; ALTER TABLE layers DROP COLUMN map_digest; DELETE FROM kysely_migration WHERE name > '0001-layers-cvds-snapshots'")
    database.pragma('user_version = 1')
    await using catalog = await Catalog.open(file)
    assert.deepEqual(await catalog.agents(), [])
    assert.equal((await catalog.layers()).length, 1)
    assert.equal(database.pragma('user_version', { simple: true }), CATALOG_VERSION)
    database.close()
  })
})
