/**
 * Catalog: the names. Which layers there are, what each CVD is stacked from and where its writes go, its snapshots, which disks have been
 * composed, and other objects that are to be kept. It holds digests, never content; leases are the store's (lease.ts).
 * Everything else in a home can be rebuilt or imported again; this cannot. Tables: docs/formats/catalog.md
 *
 * Every change is one transaction: when its promise resolves it is durable, and seen by all processes that use the home.
 * Chunks must be committed before a digest of theirs is handed in, and the writer that put them disposed of afterwards, so that collection
 * finds them held at every moment.
 */
import { randomUUID } from 'node:crypto'
import type { Database as Sqlite } from 'better-sqlite3'
import type { Kysely, Transaction } from 'kysely'
import { digestToHex } from '../chunk/digest.ts'
import type { Digest } from '../chunk/digest.ts'
import { VarveError } from '../errors.ts'
import { agentOf, findAgent, insertAgent, insertAgentToken, invalidToken, isSeenNews, isTokenGood, setAgentRevoked } from './catalog-agents.ts'
import type { Agent, AgentTokenInit, Enrolment } from './catalog-agents.ts'
import { openCatalogDatabase, queryBuilder } from './catalog-database.ts'
import type { CatalogTables, CvdRow, LayerRow, SnapshotRow } from './catalog-schema.ts'
import {
  cvdOf,
  cvdRow,
  digestFromHex,
  findCvd,
  findLayer,
  findSnapshot,
  layerOf,
  layersOfCvd,
  overlaysNeeded,
  snapshotOf,
  snapshotRow,
  stackLayers,
  usersOfLayer,
} from './catalog-rows.ts'
import { checkName, formatLayerName, VERSION_MAX } from './names.ts'

export const LAYER_KINDS = ['base', 'driver', 'app', 'identity', 'user-app', 'user'] as const
export type LayerKind = (typeof LAYER_KINDS)[number]

/** What the object that a digest names is: an encoded tree, an encoded block map, or any other byte string. */
export type ObjectType = 'tree' | 'block map' | 'object'

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json }
export type JsonObject = { [key: string]: Json }

export interface LayerInit {
  name: string
  kind: LayerKind
  /** What `digest` names. */
  content: 'tree' | 'block map'
  /** Of the object. */
  digest: Digest
  /** Block map of the disk that it was imported from, if it was one; if it is a disk and no files, this is `digest`. */
  map?: Digest | null
  /** Entries of the tree; 0 for a block map. */
  entries: number
  /** Bytes of all files, or of the disk. */
  contentBytes: number
  /** Where it came from, in words: `dir:/srv/root`. */
  source: string
  labels?: Record<string, string>
}

/** One version of a layer. Never changes; may be removed. */
export interface Layer extends LayerInit {
  /** From 1; a number is not used again after a removal. */
  version: number
  createdAtMs: number
  labels: Record<string, string>
  map: Digest | null
}

/**
 * A CVD's disk is the block map `baseMap` under the overlay stack number `overlay`, which takes the guest's writes.
 * Before its first start it has neither.
 */
export interface Cvd {
  /** Names the directory of its overlays; stays when the name is used for another. */
  id: string
  name: string
  policy: JsonObject
  /** Bottom first. */
  layers: Layer[]
  createdAtMs: number
  /** The device that it is assigned to. */
  device: string | null
  /** The recipe that the base map was composed by, perhaps with snapshots settled into it since. */
  recipe: Digest | null
  baseMap: Digest | null
  /** Number of its overlay stack (device/overlay-stack.ts); one that is stacked anew gets another. */
  overlay: number | null
}

/** A snapshot is frozen (`baseMap` under the stack `overlay` up to `generation`) until it is settled into one block map (`map`). */
export interface Snapshot {
  cvd: string
  name: string
  createdAtMs: number
  /** What the CVD was stacked from. */
  layers: Layer[]
  recipe: Digest
  /** Null while frozen. */
  map: Digest | null
  /** Null once settled, as are the next two. */
  baseMap: Digest | null
  overlay: number | null
  /** The frozen generation of the stack that is the topmost of the snapshot. */
  generation: number | null
}

export interface ComposedMap {
  recipe: Digest
  /** Object of the block map. */
  map: Digest
  /** What the composer tells about it. */
  figures: JsonObject
  createdAtMs: number
}

