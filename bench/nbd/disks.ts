/**
 * One disk in every form that the servers offer: files of this machine's /usr, imported as layers and composed by Varve; copied out as a
 * raw file; and as qcow2 chains in which every cluster lies in a random image of the chain, as the files lie in random layers.
 */
import { execFileSync } from 'node:child_process'
import { closeSync, copyFileSync, existsSync, ftruncateSync, linkSync, mkdirSync, openSync, readFileSync, readSync, readdirSync, rmSync, statSync, writeFileSync, writeSync } from 'node:fs'
import path from 'node:path'
import { Random } from '../../test/random.ts'
import { startVarve } from './servers.ts'
import type { LoadDisk } from './load.ts'
import { shuffled } from './request-table.ts'

/** The CVDs, by their number of layers; each has a snapshot of this name. */
export const DEPTHS = [1, 5, 64] as const
export const SNAPSHOT = 'bench'
/** Stacks the same layers as the CVD of 5; what the writing loads write is kept in it. */
export const WRITTEN_CVD = 'written'
export const CHAIN_DEPTHS = [4, 64] as const

/** Files larger than this would be most of a layer. */
const FILE_BYTES_MAX = 64 << 20
/** Of a qcow2 image, by default. */
const CLUSTER_BYTES = 64 << 10
const launcher = path.resolve(import.meta.dirname, '../../tools/varve')

export interface Disks {
  directory: string
  home: string
  contentBytes: number
  files: number
  /** As composed, by the number of layers: the same files lie elsewhere in each. */
  byLayers: Record<number, LoadDisk>
}

/** Where `Disks` are described, for the process that makes load. */
export function manifestFile(directory: string): string {
  return path.join(directory, 'disks.json')
}

export function cvdName(layers: number): string {
  return `layers${layers}`
}

/** Top image of a chain. */
export function chainImage(directory: string, depth: number, options: { compressed: boolean }): string {
  return path.join(directory, `${options.compressed ? 'zstd' : 'plain'}${depth}`, `${depth - 1}.qcow2`)
}

export function execute(command: string, args: string[]): string {
  return execFileSync(command, args, { encoding: 'utf8', maxBuffer: 1 << 30, stdio: ['ignore', 'pipe', 'pipe'] })
}

/** Makes them in `directory`, or takes what an earlier run made there of the same content. */
export async function prepareDisks(directory: string, options: { contentBytes: number; seed: number }): Promise<Disks> {
  const manifest = manifestFile(directory)
  if (existsSync(manifest)) {
    const kept = JSON.parse(readFileSync(manifest, 'utf8')) as Disks
    if (Math.abs(kept.contentBytes - options.contentBytes) < FILE_BYTES_MAX && kept.directory === directory) return kept
    throw new Error(`${directory} holds disks of ${kept.contentBytes >> 20} MiB; remove what is in it, or set VARVE_BENCH_MIB`)
  }
  if (readdirSync(directory).length > 0) throw new Error(`${directory} holds no disks that were finished; remove what is in it`)
  console.error(`Preparing disks of ${options.contentBytes >> 20} MiB in ${directory}`)
  const random = new Random(options.seed)
  const home = path.join(directory, 'home')
  const { files, contentBytes } = copyFiles(path.join(directory, 'all'), options.contentBytes, random)
  linkLayers(directory, files)
  for (const layers of DEPTHS) importCvd(directory, home, layers, contentBytes)
  for (const tree of ['all', ...DEPTHS.map(cvdName)]) rmSync(path.join(directory, tree), { recursive: true })
  const disks: Disks = { directory, home, contentBytes, files: files.length, byLayers: await copyOut(home, directory) }
  const disk = disks.byLayers[5]
  for (const depth of CHAIN_DEPTHS) makeChain(disk, directory, { depth, compressed: false, random })
  makeChain(disk, directory, { depth: 4, compressed: true, random })
  writeFileSync(manifest, JSON.stringify(disks))
  return disks
}

