/**
 * Migrations of the catalog, oldest first. One that has been in a release is never changed: a new one follows.
 * Only what SQLite and PostgreSQL both have: types text, integer, bigint; digests in hexadecimal, lists and policies as JSON text,
 * times in milliseconds since 1970.
 */
import type { Kysely } from 'kysely'
import type { Migration } from 'kysely/migration'

/** Names sort in the order in which they are applied. */
export const CATALOG_MIGRATIONS: Record<string, Migration> = {
  '0001-layers-cvds-snapshots': { up: layersCvdsSnapshots },
  '0002-agents': { up: agents },
  '0003-disks-of-layers': { up: disksOfLayers },
}

/** What PRAGMA user_version is when all are applied. */
export const CATALOG_VERSION = Object.keys(CATALOG_MIGRATIONS).length

async function layersCvdsSnapshots(db: Kysely<unknown>): Promise<void> {
  const schema = db.schema
  await schema
    .createTable('layer_names')
    .addColumn('name', 'text', (column) => column.primaryKey())
    .addColumn('last_version', 'integer', (column) => column.notNull())
    .execute()
  await schema
    .createTable('layers')
    .addColumn('name', 'text', (column) => column.notNull().references('layer_names.name'))
    .addColumn('version', 'integer', (column) => column.notNull())
    .addColumn('kind', 'text', (column) => column.notNull())
    .addColumn('content', 'text', (column) => column.notNull())
    .addColumn('digest', 'text', (column) => column.notNull())
    .addColumn('entries', 'bigint', (column) => column.notNull())
    .addColumn('content_bytes', 'bigint', (column) => column.notNull())
    .addColumn('created_at_ms', 'bigint', (column) => column.notNull())
    .addColumn('source', 'text', (column) => column.notNull())
    .addColumn('labels', 'text', (column) => column.notNull())
    .addPrimaryKeyConstraint('layers_key', ['name', 'version'])
    .execute()
  await schema
    .createTable('cvds')
    .addColumn('id', 'text', (column) => column.primaryKey())
    .addColumn('name', 'text', (column) => column.notNull().unique())
    .addColumn('policy', 'text', (column) => column.notNull())
    .addColumn('created_at_ms', 'bigint', (column) => column.notNull())
    .addColumn('device', 'text')
    .addColumn('recipe_digest', 'text')
    .addColumn('base_map_digest', 'text')
    .addColumn('overlay', 'integer')
    .addColumn('last_overlay', 'integer', (column) => column.notNull())
    .execute()
  await schema
    .createTable('cvd_layers')
    .addColumn('cvd_id', 'text', (column) => column.notNull().references('cvds.id').onDelete('cascade'))
    .addColumn('position', 'integer', (column) => column.notNull())
    .addColumn('layer_name', 'text', (column) => column.notNull())
    .addColumn('layer_version', 'integer', (column) => column.notNull())
    .addPrimaryKeyConstraint('cvd_layers_key', ['cvd_id', 'position'])
    .addForeignKeyConstraint('cvd_layers_layer', ['layer_name', 'layer_version'], 'layers', ['name', 'version'])
    .execute()
  await schema
    .createTable('snapshots')
    .addColumn('cvd_id', 'text', (column) => column.notNull().references('cvds.id').onDelete('cascade'))
    .addColumn('name', 'text', (column) => column.notNull())
    .addColumn('created_at_ms', 'bigint', (column) => column.notNull())
    .addColumn('recipe_digest', 'text', (column) => column.notNull())
    .addColumn('map_digest', 'text')
    .addColumn('base_map_digest', 'text')
    .addColumn('overlay', 'integer')
    .addColumn('generation', 'bigint')
    .addPrimaryKeyConstraint('snapshots_key', ['cvd_id', 'name'])
    .execute()
  await schema
    .createTable('snapshot_layers')
    .addColumn('cvd_id', 'text', (column) => column.notNull())
    .addColumn('snapshot_name', 'text', (column) => column.notNull())
    .addColumn('position', 'integer', (column) => column.notNull())
    .addColumn('layer_name', 'text', (column) => column.notNull())
    .addColumn('layer_version', 'integer', (column) => column.notNull())
    .addPrimaryKeyConstraint('snapshot_layers_key', ['cvd_id', 'snapshot_name', 'position'])
    .addForeignKeyConstraint('snapshot_layers_snapshot', ['cvd_id', 'snapshot_name'], 'snapshots', ['cvd_id', 'name'], (constraint) => constraint.onDelete('cascade'))
    .addForeignKeyConstraint('snapshot_layers_layer', ['layer_name', 'layer_version'], 'layers', ['name', 'version'])
    .execute()
  await schema
    .createTable('composed_maps')
    .addColumn('recipe_digest', 'text', (column) => column.primaryKey())
    .addColumn('map_digest', 'text', (column) => column.notNull())
    .addColumn('layer_digests', 'text', (column) => column.notNull())
    .addColumn('figures', 'text', (column) => column.notNull())
    .addColumn('created_at_ms', 'bigint', (column) => column.notNull())
    .addColumn('used_at_ms', 'bigint', (column) => column.notNull())
    .execute()
  await schema
    .createTable('objects')
    .addColumn('kind', 'text', (column) => column.notNull())
    .addColumn('key', 'text', (column) => column.notNull())
    .addColumn('digest', 'text', (column) => column.notNull())
    .addColumn('created_at_ms', 'bigint', (column) => column.notNull())
    .addPrimaryKeyConstraint('objects_key', ['kind', 'key'])
    .execute()
  await schema.createIndex('cvd_layers_by_layer').on('cvd_layers').columns(['layer_name', 'layer_version']).execute()
  await schema.createIndex('snapshot_layers_by_layer').on('snapshot_layers').columns(['layer_name', 'layer_version']).execute()
}

async function agents(db: Kysely<unknown>): Promise<void> {
  await db.schema
    .createTable('agent_tokens')
    .addColumn('hash', 'text', (column) => column.primaryKey())
    .addColumn('cvds', 'text')
    .addColumn('uses_left', 'integer', (column) => column.notNull())
    .addColumn('created_at_ms', 'bigint', (column) => column.notNull())
    .addColumn('expires_at_ms', 'bigint', (column) => column.notNull())
    .execute()
  await db.schema
    .createTable('agents')
    .addColumn('id', 'text', (column) => column.primaryKey())
    .addColumn('name', 'text', (column) => column.notNull())
    .addColumn('public_key', 'text', (column) => column.notNull().unique())
    .addColumn('cvds', 'text')
    .addColumn('token_hash', 'text', (column) => column.notNull())
    .addColumn('created_at_ms', 'bigint', (column) => column.notNull())
    .addColumn('seen_at_ms', 'bigint')
    .addColumn('revoked_at_ms', 'bigint')
    .execute()
}

async function disksOfLayers(db: Kysely<unknown>): Promise<void> {
  await db.schema.alterTable('layers').addColumn('map_digest', 'text').execute()
}