export interface Root {
  type: ObjectType
  digest: Digest
  /** What stands on it, or the first of them, for people: `layer app@3`, `CVD desk`, `snapshot desk@monday`. */
  holder: string
}

/** A composed map's time of use is brought up to date when it is off by more than this, ms: reading one need not write. */
const USE_NOTED_EACH_MS = 24 * 3600 * 1000

export class Catalog implements AsyncDisposable {
  readonly #sqlite: Sqlite
  #queries: Promise<Kysely<CatalogTables>> | undefined

  private constructor(sqlite: Sqlite) {
    this.#sqlite = sqlite
  }

  /**
   * Opens the catalog, creating the file or bringing it up to date as needed.
   * @throws VarveError HOME_INVALID
   */
  static async open(file: string): Promise<Catalog> {
    return new Catalog(await openCatalogDatabase(file))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#queries === undefined) this.#sqlite.close()
    else await (await this.#queries).destroy()
  }

  /** What SQLite finds wrong with the file, in its words; empty if it is sound. Reads all of it. */
  damage(): string[] {
    const found = [...(this.#sqlite.pragma('integrity_check') as { integrity_check: string }[]).map((row) => row.integrity_check).filter((text) => text !== 'ok')]
    const broken = this.#sqlite.pragma('foreign_key_check') as { table: string; parent: string }[]
    return [...found, ...broken.map(({ table, parent }) => `a row of ${table} refers to one of ${parent} that does not exist`)]
  }

  #db(): Promise<Kysely<CatalogTables>> {
    return (this.#queries ??= queryBuilder(this.#sqlite))
  }

  async #change<T>(action: (db: Transaction<CatalogTables>) => Promise<T>): Promise<T> {
    return (await this.#db()).transaction().execute(action)
  }

  /** Queries that see one moment; waits for nobody. */
  async #look<T>(action: (db: Transaction<CatalogTables>) => Promise<T>): Promise<T> {
    return (await this.#db()).transaction().setAccessMode('read only').execute(action)
  }

  // Layers

  /**
   * Adds the next version of a layer, 1 if there has been none.
   * @throws VarveError NAME_INVALID
   */
  async addLayer(init: LayerInit): Promise<Layer> {
    const [layer] = await this.addLayers([init])
    return layer
  }

  /**
   * Adds several layers, all or none.
   * @throws VarveError NAME_INVALID
   */
  async addLayers(inits: readonly LayerInit[]): Promise<Layer[]> {
    for (const { name } of inits) checkName(name, 'layer')
    return this.#change(async (db) => {
      const layers: Layer[] = []
      for (const init of inits) layers.push(await insertLayer(db, init))
      return layers
    })
  }

  /**
   * @param reference `NAME` for the latest version, or `NAME@N`
   * @throws VarveError NOT_FOUND, NAME_INVALID
   */
  async layer(reference: string): Promise<Layer> {
    return layerOf(await findLayer(await this.#db(), reference))
  }

  /** All versions, or those of one name, by name and version. */
  async layers(name?: string): Promise<Layer[]> {
    let query = (await this.#db()).selectFrom('layers').selectAll().orderBy('name').orderBy('version')
    if (name !== undefined) query = query.where('name', '=', name)
    return (await query.execute()).map(layerOf)
  }

  /**
   * Removes one version.
   * @returns the version removed
   * @throws VarveError NOT_FOUND; IN_USE if a CVD or a snapshot is stacked from it
   */
  async removeLayer(reference: string): Promise<Layer> {
    return this.#change(async (db) => {
      const row = await findLayer(db, reference)
      const used = await usersOfLayer(db, row)
      if (used !== undefined) throw new VarveError('IN_USE', `layer ${formatLayerName(row)} is part of ${used}`)
      await db.deleteFrom('layers').where('name', '=', row.name).where('version', '=', row.version).execute()
      return layerOf(row)
    })
  }

  // CVDs

  /**
   * @param layers bottom first, `NAME` (the version that is the latest now) or `NAME@N`
   * @throws VarveError NAME_INVALID, ALREADY_EXISTS, NOT_FOUND
   */
  async createCvd(init: { name: string; layers: readonly string[]; policy?: JsonObject }): Promise<Cvd> {
    checkName(init.name, 'CVD')
    return this.#change(async (db) => {
      if ((await cvdRow(db, init.name)) !== undefined) throw new VarveError('ALREADY_EXISTS', `there is a CVD ${init.name} already`)
      const id = randomUUID()
      const row: CvdRow = {
        id,
        name: init.name,
        policy: JSON.stringify(init.policy ?? {}),
        created_at_ms: Date.now(),
        device: null,
        recipe_digest: null,
        base_map_digest: null,
        overlay: null,
        last_overlay: 0,
      }
      await db.insertInto('cvds').values(row).execute()
      await stackLayers(db, id, init.layers)
      return cvdOf(db, row)
    })
  }

