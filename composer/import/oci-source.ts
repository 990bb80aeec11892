/**
 * OCI source: the layers of an image in an OCI image layout, as one tree each or all as one.
 */
import { ByteStream } from '@varve/images/formats/byte-stream.ts'
import { decompressed } from '@varve/images/formats/compression.ts'
import { OciImage } from '@varve/images/formats/oci-layout.ts'
import type { OciDescriptor } from '@varve/images/formats/oci-layout.ts'
import { TarReader } from '@varve/images/formats/tar-reader.ts'
import { putTree } from '@varve/images/store/stored-tree.ts'
import type { StoredTree } from '@varve/images/store/stored-tree.ts'
import { TreeBuilder } from '@varve/images/tree/tree-builder.ts'
import type { Workspace } from '@varve/images/tree/workspace.ts'
import { ArchiveMembers, IMPLICIT_DIRECTORY } from './archive-members.ts'
import { DirectoriesBelow } from './directories-below.ts'
import { workspace } from './import-context.ts'
import type { ImportContext } from './import-context.ts'
import { PathTree } from './path-tree.ts'
import { StreamContent } from './stream-content.ts'
import { counted, drain } from './tar-source.ts'

/** Of what may be in memory of the columns of trees, what the directories of lower layers may take, bytes: half a million of them. */
const BELOW_BYTES_MAX = 24 << 20

export interface OciOptions {
  directory: string
  tag?: string
  /** All layers as one tree. */
  squash: boolean
}

/**
 * @returns trees, bottom first
 * @throws VarveError SOURCE_INVALID, SOURCE_UNSUPPORTED, FORMAT_INVALID, FORMAT_UNSUPPORTED, LIMIT_EXCEEDED
 */
export async function importOci(context: ImportContext, { directory, tag, squash }: OciOptions): Promise<StoredTree[]> {
  const image = await OciImage.open(directory, { tag, signal: context.signal })
  context.progress.now.sourceBytesTotal = image.layers.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0)
  return squash ? [await squashed(context, image)] : separate(context, image)
}

async function squashed(context: ImportContext, image: OciImage): Promise<StoredTree> {
  using space = workspace(context)
  const builder = new TreeBuilder(IMPLICIT_DIRECTORY, space)
  const paths = new PathTree(builder, space, () => builder.addInode(IMPLICIT_DIRECTORY))
  const content = new StreamContent(context, builder)
  for (const layer of image.layers) {
    await putLayer(context, image, layer, space, new ArchiveMembers(context, { builder, paths, content, space, whiteouts: 'applied' }))
    paths.endLayer()
  }
  content.flush()
  await context.pipeline.drain()
  paths.finish()
  return putTree(context.writer, builder)
}

async function separate(context: ImportContext, image: OciImage): Promise<StoredTree[]> {
  const trees: StoredTree[] = []
  using spaceBelow = workspace(context, context.columnsBytesMax - BELOW_BYTES_MAX)
  const below = new DirectoriesBelow(spaceBelow)
  for (const layer of image.layers) {
    using space = workspace(context, BELOW_BYTES_MAX)
    // A directory that the layer does not describe is the one below, if there is one.
    const builder = new TreeBuilder(below.at(''), space)
    const paths = new PathTree(builder, space, (path) => builder.addInode(below.at(path)))
    const content = new StreamContent(context, builder)
    await putLayer(context, image, layer, space, new ArchiveMembers(context, { builder, paths, content, space, whiteouts: 'kept' }))
    content.flush()
    await context.pipeline.drain()
    paths.finish()
    below.add(builder)
    trees.push(putTree(context.writer, builder))
  }
  return trees
}

async function putLayer(context: ImportContext, image: OciImage, layer: OciDescriptor, space: Workspace, members: ArchiveMembers): Promise<void> {
  const source = new ByteStream(counted(context, image.layerBytes(layer)))
  try {
    const stream = await decompressed(source, { signal: context.signal, take: (bytes) => space.take(bytes) })
    // Some builders leave the mark of the end out; the digest says that the layer is whole.
    await members.putAll(new TarReader(stream, { endRequired: false }))
    await drain(stream)
    // Bytes behind the end of a compressed stream count for the digest, too.
    await drain(source)
  } finally {
    await source.close()
  }
}
