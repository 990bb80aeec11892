/**
 * Parents of images that name them in the ways of Windows: several paths, of which one may lead to the right file, which is known by its id.
 */
import type { BlockDevice, ReadableDisk } from '../device/block-device.ts'
import { VarveError, isVarveError } from '../errors.ts'
import { below } from './disk-image.ts'
import type { ImageFile, ImageFiles, OpenImage, OpenImageOptions } from './disk-image.ts'

export interface ParentFormat {
  /** Why a file is another than the one that is meant; undefined if it is that. Looks at the file alone, not at what that lies over. */
  mismatchOf: (file: ReadableDisk) => Promise<string | undefined>
  open: OpenImage
}

/**
 * Opens the first of `names` that is the parent.
 * @throws VarveError SOURCE_UNSUPPORTED without a way to open files, SOURCE_INVALID if none is there, LIMIT_EXCEEDED, and what the format's functions throw
 */
export async function openParent(names: readonly string[], options: OpenImageOptions, { mismatchOf, open }: ParentFormat): Promise<BlockDevice> {
  const { files } = options
  const candidates = [...new Set(names)].filter((name) => name !== '')
  if (candidates.length === 0) throw new VarveError('FORMAT_INVALID', 'the image is a differencing one, but does not name its parent')
  if (files === undefined) throw new VarveError('SOURCE_UNSUPPORTED', `the image is a differencing one over ${candidates[0]}, and other files are not opened here`)
  const problems: string[] = []
  let cause: unknown
  for (const name of candidates) {
    let found: { file: ImageFile; files: ImageFiles }
    try {
      found = await files.open(name)
    } catch (error) {
      if (!isVarveError(error, 'SOURCE_INVALID')) throw error
      problems.push(error.message)
      cause ??= error
      continue
    }
    await using opened = new AsyncDisposableStack()
    opened.use(found.file)
    const mismatch = await mismatchOf(found.file).catch((error: unknown) => {
      // A file of that name that is no such image: another name may lead to the right one.
      if (isVarveError(error, 'FORMAT_INVALID', 'FORMAT_UNSUPPORTED')) return error.message
      throw error
    })
    if (mismatch !== undefined) {
      problems.push(`${name} is another disk: ${mismatch}`)
      continue
    }
    const device = await open(found.file, below(options, found.files))
    opened.move()
    return device
  }
  throw new VarveError('SOURCE_INVALID', `the parent of the image is not there: ${problems.join('; ')}`, { cause })
}

/** A path as Windows has it, as one of ours: relative ones stay so, of absolute ones only the name is looked for, beside the image. */
export function pathOfWindows(text: string): string {
  const path = text.replace(/\0[^]*/, '')
  const isAbsolute = /^([a-z]:|\\\\)/i.test(path)
  return isAbsolute ? path.replace(/^[^]*[\\/:]/, '') : path.replaceAll('\\', '/')
}

/** The path of a `file:` URL; '' for others. */
export function pathOfUrl(text: string): string {
  const path = /^file:\/\/(?:localhost(?=\/))?([^\0]+)/.exec(text)?.[1] ?? ''
  try {
    return decodeURIComponent(path).replace(/\0[^]*/, '')
  } catch {
    return path
  }
}
