/**
 * Writes OCI image layouts, right or wrong as a test wants them.
 */
import { createHash } from 'node:crypto'
import { mkdirSync, writeFileSync } from 'node:fs'

export interface OciDescriptorJson {
  mediaType: string
  digest: string
  size: number
  annotations?: Record<string, string>
  platform?: { os: string; architecture: string }
}

export const MANIFEST_TYPE = 'application/vnd.oci.image.manifest.v1+json'
export const INDEX_TYPE = 'application/vnd.oci.image.index.v1+json'
export const LAYER_TYPE = 'application/vnd.oci.image.layer.v1.tar'

export class OciFiles {
  readonly directory: string

  constructor(directory: string) {
    this.directory = directory
    mkdirSync(`${directory}/blobs/sha256`, { recursive: true })
    mkdirSync(`${directory}/blobs/sha512`, { recursive: true })
    writeFileSync(`${directory}/oci-layout`, '{"imageLayoutVersion": "1.0.0"}')
  }

  blob(bytes: Uint8Array, mediaType: string, more: Partial<OciDescriptorJson> = {}, algorithm = 'sha256'): OciDescriptorJson {
    const hex = createHash(algorithm).update(bytes).digest('hex')
    writeFileSync(`${this.directory}/blobs/${algorithm}/${hex}`, bytes)
    return { mediaType, digest: `${algorithm}:${hex}`, size: bytes.length, ...more }
  }

  json(value: unknown, mediaType: string, more: Partial<OciDescriptorJson> = {}): OciDescriptorJson {
    return this.blob(Buffer.from(JSON.stringify(value)), mediaType, more)
  }

  manifest(layers: readonly OciDescriptorJson[], more: Partial<OciDescriptorJson> = {}): OciDescriptorJson {
    const config = this.json({ architecture: 'amd64', os: 'linux' }, 'application/vnd.oci.image.config.v1+json')
    return this.json({ schemaVersion: 2, mediaType: MANIFEST_TYPE, config, layers }, MANIFEST_TYPE, more)
  }

  index(manifests: readonly unknown[]): void {
    writeFileSync(`${this.directory}/index.json`, JSON.stringify({ schemaVersion: 2, manifests }))
  }
}

export function tagged(tag: string): { annotations: Record<string, string> } {
  return { annotations: { 'org.opencontainers.image.ref.name': tag } }
}
