/**
 * The program of a checkout, as a bundle (bundle.ts) that is made when the command is first started, and again when a source or the installed
 * packages have changed. Where none can be made, as in a checkout that may only be read, the sources run as they are.
 */
import { existsSync, globSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import type { BundleInput } from './bundle.ts'

const root = path.resolve(import.meta.dirname, '..')
const program = path.join(import.meta.dirname, 'program.ts')
const cache = path.join(root, 'node_modules/.cache/varve')
/** Names the newest bundle, and says what it was made of. */
const record = path.join(cache, 'newest.json')
/** What is installed, and how it is bundled; besides the sources. */
const otherInputs = [path.join(root, 'node_modules/.package-lock.json'), path.join(root, 'tsconfig.json'), path.join(import.meta.dirname, 'bundle.ts')]
/** Processes that run from older ones may not have loaded all of them. */
const BUNDLES_KEPT = 16
const BUNDLE_PREFIX = 'bundle-'

interface Newest {
  bundle: string
  /** Their files relative to the checkout, which may have been copied or moved. */
  inputs: BundleInput[]
}

/** @returns URL of the module to import */
export async function checkoutProgram(): Promise<string> {
  try {
    const bundle = freshBundle() ?? (await makeBundle())
    return pathToFileURL(path.join(cache, bundle, 'program.mjs')).href
  } catch {
    // Whatever is wrong with a source, running it tells.
    return pathToFileURL(program).href
  }
}

/** Name of the newest bundle, if everything that it was made of is unchanged. */
function freshBundle(): string | undefined {
  try {
    const { bundle, inputs } = JSON.parse(readFileSync(record, 'utf8')) as Newest
    return inputs.every(isUnchanged) && existsSync(path.join(cache, bundle, 'program.mjs')) ? bundle : undefined
  } catch {
    return undefined
  }
}

function isUnchanged({ file, sizeBytes, mtimeMs }: BundleInput): boolean {
  const { size, mtimeMs: mtimeNowMs } = statSync(path.join(root, file))
  return size === sizeBytes && mtimeNowMs === mtimeMs
}

/** Several processes may do so at once: each makes its own. */
async function makeBundle(): Promise<string> {
  mkdirSync(cache, { recursive: true })
  const directory = mkdtempSync(path.join(cache, BUNDLE_PREFIX))
  try {
    const others = otherInputs.map(noted)
    const { bundleProgram } = await import('./bundle.ts')
    const inputs = [...others, ...(await bundleProgram({ program, directory }))].map((input) => ({ ...input, file: path.relative(root, input.file) }))
    const newest: Newest = { bundle: path.basename(directory), inputs }
    const text = path.join(directory, 'newest.json')
    writeFileSync(text, JSON.stringify(newest))
    renameSync(text, record)
    removeOld()
    return newest.bundle
  } catch (error) {
    rmSync(directory, { recursive: true, force: true })
    throw error
  }
}

function noted(file: string): BundleInput {
  const { size, mtimeMs } = statSync(file)
  return { file, sizeBytes: size, mtimeMs }
}

/** Old bundles, and what Node has compiled of them and of others of their time. */
function removeOld(): void {
  const bundles = readdirSync(cache).filter((name) => name.startsWith(BUNDLE_PREFIX)).map((name) => noted(path.join(cache, name)))
  const old = bundles.sort((a, b) => b.mtimeMs - a.mtimeMs).slice(BUNDLES_KEPT)
  if (old.length === 0) return
  for (const { file } of old) rmSync(file, { recursive: true, force: true })
  for (const file of globSync('compiled/*/*', { cwd: cache })) {
    const compiled = noted(path.join(cache, file))
    if (compiled.mtimeMs <= old[0].mtimeMs) rmSync(compiled.file, { force: true })
  }
}
