/**
 * Builds dist/: plain JavaScript with type declarations, for the published package.
 * Development needs no build; packages do, since Node strips no types inside node_modules. TypeScript strips them here,
 * and imports of workspaces (`@varve/images/store/home.ts`) become relative ones (`../images/store/home.js`).
 */
import { spawnSync } from 'node:child_process'
import { chmodSync, cpSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'

const root = path.resolve(import.meta.dirname, '..')
const dist = path.join(root, 'dist')
/** The floors that are published. */
const FOLDERS = ['images', 'composer', 'blockserver', 'agent', 'tools']

function compile(): void {
  const config = path.join(dist, 'tsconfig.json')
  mkdirSync(dist, { recursive: true })
  writeFileSync(config, JSON.stringify({
    extends: '../tsconfig.json',
    compilerOptions: { noEmit: false, declaration: true, outDir: '.', rootDir: '..', removeComments: false },
    include: FOLDERS.map((folder) => `../${folder}`),
    exclude: ['../node_modules', '../**/node_modules', '../tools/build.ts', '../tools/demo.ts'],
  }))
  const tsc = path.join(root, 'node_modules/typescript/bin/tsc')
  // Paths end in .ts still when TypeScript is done: they are rewritten below, with those of workspaces.
  const { status, stdout } = spawnSync(process.execPath, [tsc, '--project', config, '--rewriteRelativeImportExtensions', 'false'], { encoding: 'utf8' })
  if (status !== 0) throw new Error(`tsc failed:\n${stdout}`)
  rmSync(config)
}

function rewriteImports(file: string): void {
  const extension = file.endsWith('.d.ts') ? '.js' : '.js'
  const up = path.relative(path.dirname(path.relative(dist, file)), '.') || '.'
  const text = readFileSync(file, 'utf8')
    .replace(/(['"])@varve\/([a-z]+)\/([^'"\n]+)\.ts\1/g, (_, quote: string, folder: string, rest: string) => `${quote}${up.startsWith('.') ? up : `./${up}`}/${folder}/${rest}${extension}${quote}`)
    .replace(/(['"])(\.{1,2}\/[^'"\n]+)\.ts\1/g, (_, quote: string, rest: string) => `${quote}${rest}${extension}${quote}`)
  writeFileSync(file, text)
}

rmSync(dist, { recursive: true, force: true })
compile()
for (const file of readdirSync(dist, { recursive: true, encoding: 'utf8' })) {
  if (file.endsWith('.js') || file.endsWith('.d.ts')) rewriteImports(path.join(dist, file))
}
cpSync(path.join(root, 'package.json'), path.join(dist, 'package.json'))
writeFileSync(path.join(dist, 'package.json'), JSON.stringify({ type: 'module' }))
chmodSync(path.join(dist, 'tools/varve.js'), 0o755)
