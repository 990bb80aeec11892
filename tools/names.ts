/**
 * What names on the command line stand for, and how the command shows what the catalog holds.
 */
import { digestToHex } from '@varve/images/chunk/digest.ts'
import { VarveError } from '@varve/images/errors.ts'
import type { Cvd, Layer, Snapshot } from '@varve/images/store/catalog.ts'
import type { Home } from '@varve/images/store/home.ts'
import { formatLayerName } from '@varve/images/store/names.ts'
import { getObject } from '@varve/images/store/object.ts'
import { decodeTree } from '@varve/images/tree/tree-format.ts'
import type { Tree } from '@varve/images/tree/tree.ts'

/** Tree of a layer. @throws VarveError FORMAT_UNSUPPORTED if the layer is a block map */
export async function readLayerTree(home: Home, layer: Layer): Promise<Tree> {
  if (layer.content !== 'tree') throw new VarveError('FORMAT_UNSUPPORTED', `layer ${formatLayerName(layer)} is a disk, not files`)
  return decodeTree(await getObject(home.store, layer.digest))
}

/** `2026-11-22T10:00:00Z` */
export function formatTime(timeMs: number): string {
  return new Date(timeMs).toISOString().replace(/\.\d{3}Z$/, 'Z')
}

export function layerDocument(layer: Layer) {
  return {
    layer: formatLayerName(layer),
    name: layer.name,
    version: layer.version,
    kind: layer.kind,
    content: layer.content,
    digest: digestToHex(layer.digest),
    map: layer.map === null ? null : digestToHex(layer.map),
    entries: layer.entries,
    contentBytes: layer.contentBytes,
    createdAt: formatTime(layer.createdAtMs),
    source: layer.source,
    labels: layer.labels,
  }
}

export function cvdDocument(cvd: Cvd) {
  return {
    name: cvd.name,
    id: cvd.id,
    layers: cvd.layers.map(formatLayerName),
    policy: cvd.policy,
    createdAt: formatTime(cvd.createdAtMs),
    device: cvd.device,
    recipe: cvd.recipe === null ? null : digestToHex(cvd.recipe),
    baseMap: cvd.baseMap === null ? null : digestToHex(cvd.baseMap),
    overlay: cvd.overlay,
  }
}

export function snapshotDocument(snapshot: Snapshot) {
  return {
    snapshot: `${snapshot.cvd}@${snapshot.name}`,
    cvd: snapshot.cvd,
    name: snapshot.name,
    createdAt: formatTime(snapshot.createdAtMs),
    layers: snapshot.layers.map(formatLayerName),
    state: snapshot.map === null ? 'frozen' : 'settled',
    map: snapshot.map === null ? null : digestToHex(snapshot.map),
  }
}
