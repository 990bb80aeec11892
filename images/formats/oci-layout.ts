/**
 * OCI image layout: a directory with an index, manifests and blobs, of which one image is chosen. Reads JSON and blobs; what layers hold is the importer's matter.
 * OCI Image Format Specification 1.1: image-layout.md, image-index.md, manifest.md, descriptor.md; Docker's media types of the same.
 */
import { createHash } from 'node:crypto'
import type { Hash } from 'node:crypto'
import { open } from 'node:fs/promises'
import { arch } from 'node:os'
import { join } from 'node:path'
import { VarveError } from '../errors.ts'

/** Largest index, manifest or configuration that is read, bytes; registries refuse what is larger. */
export const JSON_BYTES_MAX = 4 << 20
/** Layers of one image. */
export const LAYERS_MAX = 1024
/** Indexes in indexes. */
const INDEX_DEPTH_MAX = 4
const MANIFESTS_MAX = 10_000
const READ_BYTES = 1 << 20

const INDEX_TYPES = ['application/vnd.oci.image.index.v1+json', 'application/vnd.docker.distribution.manifest.list.v2+json']
const MANIFEST_TYPES = ['application/vnd.oci.image.manifest.v1+json', 'application/vnd.docker.distribution.manifest.v2+json']
const LAYER_TYPES = /^application\/vnd\.(?:oci\.image\.layer\.(?:nondistributable\.)?v1\.tar(?:\+gzip|\+zstd)?|docker\.image\.rootfs\.(?:foreign\.)?diff\.tar(?:\.gzip|\.zstd)?)$/
const DIGEST = /^(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$/
const TAG_ANNOTATION = 'org.opencontainers.image.ref.name'

/** Names of machines in Go, by those in Node. */
const ARCHITECTURES: Record<string, string> = { x64: 'amd64', ia32: '386', arm64: 'arm64', arm: 'arm', ppc64: 'ppc64le', s390x: 's390x', riscv64: 'riscv64', loong64: 'loong64' }

export interface OciDescriptor {
  mediaType: string
  digest: string
  sizeBytes: number
}

interface ManifestDescriptor extends OciDescriptor {
  tag?: string
  os?: string
  architecture?: string
}

export interface OciLayoutOptions {
  /** Name in the index, `org.opencontainers.image.ref.name`; may be left out if there is but one image. */
  tag?: string
  /** In the words of Go; by default this machine's. */
  architecture?: string
  signal?: AbortSignal
}

/** An image of a layout. */
export class OciImage {
  /** Of the manifest. */
  readonly digest: string
  /** Bottom first. */
  readonly layers: readonly OciDescriptor[]
  readonly #directory: string

  private constructor(directory: string, digest: string, layers: readonly OciDescriptor[]) {
    this.#directory = directory
    this.digest = digest
    this.layers = layers
  }

  /**
   * Chooses an image by its tag, and for this machine if there are several under it.
   * @throws VarveError SOURCE_INVALID if it is no layout or the image is not there; FORMAT_INVALID, FORMAT_UNSUPPORTED, LIMIT_EXCEEDED
   */
  static async open(directory: string, options: OciLayoutOptions = {}): Promise<OciImage> {
    await checkLayout(directory)
    const index = await readJson(join(directory, 'index.json'), JSON_BYTES_MAX)
    const wanted = await chosen(directory, manifestsOf(index, 'index.json'), options, 0)
    const manifest = await readBlobJson(directory, wanted)
    const layers = array(manifest.layers, `manifest ${wanted.digest}`, LAYERS_MAX).map((layer) => descriptor(layer, wanted.digest))
    for (const { mediaType, digest } of layers) {
      if (!LAYER_TYPES.test(mediaType)) throw new VarveError('FORMAT_UNSUPPORTED', `layer ${digest} has the media type ${JSON.stringify(mediaType)}, which is not that of a filesystem layer`)
    }
    return new OciImage(directory, wanted.digest, layers)
  }

  /**
   * Bytes of a layer as they are stored, checked against size and digest; the last error comes at the end.
   * Its buffer is used again.
   * @throws VarveError SOURCE_INVALID, FORMAT_INVALID
   */
  async *layerBytes(layer: OciDescriptor): AsyncGenerator<Uint8Array, void> {
    const path = blobPath(this.#directory, layer.digest)
    const hash = hashOf(layer.digest)
    let sizeBytes = 0
    for await (const bytes of fileChunks(path)) {
      sizeBytes += bytes.length
      if (sizeBytes > layer.sizeBytes) break
      hash.update(bytes)
      yield bytes
    }
    checkBlob(layer, sizeBytes, hash)
  }
}

async function checkLayout(directory: string): Promise<void> {
  const file = join(directory, 'oci-layout')
  const { imageLayoutVersion } = await readJson(file, JSON_BYTES_MAX)
  if (typeof imageLayoutVersion !== 'string') throw invalid(file, 'has no imageLayoutVersion')
  if (!imageLayoutVersion.startsWith('1.')) throw new VarveError('FORMAT_UNSUPPORTED', `${file} has version ${JSON.stringify(imageLayoutVersion)}; only 1.x is read`)
}

/** The manifest that is meant, through nested indexes. */
async function chosen(directory: string, manifests: ManifestDescriptor[], options: OciLayoutOptions, depth: number): Promise<OciDescriptor> {
  options.signal?.throwIfAborted()
  if (depth > INDEX_DEPTH_MAX) throw new VarveError('LIMIT_EXCEEDED', `${directory}: indexes nested more than ${INDEX_DEPTH_MAX} deep`)
  const tagged = depth === 0 && options.tag !== undefined ? manifests.filter(({ tag }) => tag === options.tag) : manifests
  if (tagged.length === 0) throw new VarveError('SOURCE_INVALID', `${directory} has no image ${options.tag ?? ''}; it has ${named(manifests)}`)
  const wanted = forThisMachine(tagged, options, depth)
  if (wanted === undefined) throw new VarveError('SOURCE_INVALID', `${directory} has several images, ${named(tagged)}; choose one with oci:${directory}:TAG`)
  if (MANIFEST_TYPES.includes(wanted.mediaType)) return wanted
  if (!INDEX_TYPES.includes(wanted.mediaType)) throw new VarveError('FORMAT_UNSUPPORTED', `${directory}: ${wanted.digest} has the media type ${JSON.stringify(wanted.mediaType)}, which is not that of an image`)
  return chosen(directory, manifestsOf(await readBlobJson(directory, wanted), wanted.digest), options, depth + 1)
}

/** Of several, the one whose platform is ours; undefined if that does not decide it. */
function forThisMachine(manifests: ManifestDescriptor[], options: OciLayoutOptions, depth: number): ManifestDescriptor | undefined {
  const architecture = options.architecture ?? ARCHITECTURES[arch()] ?? arch()
  if (manifests.length === 1 && (depth === 0 || manifests[0].architecture === undefined)) return manifests[0]
  const fitting = manifests.filter((manifest) => manifest.os === 'linux' && manifest.architecture === architecture)
  if (depth > 0 && fitting.length === 0) {
    const platforms = manifests.map((manifest) => `${manifest.os}/${manifest.architecture}`).join(', ')
    throw new VarveError('SOURCE_INVALID', `the image is not for linux/${architecture}; it is for ${platforms}`)
  }
  // Variants of a platform (arm/v6, arm/v7): the first is taken, as others do. At the top, names decide.
  return depth > 0 || fitting.length === 1 ? fitting[0] : undefined
}

function named(manifests: ManifestDescriptor[]): string {
  const names = manifests.map(({ tag, digest }) => tag ?? digest)
  return names.length === 0 ? 'none' : names.slice(0, 20).join(', ') + (names.length > 20 ? ', ...' : '')
}

type Json = Record<string, unknown>

function manifestsOf(index: Json, where: string): ManifestDescriptor[] {
  return array(index.manifests, where, MANIFESTS_MAX).map((item) => {
    const manifest: ManifestDescriptor = descriptor(item, where)
    const { annotations, platform } = item as Json
    if (isObject(annotations) && typeof annotations[TAG_ANNOTATION] === 'string') manifest.tag = annotations[TAG_ANNOTATION]
    if (isObject(platform)) {
      if (typeof platform.os === 'string') manifest.os = platform.os
      if (typeof platform.architecture === 'string') manifest.architecture = platform.architecture
    }
    return manifest
  })
}

function descriptor(value: unknown, where: string): OciDescriptor {
  if (!isObject(value)) throw invalid(where, 'has a descriptor that is no object')
  const { mediaType, digest, size } = value
  if (typeof mediaType !== 'string') throw invalid(where, 'has a descriptor without mediaType')
  if (typeof digest !== 'string' || !DIGEST.test(digest)) throw invalid(where, `has a descriptor with the digest ${JSON.stringify(digest)?.slice(0, 200)}`)
  if (typeof size !== 'number' || !Number.isSafeInteger(size) || size < 0) throw invalid(where, 'has a descriptor without size')
  return { mediaType, digest, sizeBytes: size }
}

function array(value: unknown, where: string, lengthMax: number): unknown[] {
  if (!Array.isArray(value)) throw invalid(where, 'is neither an index nor a manifest')
  if (value.length > lengthMax) throw new VarveError('LIMIT_EXCEEDED', `${where} lists ${value.length} items; at most ${lengthMax} are accepted`)
  return value
}

function isObject(value: unknown): value is Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

async function readBlobJson(directory: string, blob: OciDescriptor): Promise<Json> {
  if (blob.sizeBytes > JSON_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `${blob.digest} has ${blob.sizeBytes} bytes; at most ${JSON_BYTES_MAX} are accepted`)
  const path = blobPath(directory, blob.digest)
  const bytes = await readLimited(path, JSON_BYTES_MAX)
  checkBlob(blob, bytes.length, hashOf(blob.digest).update(bytes))
  return parsed(bytes, path)
}

async function readJson(path: string, bytesMax: number): Promise<Json> {
  return parsed(await readLimited(path, bytesMax), path)
}

function parsed(bytes: Uint8Array, path: string): Json {
  let value: unknown
  try {
    value = JSON.parse(Buffer.from(bytes).toString('utf8'))
  } catch (cause) {
    throw new VarveError('FORMAT_INVALID', `${path} is not JSON`, { cause })
  }
  if (!isObject(value)) throw invalid(path, 'is not a JSON object')
  return value
}

async function readLimited(path: string, bytesMax: number): Promise<Buffer> {
  const chunks: Buffer[] = []
  let length = 0
  for await (const chunk of fileChunks(path)) {
    length += chunk.length
    if (length > bytesMax) throw new VarveError('LIMIT_EXCEEDED', `${path} has more than ${bytesMax} bytes`)
    chunks.push(Buffer.from(chunk))
  }
  return Buffer.concat(chunks)
}

function blobPath(directory: string, digest: string): string {
  // What DIGEST lets through has no slash and no dot.
  const [algorithm, hex] = digest.split(':')
  return join(directory, 'blobs', algorithm, hex)
}

function hashOf(digest: string): Hash {
  return createHash(digest.slice(0, digest.indexOf(':')))
}

function checkBlob({ digest, sizeBytes }: OciDescriptor, actualBytes: number, hash: Hash): void {
  if (actualBytes !== sizeBytes) throw new VarveError('FORMAT_INVALID', `blob ${digest} has ${actualBytes > sizeBytes ? 'more than' : `${actualBytes} instead of`} ${sizeBytes} bytes`)
  const actual = hash.digest('hex')
  if (!digest.endsWith(`:${actual}`)) throw new VarveError('FORMAT_INVALID', `blob ${digest} hashes to ${actual}: it is damaged`)
}

/** In one buffer, used again. */
async function* fileChunks(path: string): AsyncGenerator<Buffer, void> {
  let file
  try {
    file = await open(path)
    const buffer = Buffer.allocUnsafe(READ_BYTES)
    for (;;) {
      const { bytesRead } = await file.read(buffer, 0, READ_BYTES, null)
      if (bytesRead === 0) return
      yield buffer.subarray(0, bytesRead)
    }
  } catch (cause) {
    const { code, syscall } = cause as NodeJS.ErrnoException
    if (code === undefined || syscall === undefined) throw cause
    const hint = code === 'ENOENT' ? 'is missing: this is not a whole OCI image layout' : `cannot be read: ${code}`
    throw new VarveError('SOURCE_INVALID', `${path} ${hint}`, { cause })
  } finally {
    await file?.close()
  }
}

function invalid(where: string, problem: string): VarveError {
  return new VarveError('FORMAT_INVALID', `${where} ${problem}`)
}
