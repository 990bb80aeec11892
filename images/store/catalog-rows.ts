/**
 * Rows of the catalog's tables as the records that Catalog hands out, and the queries that several of its methods share.
 */
import type { Kysely, Transaction } from 'kysely'
import type { Digest } from '../chunk/digest.ts'
import { VarveError } from '../errors.ts'
import type { CatalogTables, CvdRow, LayerRow, SnapshotRow } from './catalog-schema.ts'
import type { Cvd, JsonObject, Layer, LayerKind, Snapshot } from './catalog.ts'
import { parseLayerName } from './names.ts'

/** Inside a transaction or not. */
export type Queries = Kysely<CatalogTables> | Transaction<CatalogTables>

export function digestFromHex(hex: string): Digest {
  return new Uint8Array(Buffer.from(hex, 'hex'))
}

export function digestOrNull(hex: string | null): Digest | null {
  return hex === null ? null : digestFromHex(hex)
}

export function layerOf(row: LayerRow): Layer {
  return {
    name: row.name,
    version: row.version,
    kind: row.kind as LayerKind,
    content: row.content as Layer['content'],
    digest: digestFromHex(row.digest),
    map: digestOrNull(row.content === 'block map' ? row.digest : row.map_digest),
    entries: row.entries,
    contentBytes: row.content_bytes,
    createdAtMs: row.created_at_ms,
    source: row.source,
    labels: JSON.parse(row.labels) as Record<string, string>,
  }
}

export async function findLayer(db: Queries, reference: string): Promise<LayerRow> {
  const { name, version } = parseLayerName(reference)
  let query = db.selectFrom('layers').selectAll().where('name', '=', name).orderBy('version', 'desc').limit(1)
  if (version !== undefined) query = query.where('version', '=', version)
  const row = await query.executeTakeFirst()
  if (row === undefined) throw new VarveError('NOT_FOUND', `there is no layer ${reference}`)
  return row
}

/** What is stacked from a layer, in words. */
export async function usersOfLayer(db: Queries, layer: LayerRow): Promise<string | undefined> {
  const cvds = await db
    .selectFrom('cvd_layers')
    .innerJoin('cvds', 'cvds.id', 'cvd_layers.cvd_id')
    .select('cvds.name')
    .distinct()
    .where('layer_name', '=', layer.name)
    .where('layer_version', '=', layer.version)
    .execute()
  const snapshots = await db
    .selectFrom('snapshot_layers')
    .innerJoin('cvds', 'cvds.id', 'snapshot_layers.cvd_id')
    .select(['cvds.name', 'snapshot_name'])
    .distinct()
    .where('layer_name', '=', layer.name)
    .where('layer_version', '=', layer.version)
    .execute()
  const used = [...cvds.map(({ name }) => `CVD ${name}`), ...snapshots.map(({ name, snapshot_name }) => `snapshot ${name}@${snapshot_name}`)]
  return used.length === 0 ? undefined : used.sort().join(', ')
}

export async function stackLayers(db: Queries, cvdId: string, references: readonly string[]): Promise<void> {
  for (let position = 0; position < references.length; position++) {
    const { name, version } = await findLayer(db, references[position])
    await db.insertInto('cvd_layers').values({ cvd_id: cvdId, position, layer_name: name, layer_version: version }).execute()
  }
}

export function cvdRow(db: Queries, name: string): Promise<CvdRow | undefined> {
  return db.selectFrom('cvds').selectAll().where('name', '=', name).executeTakeFirst()
}

export async function findCvd(db: Queries, name: string): Promise<CvdRow> {
  const row = await cvdRow(db, name)
  if (row === undefined) throw new VarveError('NOT_FOUND', `there is no CVD ${JSON.stringify(name)}`)
  return row
}

export async function layersOfCvd(db: Queries, cvdId: string): Promise<Layer[]> {
  const rows = await db
    .selectFrom('cvd_layers')
    .innerJoin('layers', (join) => join.onRef('layers.name', '=', 'cvd_layers.layer_name').onRef('layers.version', '=', 'cvd_layers.layer_version'))
    .selectAll('layers')
    .where('cvd_id', '=', cvdId)
    .orderBy('position')
    .execute()
  return rows.map(layerOf)
}

export async function cvdOf(db: Queries, row: CvdRow): Promise<Cvd> {
  return {
    id: row.id,
    name: row.name,
    policy: JSON.parse(row.policy) as JsonObject,
    layers: await layersOfCvd(db, row.id),
    createdAtMs: row.created_at_ms,
    device: row.device,
    recipe: digestOrNull(row.recipe_digest),
    baseMap: digestOrNull(row.base_map_digest),
    overlay: row.overlay,
  }
}

export function snapshotRow(db: Queries, cvdId: string, name: string): Promise<SnapshotRow | undefined> {
  return db.selectFrom('snapshots').selectAll().where('cvd_id', '=', cvdId).where('name', '=', name).executeTakeFirst()
}

export async function findSnapshot(db: Queries, cvd: CvdRow, name: string): Promise<SnapshotRow> {
  const row = await snapshotRow(db, cvd.id, name)
  if (row === undefined) throw new VarveError('NOT_FOUND', `CVD ${cvd.name} has no snapshot ${JSON.stringify(name)}`)
  return row
}

export async function snapshotOf(db: Queries, cvd: string, row: SnapshotRow): Promise<Snapshot> {
  const layers = await db
    .selectFrom('snapshot_layers')
    .innerJoin('layers', (join) => join.onRef('layers.name', '=', 'snapshot_layers.layer_name').onRef('layers.version', '=', 'snapshot_layers.layer_version'))
    .selectAll('layers')
    .where('cvd_id', '=', row.cvd_id)
    .where('snapshot_name', '=', row.name)
    .orderBy('position')
    .execute()
  return {
    cvd,
    name: row.name,
    createdAtMs: row.created_at_ms,
    layers: layers.map(layerOf),
    recipe: digestFromHex(row.recipe_digest),
    map: digestOrNull(row.map_digest),
    baseMap: digestOrNull(row.base_map_digest),
    overlay: row.overlay,
    generation: row.generation,
  }
}

/** Overlays of a CVD that it or one of its snapshots needs. */
export async function overlaysNeeded(db: Queries, cvdId: string): Promise<Set<number>> {
  const cvd = await db.selectFrom('cvds').select('overlay').where('id', '=', cvdId).execute()
  const snapshots = await db.selectFrom('snapshots').select('overlay').where('cvd_id', '=', cvdId).execute()
  return new Set([...cvd, ...snapshots].map(({ overlay }) => overlay).filter((overlay) => overlay !== null))
}
