/**
 * Bundles the command: its modules, and the packages that have hundreds of them, become a few files that load in a fraction of the time,
 * each when a command needs it. Other packages stay where they are installed.
 */
import { statSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { build } from 'esbuild'
import type { Loader, Plugin } from 'esbuild'

/** Plain JavaScript that looks for no files beside its own. */
export const BUNDLED_PACKAGES = ['commander', 'kysely']

/** A file as it was before it was read. */
export interface BundleInput {
  /** Absolute. */
  file: string
  sizeBytes: number
  mtimeMs: number
}

/**
 * Writes the bundle of `program` into `directory`, as program.mjs and what that imports.
 * @param options.program path of the program's module
 * @returns the modules that are not of packages
 */
export async function bundleProgram(options: { program: string; directory: string }): Promise<BundleInput[]> {
  const { program, directory } = options
  const inputs: BundleInput[] = []
  await build({
    entryPoints: { program },
    outdir: directory,
    bundle: true,
    splitting: true,
    format: 'esm',
    outExtension: { '.js': '.mjs' },
    platform: 'node',
    target: 'esnext',
    logLevel: 'silent',
    // For a program that does not lie in the checkout.
    nodePaths: [path.resolve(import.meta.dirname, '../node_modules')],
    plugins: [externalPackages, ownModules(directory, inputs)],
  })
  return inputs
}

const externalPackages: Plugin = {
  name: 'external packages',
  setup(building) {
    building.onResolve({ filter: /^[^./]/ }, ({ path: specifier }) => {
      const inside = specifier.startsWith('@varve/') || BUNDLED_PACKAGES.includes(specifier.split('/')[0])
      return inside ? undefined : { path: specifier, external: true }
    })
  },
}

/** Modules that ask where they are, to find files beside them such as those of their threads, get their own place and not the bundle's. */
function ownModules(directory: string, inputs: BundleInput[]): Plugin {
  return {
    name: 'own modules',
    setup(building) {
      building.onLoad({ filter: /\.(?:ts|js|json)$/ }, async ({ path: file }) => {
        if (file.split(path.sep).includes('node_modules')) return undefined
        // Before it is read: what changes meanwhile differs from what is noted.
        const { size, mtimeMs } = statSync(file)
        inputs.push({ file, sizeBytes: size, mtimeMs })
        const place = `new URL(${JSON.stringify(path.relative(directory, file).split(path.sep).map(encodeURIComponent).join('/'))}, import.meta.url)`
        const answers: Record<string, string> = {
          url: `${place}.href`,
          dirname: `process.getBuiltinModule('node:url').fileURLToPath(new URL('.', ${place}))`,
          resolve: `((specifier) => new URL(specifier, ${place}).href)`,
        }
        const contents = (await readFile(file, 'utf8')).replaceAll(/\bimport\.meta\.(\w+)/g, (asked, what: string) => answers[what] ?? asked)
        return { contents, loader: path.extname(file).slice(1) as Loader }
      })
    },
  }
}
