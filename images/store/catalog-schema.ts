/**
 * Tables of the catalog as Kysely sees them. What each column holds: docs/formats/catalog.md. How they came to be: migrations.ts.
 */

export interface CatalogTables {
  layer_names: LayerNameRow
  layers: LayerRow
  cvds: CvdRow
  cvd_layers: CvdLayerRow
  snapshots: SnapshotRow
  snapshot_layers: SnapshotLayerRow
  composed_maps: ComposedMapRow
  objects: ObjectRow
  agent_tokens: AgentTokenRow
  agents: AgentRow
}

export interface LayerNameRow {
  name: string
  last_version: number
}

export interface LayerRow {
  name: string
  version: number
  kind: string
  content: string
  digest: string
  map_digest: string | null
  entries: number
  content_bytes: number
  created_at_ms: number
  source: string
  labels: string
}

export interface CvdRow {
  id: string
  name: string
  policy: string
  created_at_ms: number
  device: string | null
  recipe_digest: string | null
  base_map_digest: string | null
  overlay: number | null
  last_overlay: number
}

export interface CvdLayerRow {
  cvd_id: string
  position: number
  layer_name: string
  layer_version: number
}

export interface SnapshotRow {
  cvd_id: string
  name: string
  created_at_ms: number
  recipe_digest: string
  map_digest: string | null
  base_map_digest: string | null
  overlay: number | null
  generation: number | null
}

export interface SnapshotLayerRow {
  cvd_id: string
  snapshot_name: string
  position: number
  layer_name: string
  layer_version: number
}

export interface ComposedMapRow {
  recipe_digest: string
  map_digest: string
  layer_digests: string
  figures: string
  created_at_ms: number
  used_at_ms: number
}

export interface ObjectRow {
  kind: string
  key: string
  digest: string
  created_at_ms: number
}

export interface AgentTokenRow {
  hash: string
  cvds: string | null
  uses_left: number
  created_at_ms: number
  expires_at_ms: number
}

export interface AgentRow {
  id: string
  name: string
  public_key: string
  cvds: string | null
  token_hash: string
  created_at_ms: number
  seen_at_ms: number | null
  revoked_at_ms: number | null
}