  /** @throws VarveError NOT_FOUND */
  async cvd(name: string): Promise<Cvd> {
    return this.#look(async (db) => cvdOf(db, await findCvd(db, name)))
  }

  /** All, by name. */
  async cvds(): Promise<Cvd[]> {
    return this.#look(async (db) => {
      const rows = await db.selectFrom('cvds').selectAll().orderBy('name').execute()
      return Promise.all(rows.map((row) => cvdOf(db, row)))
    })
  }

  /**
   * Stacks a CVD anew. Its next start composes a new base, which what was written over the old one does not fit.
   * @param options.policy instead of the present one
   * @param options.discardWrites agrees to lose what has been written since the last snapshot
   * @throws VarveError NOT_FOUND; IN_USE if it has overlays, the stack changes, and `discardWrites` is not set
   */
  async setCvdLayers(name: string, layers: readonly string[], options: { policy?: JsonObject; discardWrites?: boolean } = {}): Promise<Cvd> {
    return this.#change(async (db) => {
      const row = await findCvd(db, name)
      const before = await layersOfCvd(db, row.id)
      await db.deleteFrom('cvd_layers').where('cvd_id', '=', row.id).execute()
      await stackLayers(db, row.id, layers)
      const after = await layersOfCvd(db, row.id)
      const policy = options.policy === undefined ? row.policy : JSON.stringify(options.policy)
      const same = policy === row.policy && before.map(formatLayerName).join() === after.map(formatLayerName).join()
      if (same) return cvdOf(db, row)
      if (row.base_map_digest !== null && options.discardWrites !== true) {
        throw new VarveError('IN_USE', `CVD ${name} has an overlay that fits its present layers only; changing them discards what was written since the last snapshot; take one, then say --discard-writes`)
      }
      const changed = { policy, recipe_digest: null, base_map_digest: null, overlay: null }
      await db.updateTable('cvds').set(changed).where('id', '=', row.id).execute()
      return cvdOf(db, { ...row, ...changed })
    })
  }

  /**
   * Gives a CVD that has none a base and an overlay; one that has a base keeps it.
   * @returns the CVD as it is now; the caller opens its overlay on its base, not what it meant to start
   * @throws VarveError NOT_FOUND
   */
  async startCvd(name: string, base: { recipe: Digest; map: Digest }): Promise<Cvd> {
    return this.#change(async (db) => {
      const row = await findCvd(db, name)
      if (row.base_map_digest !== null) return cvdOf(db, row)
      const overlay = row.last_overlay + 1
      const changed = { recipe_digest: digestToHex(base.recipe), base_map_digest: digestToHex(base.map), overlay, last_overlay: overlay }
      await db.updateTable('cvds').set(changed).where('id', '=', row.id).execute()
      return cvdOf(db, { ...row, ...changed })
    })
  }

  /**
   * Removes a CVD with its snapshots. The caller removes its overlay directory afterwards.
   * @param options.snapshots agrees to lose the snapshots
   * @throws VarveError NOT_FOUND; IN_USE if it has snapshots and that is not agreed to
   */
  async removeCvd(name: string, options: { snapshots?: boolean } = {}): Promise<Cvd> {
    return this.#change(async (db) => {
      const row = await findCvd(db, name)
      const cvd = await cvdOf(db, row)
      const snapshots = await db.selectFrom('snapshots').select('name').where('cvd_id', '=', row.id).execute()
      if (snapshots.length > 0 && options.snapshots !== true) throw new VarveError('IN_USE', `CVD ${name} has snapshots: ${snapshots.map((snapshot) => snapshot.name).join(', ')}`)
      await db.deleteFrom('cvds').where('id', '=', row.id).execute()
      return cvd
    })
  }

  // Snapshots

  /**
   * Gives a name to what the overlay of a CVD has frozen (OverlayStack.snapshot), which its owner has just done.
   * @param init.generation what is frozen
   * @throws VarveError NAME_INVALID, NOT_FOUND, ALREADY_EXISTS; RangeError if the CVD has not been started (startCvd)
   */
  async addSnapshot(init: { cvd: string; name: string; generation: number }): Promise<Snapshot> {
    checkName(init.name, 'snapshot')
    return this.#change(async (db) => {
      const row = await findCvd(db, init.cvd)
      if (row.base_map_digest === null || row.recipe_digest === null) throw new RangeError(`CVD ${init.cvd} has not been started`)
      if ((await snapshotRow(db, row.id, init.name)) !== undefined) throw new VarveError('ALREADY_EXISTS', `CVD ${init.cvd} has a snapshot ${init.name} already`)
      const snapshot: SnapshotRow = {
        cvd_id: row.id,
        name: init.name,
        created_at_ms: Date.now(),
        recipe_digest: row.recipe_digest,
        map_digest: null,
        base_map_digest: row.base_map_digest,
        overlay: row.overlay,
        generation: init.generation,
      }
      await db.insertInto('snapshots').values(snapshot).execute()
      const layers = await db.selectFrom('cvd_layers').select(['position', 'layer_name', 'layer_version']).where('cvd_id', '=', row.id).execute()
      if (layers.length > 0) await db.insertInto('snapshot_layers').values(layers.map((layer) => ({ cvd_id: row.id, snapshot_name: init.name, ...layer }))).execute()
      return snapshotOf(db, init.cvd, snapshot)
    })
  }

  /**
   * Records that the base of a CVD and the lowest generation of its overlay have become one block map. The CVD, and the snapshots of later
   * generations, stand on the map from now on; snapshots of this one are settled.
   * @param change.generation no lower one is frozen any more
   * @param change.map what the base shows under that generation
   * @throws VarveError NOT_FOUND
   */
  async settle(cvd: string, change: { overlay: number; generation: number; map: Digest }): Promise<void> {
    const mapDigest = digestToHex(change.map)
    await this.#change(async (db) => {
      const row = await findCvd(db, cvd)
      const ofStack = db.updateTable('snapshots').where('cvd_id', '=', row.id).where('overlay', '=', change.overlay)
      await ofStack.where('generation', '>', change.generation).set({ base_map_digest: mapDigest }).execute()
      await ofStack.where('generation', '=', change.generation).set({ map_digest: mapDigest, base_map_digest: null, overlay: null, generation: null }).execute()
      await db.updateTable('cvds').set({ base_map_digest: mapDigest }).where('id', '=', row.id).where('overlay', '=', change.overlay).execute()
    })
  }

  /**
   * @param name `snapshot` of the CVD
   * @throws VarveError NOT_FOUND
   */
  async snapshot(cvd: string, name: string): Promise<Snapshot> {
    return this.#look(async (db) => snapshotOf(db, cvd, await findSnapshot(db, await findCvd(db, cvd), name)))
  }

  /** Of one CVD, oldest first. @throws VarveError NOT_FOUND */
  async snapshots(cvd: string): Promise<Snapshot[]> {
    return this.#look(async (db) => {
      const { id } = await findCvd(db, cvd)
      const rows = await db.selectFrom('snapshots').selectAll().where('cvd_id', '=', id).orderBy('created_at_ms').orderBy('name').execute()
      return Promise.all(rows.map((row) => snapshotOf(db, cvd, row)))
    })
  }

  /** What it holds of its CVD's overlay goes with the next settling, what it holds of chunks with the next collection. @throws VarveError NOT_FOUND */
  async removeSnapshot(cvd: string, name: string): Promise<void> {
    await this.#change(async (db) => {
      const row = await findCvd(db, cvd)
      await findSnapshot(db, row, name)
      await db.deleteFrom('snapshots').where('cvd_id', '=', row.id).where('name', '=', name).execute()
    })
  }

  /** Every overlay that a CVD or one of its snapshots needs, by the CVD's id. Directories of others are left over. */
  async overlays(): Promise<Map<string, Set<number>>> {
    return this.#look(async (db) => {
      const needed = new Map<string, Set<number>>()
      for (const { id } of await db.selectFrom('cvds').select('id').execute()) needed.set(id, await overlaysNeeded(db, id))
      return needed
    })
  }

  // Composed maps: a cache. What a CVD or a snapshot stands on is kept by them.

  /** The disk that was composed by this recipe, if it is remembered. */
  async composedMap(recipe: Digest): Promise<ComposedMap | undefined> {
    const db = await this.#db()
    const key = digestToHex(recipe)
    const row = await db.selectFrom('composed_maps').selectAll().where('recipe_digest', '=', key).executeTakeFirst()
    if (row === undefined) return undefined
    if (Date.now() - row.used_at_ms > USE_NOTED_EACH_MS) {
      await this.#change((transaction) => transaction.updateTable('composed_maps').set({ used_at_ms: Date.now() }).where('recipe_digest', '=', key).execute())
    }
    return { recipe, map: digestFromHex(row.map_digest), figures: JSON.parse(row.figures) as JsonObject, createdAtMs: row.created_at_ms }
  }

  /**
   * Remembers a composed disk. The first to do so wins: the same recipe gives the same map.
   * @param composed.layers digests of the layers that the recipe names
   */
  async rememberComposedMap(composed: { recipe: Digest; map: Digest; layers: readonly Digest[]; figures: JsonObject }): Promise<void> {
    const now = Date.now()
    const values = {
      recipe_digest: digestToHex(composed.recipe),
      map_digest: digestToHex(composed.map),
      layer_digests: JSON.stringify(composed.layers.map(digestToHex)),
      figures: JSON.stringify(composed.figures),
      created_at_ms: now,
      used_at_ms: now,
    }
    await this.#change((db) => db.insertInto('composed_maps').values(values).onConflict((conflict) => conflict.column('recipe_digest').doNothing()).execute())
  }

  /**
   * Forgets composed disks of layers that are gone, and those not used for so long, so that collection can take what only they held.
   * @param options.unusedMs default: only those whose layers are gone
   * @returns how many
   */
  async forgetComposedMaps(options: { unusedMs?: number } = {}): Promise<number> {
    const { unusedMs = Number.POSITIVE_INFINITY } = options
    return this.#change(async (db) => {
      const layers = new Set((await db.selectFrom('layers').select('digest').execute()).map((row) => row.digest))
      const rows = await db.selectFrom('composed_maps').select(['recipe_digest', 'layer_digests', 'used_at_ms']).execute()
      const stale = rows.filter((row) => Date.now() - row.used_at_ms >= unusedMs || !(JSON.parse(row.layer_digests) as string[]).every((digest) => layers.has(digest)))
      for (const row of stale) await db.deleteFrom('composed_maps').where('recipe_digest', '=', row.recipe_digest).execute()
      return stale.length
    })
  }

  /** Forgets composed disks and other objects with this digest: they can be made again, and are not whole. @returns how many */
  async forgetObjects(digest: Digest): Promise<number> {
    const hex = digestToHex(digest)
    return this.#change(async (db) => {
      const maps = await db.deleteFrom('composed_maps').where('map_digest', '=', hex).executeTakeFirst()
      const objects = await db.deleteFrom('objects').where('digest', '=', hex).executeTakeFirst()
      return Number(maps.numDeletedRows + objects.numDeletedRows)
    })
  }

  /**
   * What a disk was stacked from: that of a CVD, of a snapshot, or one that was composed.
   * @param map of the disk
   * @returns undefined if nobody knows; the CVD only if the disk is one CVD's alone
   */
  async stackOfMap(map: Digest): Promise<{ cvd: Cvd | undefined; layers: Layer[] } | undefined> {
    const hex = digestToHex(map)
    return this.#look(async (db) => {
      const cvds = await db.selectFrom('cvds').selectAll().where('base_map_digest', '=', hex).execute()
      const snapshots = await db.selectFrom('snapshots').selectAll().where((where) => where.or([where('map_digest', '=', hex), where('base_map_digest', '=', hex)])).execute()
      const owners = new Set([...cvds.map(({ id }) => id), ...snapshots.map(({ cvd_id: id }) => id)])
      const ownerRow = owners.size === 1 ? await db.selectFrom('cvds').selectAll().where('id', '=', [...owners][0]).executeTakeFirst() : undefined
      const cvd = ownerRow === undefined ? undefined : await cvdOf(db, ownerRow)
      if (cvds.length > 0) return { cvd, layers: await layersOfCvd(db, cvds[0].id) }
      if (snapshots.length > 0) return { cvd, layers: (await snapshotOf(db, cvd?.name ?? '', snapshots[0])).layers }
      const composed = await db.selectFrom('composed_maps').select('layer_digests').where('map_digest', '=', hex).executeTakeFirst()
      if (composed === undefined) return undefined
      const layers: Layer[] = []
      for (const digest of JSON.parse(composed.layer_digests) as string[]) {
        const row = await db.selectFrom('layers').selectAll().where('digest', '=', digest).orderBy('name').orderBy('version', 'desc').executeTakeFirst()
        if (row !== undefined) layers.push(layerOf(row))
      }
      return { cvd: undefined, layers }
    })
  }

  // Other objects that are to be kept, by kind and key: boot kits, boot sets, heat

  /** Keeps an object under a key, instead of the one that is there. */
  async setObject(kind: string, key: string, digest: Digest): Promise<void> {
    const values = { kind, key, digest: digestToHex(digest), created_at_ms: Date.now() }
    await this.#change((db) => db.insertInto('objects').values(values).onConflict((conflict) => conflict.columns(['kind', 'key']).doUpdateSet(values)).execute())
  }

  /**
   * Keeps an object under a key, if what was read there before is there still.
   * @param change.before undefined: there was none
   * @returns false if somebody else was faster, and nothing was changed
   */
  async replaceObject(kind: string, key: string, change: { before: Digest | undefined; digest: Digest }): Promise<boolean> {
    const values = { kind, key, digest: digestToHex(change.digest), created_at_ms: Date.now() }
    return this.#change(async (db) => {
      const row = await db.selectFrom('objects').select('digest').where('kind', '=', kind).where('key', '=', key).executeTakeFirst()
      if (row?.digest !== (change.before === undefined ? undefined : digestToHex(change.before))) return false
      await db.insertInto('objects').values(values).onConflict((conflict) => conflict.columns(['kind', 'key']).doUpdateSet(values)).execute()
      return true
    })
  }

  /** Objects of a kind, by key. */
  async objects(kind: string): Promise<{ key: string; digest: Digest; createdAtMs: number }[]> {
    const rows = await (await this.#db()).selectFrom('objects').selectAll().where('kind', '=', kind).orderBy('key').execute()
    return rows.map((row) => ({ key: row.key, digest: digestFromHex(row.digest), createdAtMs: row.created_at_ms }))
  }

  /** Keeps the object under this key no longer. */
  async removeObject(kind: string, key: string): Promise<void> {
    await this.#change((db) => db.deleteFrom('objects').where('kind', '=', kind).where('key', '=', key).execute())
  }

  /** Digest of the object, if there is one. */
  async object(kind: string, key: string): Promise<Digest | undefined> {
    const row = await (await this.#db()).selectFrom('objects').select('digest').where('kind', '=', kind).where('key', '=', key).executeTakeFirst()
    return row === undefined ? undefined : digestFromHex(row.digest)
  }

  // Agents

  /** @throws VarveError NOT_FOUND if it names a CVD that does not exist */
  async addAgentToken(init: AgentTokenInit): Promise<void> {
    await this.#change((db) => insertAgentToken(db, init))
  }

  /**
   * Makes an agent known by its key, and uses the token up that allows it: of two that ask at once with a token that is good once, one is known.
   * @throws VarveError TOKEN_INVALID, NAME_INVALID, ALREADY_EXISTS
   */
  async enrolAgent(enrolment: Enrolment): Promise<Agent> {
    // A guess costs no write.
    if (!(await isTokenGood(await this.#db(), enrolment.tokenHash))) throw invalidToken()
    return this.#change((db) => insertAgent(db, enrolment))
  }

  /** @throws VarveError NOT_FOUND */
  async agent(id: string): Promise<Agent> {
    return findAgent(await this.#db(), id)
  }

  /** All, the revoked included, by the time at which they became known. */
  async agents(): Promise<Agent[]> {
    return (await (await this.#db()).selectFrom('agents').selectAll().orderBy('created_at_ms').orderBy('id').execute()).map(agentOf)
  }

  /** Its key is refused from now on. @throws VarveError NOT_FOUND */
  async revokeAgent(id: string): Promise<Agent> {
    return this.#change((db) => setAgentRevoked(db, id))
  }

  /** Notes that an agent is there. */
  async noteAgent(agent: Agent): Promise<void> {
    if (isSeenNews(agent)) await this.#change((db) => db.updateTable('agents').set({ seen_at_ms: Date.now() }).where('id', '=', agent.id).execute())
  }

  /** The agent that streams a CVD is the device that it is assigned to. @throws VarveError NOT_FOUND */
  async assignCvd(name: string, device: string | null): Promise<void> {
    await this.#change(async (db) => {
      const row = await findCvd(db, name)
      if (row.device !== device) await db.updateTable('cvds').set({ device }).where('id', '=', row.id).execute()
    })
  }

  /**
   * Every object that collection must keep, each once: of layers, of what CVDs and snapshots stand on, of composed disks, and others.
   * One moment's view: collection must have noted the leases of writers before it asks.
   */
  async roots(): Promise<Root[]> {
    const found = await this.#change(async (db) => {
      const layers = await db.selectFrom('layers').select(['name', 'version', 'content', 'digest', 'map_digest']).execute()
      const cvds = await db.selectFrom('cvds').select(['name', 'base_map_digest']).execute()
      const snapshots = await db.selectFrom('snapshots').innerJoin('cvds', 'cvds.id', 'snapshots.cvd_id').select(['cvds.name as cvd', 'snapshots.name', 'snapshots.map_digest', 'snapshots.base_map_digest']).execute()
      const composed = await db.selectFrom('composed_maps').select(['recipe_digest', 'map_digest']).execute()
      const objects = await db.selectFrom('objects').select(['kind', 'key', 'digest']).execute()
      return [
        ...layers.map((layer) => ({ type: layer.content as ObjectType, digest: layer.digest, holder: `layer ${formatLayerName(layer)}` })),
        ...layers.map((layer) => ({ type: 'block map' as const, digest: layer.map_digest, holder: `disk of layer ${formatLayerName(layer)}` })),
        ...cvds.map(({ name, base_map_digest: digest }) => ({ type: 'block map' as const, digest, holder: `CVD ${name}` })),
        ...snapshots.map(({ cvd, name, map_digest, base_map_digest }) => ({ type: 'block map' as const, digest: map_digest ?? base_map_digest, holder: `snapshot ${cvd}@${name}` })),
        ...composed.map(({ recipe_digest, map_digest: digest }) => ({ type: 'block map' as const, digest, holder: `composed disk ${recipe_digest}` })),
        ...objects.map(({ kind, key, digest }) => ({ type: 'object' as const, digest, holder: `${kind} ${key}` })),
      ]
    })
    const roots = new Map<string, Root>()
    for (const { type, digest, holder } of found) {
      if (digest !== null && !roots.has(`${type} ${digest}`)) roots.set(`${type} ${digest}`, { type, digest: digestFromHex(digest), holder })
    }
    return [...roots.values()]
  }
}

async function insertLayer(db: Transaction<CatalogTables>, init: LayerInit): Promise<Layer> {
  const { last_version: version } = await db
    .insertInto('layer_names')
    .values({ name: init.name, last_version: 1 })
    .onConflict((conflict) => conflict.column('name').doUpdateSet((columns) => ({ last_version: columns('layer_names.last_version', '+', 1) })))
    .returning('last_version')
    .executeTakeFirstOrThrow()
  if (version > VERSION_MAX) throw new VarveError('LIMIT_EXCEEDED', `layer ${init.name} has had ${VERSION_MAX} versions`)
  const row: LayerRow = {
    name: init.name,
    version,
    kind: init.kind,
    content: init.content,
    digest: digestToHex(init.digest),
    map_digest: init.map === undefined || init.map === null ? null : digestToHex(init.map),
    entries: init.entries,
    content_bytes: init.contentBytes,
    created_at_ms: Date.now(),
    source: init.source,
    labels: JSON.stringify(init.labels ?? {}),
  }
  await db.insertInto('layers').values(row).execute()
  return layerOf(row)
}
