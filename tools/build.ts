/**
 * Builds dist/: plain JavaScript with type declarations, for the published package. `node tools/build.ts DIRECTORY` builds one without declarations
 * elsewhere: for the recovery medium.
 * Development needs no build; packages do, since Node strips no types inside node_modules. The types are stripped here as Node strips them,
 * so that what is published is what was tested, and imports of workspaces (`@varve/images/store/home.ts`) become relative ones.
 * The command is a bundle of these modules (bundle.ts), as it is in a checkout.
 */
import { spawnSync } from 'node:child_process'
import { copyFileSync, globSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { stripTypeScriptTypes } from 'node:module'
import path from 'node:path'
import { BUNDLED_PACKAGES, bundleProgram } from './bundle.ts'

const root = path.resolve(import.meta.dirname, '..')
const elsewhere: string | undefined = process.argv[2]
const dist = path.resolve(elsewhere ?? path.join(root, 'dist'))
const SOURCES = ['images', 'composer', 'blockserver', 'agent', 'tools'].map((folder) => `${folder}/**/*.ts`)
/** For checkouts only. */
const UNPUBLISHED = ['**/node_modules/**', 'tools/build.ts', 'tools/bundle.ts', 'tools/checkout-program.ts', 'tools/varve.ts', 'tools/demo.ts', 'tools/demo/**']
const BUNDLE = 'tools/bundle'

/** What people run. Compiled code is kept where nobody else can put any. */
const LAUNCHER = `#!/usr/bin/env node
import { enableCompileCache } from 'node:module'
import { homedir } from 'node:os'
import path from 'node:path'

enableCompileCache(path.join(process.env.XDG_CACHE_HOME || path.join(homedir(), '.cache'), 'varve'))
await import('./bundle/program.mjs')
`

function declare(): void {
  const config = path.join(dist, 'tsconfig.json')
  writeFileSync(config, JSON.stringify({
    extends: '../tsconfig.json',
    compilerOptions: { noEmit: false, declaration: true, emitDeclarationOnly: true, outDir: '.', rootDir: '..' },
    include: SOURCES.map((pattern) => `../${pattern}`),
    exclude: UNPUBLISHED.map((pattern) => `../${pattern}`),
  }))
  const { status, stdout } = spawnSync(process.execPath, [path.join(root, 'node_modules/typescript/bin/tsc'), '--project', config], { encoding: 'utf8' })
  if (status !== 0) throw new Error(`tsc failed:\n${stdout}`)
  rmSync(config)
}

/** @param file below dist, whose imports are rewritten */
function withPublishedImports(text: string, file: string): string {
  const up = path.relative(path.dirname(file), dist)
  return text
    .replace(/(['"])@varve\/([a-z]+\/[^'"\n]+)\.ts\1/g, (_, quote: string, rest: string) => `${quote}${up}/${rest}.js${quote}`)
    .replace(/(['"])(\.{1,2}\/[^'"\n]+)\.ts\1/g, '$1$2.js$1')
}

rmSync(dist, { recursive: true, force: true })
mkdirSync(dist)
if (elsewhere === undefined) declare()
for (const file of globSync('**/*.d.ts', { cwd: dist })) {
  const target = path.join(dist, file)
  writeFileSync(target, withPublishedImports(readFileSync(target, 'utf8'), target))
}
for (const file of globSync(SOURCES, { cwd: root, exclude: UNPUBLISHED })) {
  const target = path.join(dist, file.replace(/\.ts$/, '.js'))
  mkdirSync(path.dirname(target), { recursive: true })
  writeFileSync(target, withPublishedImports(stripTypeScriptTypes(readFileSync(path.join(root, file), 'utf8')), target))
}
for (const file of globSync('tools/recovery/*.sh', { cwd: root })) copyFileSync(path.join(root, file), path.join(dist, file))
copyFileSync(path.join(root, 'tools/package.json'), path.join(dist, 'tools/package.json'))
await bundleProgram({ program: path.join(dist, 'tools/program.js'), directory: path.join(dist, BUNDLE) })
writeFileSync(path.join(dist, BUNDLE, 'LICENSES.txt'), BUNDLED_PACKAGES.map((name) => `${name}\n\n${readFileSync(path.join(root, 'node_modules', name, 'LICENSE'), 'utf8')}`).join('\n\n'))
writeFileSync(path.join(dist, 'tools/varve.js'), LAUNCHER, { mode: 0o755 })
