/**
 * The house: a folder imports only from floors below its own, and declares what it imports (docs/DESIGN.md, section 2).
 */
import assert from 'node:assert/strict'
import { existsSync, readFileSync, readdirSync } from 'node:fs'
import { builtinModules } from 'node:module'
import path from 'node:path'
import test from 'node:test'
import { ERROR_CODES } from '../../images/errors.ts'

const root = path.resolve(import.meta.dirname, '../..')
const FLOORS: Record<string, number> = { images: 0, composer: 1, blockserver: 1, agent: 2, tools: 3, test: 4, bench: 4 }

interface Manifest {
  name: string
  version: string
  workspaces?: string[]
  dependencies?: Record<string, string>
  devDependencies?: Record<string, string>
}

function manifest(folder: string): Manifest {
  return JSON.parse(readFileSync(path.join(root, folder, 'package.json'), 'utf8')) as Manifest
}

function sources(folder: string): string[] {
  return readdirSync(path.join(root, folder), { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.ts') && !file.split(path.sep).includes('node_modules'))
    .map((file) => path.join(folder, file))
}

/** Specifiers of static, type and dynamic imports and re-exports, of `createRequire`, and of worker files named by `import.meta.resolve`. */
function imports(file: string): string[] {
  const text = readFileSync(path.join(root, file), 'utf8')
  const specifiers: string[] = []
  for (const match of text.matchAll(/^\s*(?:import\s*|(?:import|export)\b[^'"\n]*?\bfrom\s*)['"]([^'"\n]+)['"]/gm)) specifiers.push(match[1])
  for (const match of text.matchAll(/^\}\s*from\s*['"]([^'"\n]+)['"]/gm)) specifiers.push(match[1])
  for (const match of text.matchAll(/\b(?:import(?:\.meta\.resolve)?|createRequire\(import\.meta\.url\))\(\s*['"]([^'"\n]+)['"]\s*\)/g)) specifiers.push(match[1])
  return specifiers
}

function packageOf(specifier: string): string {
  return specifier.split('/', specifier.startsWith('@') ? 2 : 1).join('/')
}

for (const folder of Object.keys(FLOORS)) {
  test(`${folder} imports only from floors below it, and what its package.json declares`, () => {
    // What only the checkout needs is a development dependency: bundling, building.
    const declared = { ...manifest(folder).dependencies, ...manifest(folder).devDependencies }
    const files = sources(folder)
    const used = new Set<string>()
    for (const file of files) {
      for (const specifier of imports(file)) {
        if (specifier.startsWith('.')) {
          const target = path.relative(root, path.resolve(root, path.dirname(file), specifier)).split(path.sep)[0]
          const sharesFloor = FLOORS[folder] === 4 && FLOORS[target] === 4
          // Floor 4 looks at the repository itself (manifests, the launcher); the floors below never leave their workspace by path.
          assert.ok(target === folder || sharesFloor || FLOORS[folder] === 4, `${file} imports ${specifier}: another workspace is imported by its package name`)
        } else if (specifier.startsWith('node:') || builtinModules.includes(specifier)) {
          assert.ok(specifier.startsWith('node:'), `${file} imports ${specifier} without node:`)
        } else {
          const name = packageOf(specifier)
          used.add(name)
          if (name.startsWith('@varve/')) {
            const target = name.slice('@varve/'.length)
            assert.ok(target in FLOORS, `${file} imports ${specifier}, which is not a workspace`)
            assert.ok(FLOORS[target] < FLOORS[folder] || target === folder, `${file} (floor ${FLOORS[folder]}) imports ${specifier} (floor ${FLOORS[target]})`)
          }
          assert.ok(name in declared || FLOORS[folder] === 4, `${file} imports ${name}, which ${folder}/package.json does not declare`)
        }
      }
    }
    if (FLOORS[folder] < 4) {
      for (const name of Object.keys(declared)) assert.ok(used.has(name), `${folder}/package.json declares ${name}, which nothing in it imports`)
    }
  })
}

test('the published package declares what its workspaces declare, in the same exact versions', () => {
  const published = manifest('.').dependencies ?? {}
  const needed: Record<string, string> = {}
  for (const folder of ['images', 'composer', 'blockserver', 'agent', 'tools']) {
    for (const [name, version] of Object.entries(manifest(folder).dependencies ?? {})) {
      if (name.startsWith('@varve/')) {
        assert.equal(version, manifest('.').version, `${folder}: ${name}`)
        continue
      }
      assert.match(version, /^\d+\.\d+\.\d+$/, `${folder}: ${name} is pinned`)
      needed[name] = version
    }
  }
  assert.deepEqual(published, needed)
})

test('docs/errors.md lists the codes of images/errors.ts, in any order', () => {
  const listed = [...readFileSync(path.join(root, 'docs/errors.md'), 'utf8').matchAll(/^\| ([A-Z][A-Z_]+) \| (.+) \| (.+) \|$/gm)].map((match) => match[1])
  assert.deepEqual([...listed].sort(), [...ERROR_CODES].sort())
})

test('every code of images/errors.ts is thrown somewhere', () => {
  const texts = ['images', 'composer', 'blockserver', 'agent', 'tools'].flatMap((folder) => sources(folder).filter((file) => file !== path.join('images', 'errors.ts')).map((file) => readFileSync(path.join(root, file), 'utf8')))
  for (const code of ERROR_CODES) assert.ok(texts.some((text) => text.includes(`'${code}'`)), code)
})

test('docs/invariants.md names tests that exist, for every invariant of docs/DESIGN.md', () => {
  const rows = [...readFileSync(path.join(root, 'docs/invariants.md'), 'utf8').matchAll(/^\| (.*) \| (test\/\S+) \| (.+) \|$/gm)]
  for (const [, , file, name] of rows) assert.ok(readFileSync(path.join(root, file), 'utf8').includes(name), `${file}: ${name}`)
  const numbers = rows.map((row) => parseInt(row[1])).filter((number) => !Number.isNaN(number))
  const section = /^## 4\. Invariants.*?(?=^## )/ms.exec(readFileSync(path.join(root, 'docs/DESIGN.md'), 'utf8'))![0]
  assert.deepEqual(numbers, [...section.matchAll(/^(\d+)\. /gm)].map((match) => Number(match[1])))
})

test('images opens no sockets', () => {
  const sockets = ['node:net', 'node:tls', 'node:dgram', 'node:http', 'node:https', 'node:http2']
  for (const file of sources('images')) for (const specifier of imports(file)) assert.ok(!sockets.includes(specifier), `${file} imports ${specifier}`)
})

test('every top-level folder says in a README what it holds', () => {
  for (const folder of [...Object.keys(FLOORS), 'docs']) {
    assert.ok(readFileSync(path.join(root, folder, 'README.md'), 'utf8').length > 100, folder)
  }
})

test('the lock file names no download host', () => {
  const lock = JSON.parse(readFileSync(path.join(root, 'package-lock.json'), 'utf8')) as { packages: Record<string, { resolved?: string }> }
  for (const [name, { resolved }] of Object.entries(lock.packages)) assert.ok(resolved === undefined || !resolved.includes('://'), name)
})

test('every link between pages leads to a file', () => {
  const pages = ['README.md', ...readdirSync(path.join(root, 'docs'), { recursive: true, encoding: 'utf8' }).filter((file) => file.endsWith('.md')).map((file) => path.join('docs', file))]
  for (const page of pages) {
    for (const [, link] of readFileSync(path.join(root, page), 'utf8').matchAll(/\]\(([^)#:\s]+)(?:#[^)]*)?\)/g)) {
      assert.ok(existsSync(path.join(root, path.dirname(page), link)), `${page} links to ${link}`)
    }
  }
})
