/**
 * Builds dist/: plain JavaScript with type declarations, for the published package.
 * Development needs no build; packages do, since Node strips no types inside node_modules. The types are stripped here as Node strips them,
 * so that what is published is what was tested, and imports of workspaces (`@varve/images/store/home.ts`) become relative ones.
 */
import { spawnSync } from 'node:child_process'
import { chmodSync, globSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { stripTypeScriptTypes } from 'node:module'
import path from 'node:path'

const root = path.resolve(import.meta.dirname, '..')
const dist = path.join(root, 'dist')
const SOURCES = ['images', 'composer', 'blockserver', 'agent', 'tools'].map((folder) => `${folder}/**/*.ts`)
/** For checkouts only. */
const UNPUBLISHED = ['**/node_modules/**', 'tools/build.ts', 'tools/demo.ts', 'tools/demo/**']

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
declare()
for (const file of globSync('**/*.d.ts', { cwd: dist })) {
  const target = path.join(dist, file)
  writeFileSync(target, withPublishedImports(readFileSync(target, 'utf8'), target))
}
for (const file of globSync(SOURCES, { cwd: root, exclude: UNPUBLISHED })) {
  const target = path.join(dist, file.replace(/\.ts$/, '.js'))
  mkdirSync(path.dirname(target), { recursive: true })
  writeFileSync(target, withPublishedImports(stripTypeScriptTypes(readFileSync(path.join(root, file), 'utf8')), target))
}
chmodSync(path.join(dist, 'tools/varve.js'), 0o755)
