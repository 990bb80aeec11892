/**
 * The root directory in which the agent lives on a recovery medium: Node, the varve command as it is published, and what they load.
 */
import { chmodSync, copyFileSync, cpSync, existsSync, globSync, mkdirSync, readFileSync, realpathSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { run } from './debian-packages.ts'
import { copyInto, libraries } from './programs.ts'

/** In a checkout its root; in the published package `dist`. */
const here = path.resolve(import.meta.dirname, '../..')
/** What packages carry beside what runs: declarations, sources of native code, texts. */
const UNNEEDED = /\.(ts|map|md|markdown|c|cc|cpp|h|hpp|gyp|gypi|gz|o|a)$/i

interface Manifest {
  dependencies?: Record<string, string>
  optionalDependencies?: Record<string, string>
}

/** @param options.certificates PEM file of authorities that sign the server's certificate, beside those that Node knows */
export function fillAgentRoot(root: string, options: { certificates?: string }): void {
  for (const folder of ['bin', 'etc', 'usr/bin', 'varve']) mkdirSync(path.join(root, folder), { recursive: true })
  // Static: it needs no libraries.
  copyInto(root, ['/bin/busybox'])
  const node = path.join(root, 'usr/bin/node')
  copyFileSync(process.execPath, node)
  copyInto(root, libraries(node))
  for (const [script, place] of [['varve.sh', 'usr/bin/varve'], ['udhcpc.sh', 'etc/udhcpc.sh']]) {
    copyFileSync(path.join(import.meta.dirname, script), path.join(root, place))
    chmodSync(path.join(root, place), 0o755)
  }
  writeFileSync(path.join(root, 'etc/passwd'), 'root:x:0:0:root:/run:/bin/sh\n')
  writeFileSync(path.join(root, 'etc/nsswitch.conf'), 'hosts: files dns\n')
  writeFileSync(path.join(root, 'etc/hosts'), '127.0.0.1 localhost\n')
  if (options.certificates !== undefined) copyFileSync(options.certificates, path.join(root, 'etc/authorities.pem'))
  copyCommand(path.join(root, 'varve'))
  for (const library of globSync('varve/node_modules/**/*.node', { cwd: root })) addLibrary(root, path.join(root, library))
}

/** Some packages carry their native code for all systems. */
function addLibrary(root: string, library: string): void {
  let needed: string[]
  try {
    needed = libraries(library)
  } catch {
    rmSync(library)
    return
  }
  copyInto(root, needed)
}

function copyCommand(to: string): void {
  const checkout = existsSync(path.join(here, 'tools/build.ts'))
  const packageRoot = realpathSync(checkout ? here : path.dirname(here))
  // A checkout is built for the medium alone: others may be using its dist/.
  if (checkout) run(process.execPath, [path.join(here, 'tools/build.ts'), path.join(to, 'dist')])
  else cpSync(here, path.join(to, 'dist'), { recursive: true, filter: (file) => !UNNEEDED.test(file) })
  copyFileSync(path.join(packageRoot, 'package.json'), path.join(to, 'package.json'))
  const installed = new Set<string>()
  addDependencies(packageRoot, installed)
  // Installed below the package, or beside it.
  const places = [path.join(packageRoot, 'node_modules'), path.dirname(packageRoot)]
  for (const directory of installed) {
    const modules = places.find((place) => directory.startsWith(`${place}${path.sep}`))
    if (modules === undefined) throw new Error(`${directory} is neither below nor beside ${packageRoot}`)
    const place = path.join(to, 'node_modules', path.relative(modules, directory))
    // Packages within it are on the list themselves, if they are needed.
    cpSync(directory, place, { recursive: true, filter: (file) => !UNNEEDED.test(file) && path.relative(directory, file).split(path.sep)[0] !== 'node_modules' })
  }
}

/** Adds the directories of what the package at `directory` depends on, and of what that does. */
function addDependencies(directory: string, installed: Set<string>): void {
  const { dependencies = {}, optionalDependencies = {} } = JSON.parse(readFileSync(path.join(directory, 'package.json'), 'utf8')) as Manifest
  for (const name of new Set([...Object.keys(dependencies), ...Object.keys(optionalDependencies)])) {
    const found = resolvePackage(name, directory)
    if (found === undefined) {
      // Those of other systems and processors are not there.
      if (name in optionalDependencies) continue
      throw new Error(`${directory} needs ${name}, which is not installed`)
    }
    if (installed.has(found)) continue
    installed.add(found)
    addDependencies(found, installed)
  }
}

/** As Node looks for it. */
function resolvePackage(name: string, from: string): string | undefined {
  for (let directory = from; ; directory = path.dirname(directory)) {
    const candidate = path.join(directory, 'node_modules', name)
    if (existsSync(path.join(candidate, 'package.json'))) return realpathSync(candidate)
    if (directory === path.dirname(directory)) return undefined
  }
}