/** Files of /usr in random order until there are enough. @returns their paths below `to` */
function copyFiles(to: string, bytesMax: number, random: Random): { files: string[]; contentBytes: number } {
  const all = execute('find', ['/usr', '-xdev', '-type', 'f', '-size', '+0', '-size', `-${FILE_BYTES_MAX}c`, '-printf', '%P\\0']).split('\0').slice(0, -1).sort()
  const files: string[] = []
  let contentBytes = 0
  for (const file of shuffled(all, random)) {
    mkdirSync(path.dirname(path.join(to, file)), { recursive: true })
    copyFileSync(path.join('/usr', file), path.join(to, file))
    files.push(file)
    contentBytes += statSync(path.join(to, file)).size
    if (contentBytes >= bytesMax) return { files, contentBytes }
  }
  throw new Error(`/usr holds only ${contentBytes >> 20} MiB; set VARVE_BENCH_MIB to less`)
}

/** All of them before anything is imported: a link changes the ctime by which an import knows a file again. */
function linkLayers(directory: string, files: readonly string[]): void {
  for (const layers of DEPTHS) {
    for (const [index, file] of files.entries()) {
      const to = path.join(directory, cvdName(layers), String(index % layers), file)
      mkdirSync(path.dirname(to), { recursive: true })
      linkSync(path.join(directory, 'all', file), to)
    }
  }
}

function importCvd(directory: string, home: string, layers: number, contentBytes: number): void {
  const common = ['--home', home, '--json']
  const names = Array.from({ length: layers }, (_, index) => `l${layers}-${index}`)
  for (const [index, name] of names.entries()) {
    execute(launcher, ['layer', 'import', name, `dir:${path.join(directory, cvdName(layers), String(index))}`, '--kind', index === 0 ? 'base' : 'app', ...common])
  }
  const sizeMiB = Math.ceil((contentBytes * 1.15) / 2 ** 20) + 64
  const cvds = layers === 5 ? [cvdName(layers), WRITTEN_CVD] : [cvdName(layers)]
  for (const cvd of cvds) execute(launcher, ['cvd', 'create', cvd, ...names.flatMap((name) => ['--layer', name]), '--boot', 'none', '--size', `${sizeMiB}M`, '--label', 'bench', ...common])
  execute(launcher, ['snapshot', 'create', cvdName(layers), SNAPSHOT, ...common])
}

/** Copies the composed disks out. */
async function copyOut(home: string, directory: string): Promise<Record<number, LoadDisk>> {
  await using server = await startVarve(home, directory)
  const disks: Record<number, LoadDisk> = {}
  for (const layers of DEPTHS) {
    const uri = server.uri('unix', `${cvdName(layers)}@${SNAPSHOT}`)
    const rawFile = path.join(directory, `disk${layers}.raw`)
    execute('nbdcopy', [uri, rawFile])
    const map = JSON.parse(execute('nbdinfo', ['--map', '--json', uri])) as { offset: number; length: number; type: number }[]
    disks[layers] = { rawFile, sizeBytes: statSync(rawFile).size, extents: map.filter(({ type }) => type === 0).flatMap(({ offset, length }) => [offset, length]) }
  }
  return disks
}

function makeChain(disk: LoadDisk, directory: string, options: { depth: number; compressed: boolean; random: Random }): void {
  const { rawFile, sizeBytes, extents } = disk
  const { depth, compressed, random } = options
  const top = chainImage(directory, depth, { compressed })
  mkdirSync(path.dirname(top))
  const raw = openSync(rawFile, 'r')
  const parts = Array.from({ length: depth }, (_, index) => openSync(path.join(path.dirname(top), `${index}.raw`), 'w'))
  const cluster = Buffer.alloc(CLUSTER_BYTES)
  for (const part of parts) ftruncateSync(part, sizeBytes)
  let done = 0
  for (let at = 0; at < extents.length; at += 2) {
    for (let offset = Math.max(done, Math.floor(extents[at] / CLUSTER_BYTES) * CLUSTER_BYTES); offset < extents[at] + extents[at + 1]; offset += CLUSTER_BYTES) {
      const bytes = readSync(raw, cluster, 0, CLUSTER_BYTES, offset)
      writeSync(random.pick(parts), cluster, 0, bytes, offset)
      done = offset + CLUSTER_BYTES
    }
  }
  for (const fd of [raw, ...parts]) closeSync(fd)
  for (let index = 0; index < depth; index++) {
    const part = path.join(path.dirname(top), `${index}.raw`)
    const image = path.join(path.dirname(top), `${index}.qcow2`)
    execute('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', ...(compressed ? ['-c', '-o', 'compression_type=zstd'] : []), part, image])
    if (index > 0) execute('qemu-img', ['rebase', '-u', '-F', 'qcow2', '-b', `${index - 1}.qcow2`, image])
    rmSync(part)
  }
}
