/**
 * OCI source: the layers of an image in an OCI image layout, as one tree each or all as one.
 */
import { ByteStream } from '@varve/images/formats/byte-stream.ts'
import { decompressed } from '@varve/images/formats/compression.ts'
import { OciImage } from '@varve/images/formats/oci-layout.ts'
import type { OciDescriptor } from '@varve/images/formats/oci-layout.ts'
import { TarReader } from '@varve/images/formats/tar-reader.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import type { Tree } from '@varve/images/tree/tree.ts'
import { TreeBuilder } from '@varve/images/tree/tree-builder.ts'
import type { InodeInit } from '@varve/images/tree/tree-builder.ts'
import { ArchiveMembers, IMPLICIT_DIRECTORY } from './archive-members.ts'
import type { ImportContext } from './import-context.ts'
import { PathTree } from './path-tree.ts'
import { StreamContent } from './stream-content.ts'
import { counted, drain } from './tar-source.ts'

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
export async function importOci(context: ImportContext, { directory, tag, squash }: OciOptions): Promise<Tree[]> {
  const image = await OciImage.open(directory, { tag, signal: context.signal })
  context.progress.now.sourceBytesTotal = image.layers.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0)
  return squash ? [await squashed(context, image)] : separate(context, image)
}

async function squashed(context: ImportContext, image: OciImage): Promise<Tree> {
  const builder = new TreeBuilder(IMPLICIT_DIRECTORY)
  const paths = new PathTree(builder, () => builder.addInode(IMPLICIT_DIRECTORY))
  const content = new StreamContent(context)
  for (const layer of image.layers) {
    await putLayer(context, image, layer, new ArchiveMembers(context, { builder, paths, content, whiteouts: 'applied' }))
    paths.endLayer()
  }
  content.flush()
  await context.pipeline.drain()
  paths.finish()
  return builder.build()
}

async function separate(context: ImportContext, image: OciImage): Promise<Tree[]> {
  const trees: Tree[] = []
  for (const layer of image.layers) {
    // A directory that the layer does not describe is the one below, if there is one.
    const builder = new TreeBuilder(directoryBelow(trees, ''))
    const paths = new PathTree(builder, (path) => builder.addInode(directoryBelow(trees, path)))
    const content = new StreamContent(context)
    await putLayer(context, image, layer, new ArchiveMembers(context, { builder, paths, content, whiteouts: 'kept' }))
    content.flush()
    await context.pipeline.drain()
    paths.finish()
    trees.push(builder.build())
  }
  return trees
}

async function putLayer(context: ImportContext, image: OciImage, layer: OciDescriptor, members: ArchiveMembers): Promise<void> {
  const source = new ByteStream(counted(context, image.layerBytes(layer)))
  try {
    const stream = await decompressed(source, { signal: context.signal })
    // Some builders leave the mark of the end out; the digest says that the layer is whole.
    await members.putAll(new TarReader(stream, { endRequired: false }))
    await drain(stream)
    // Bytes behind the end of a compressed stream count for the digest, too.
    await drain(source)
  } finally {
    await source.close()
  }
}

/** Metadata of the directory that the layers below have at a path. */
function directoryBelow(trees: readonly Tree[], path: string): InodeInit {
  for (const tree of trees.toReversed()) {
    const entry = tree.find(path)
    if (entry < 0) continue
    const inode = tree.inode[entry]
    if (tree.kind[inode] !== Kind.directory) break
    return {
      kind: Kind.directory,
      mode: tree.mode[inode],
      uid: tree.uid[inode],
      gid: tree.gid[inode],
      mtimeSeconds: tree.mtimeSeconds[inode],
      mtimeNanoseconds: tree.mtimeNanoseconds[inode],
      xattrs: tree.xattrSets[tree.xattrSet[inode]],
    }
  }
  return IMPLICIT_DIRECTORY
}
