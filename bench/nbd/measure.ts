/**
 * One measurement of one server for one row: by the load generator, or by a client that is not ours.
 */
import { spawnSync } from 'node:child_process'
import { execute, cvdName, SNAPSHOT } from './disks.ts'
import type { Disks } from './disks.ts'
import type { Contender } from './line-up.ts'
import type { LoadGenerator } from './load-generator.ts'
import type { Load, Span } from './load.ts'
import type { Row } from './rows.ts'

export interface Measured {
  /** MB/s or thousand requests per second, as `unitOf` says; of a `depth` row the ratio of its latencies. */
  rate: number
  p50Us?: number
  p99Us?: number
  /** Of the server, user and system, per request; of a copy, per MiB of the disk. */
  serverCpuUs?: number
  /** Cores that the client used. */
  clientCpu?: number
}

/** Chunks are of 64 KiB on average, clusters exactly: a cold load asks for each but once. */
const COLD_EVERY_BYTES = 64 << 10
/** The code of a server just started becomes fast while it is measured. */
const COLD_TIMES = 4
const DEPTH_SPAN_BYTES = 32 << 20
const DEPTH_PAIRS = 3
const TOUCH_MS_MAX = 60_000

export interface MeasureOptions {
  disks: Disks
  generator: LoadGenerator
  /** Where warm rows read. */
  warm: Span
  /** Where writing rows write. */
  written: Span
  timedMs: number
  leadMs: number
  seed: number
}

export function unitOf(row: Row): string {
  return row.kind === 'depth' ? 'x' : row.requestBytes >= 65536 ? 'MB/s' : 'kIOPS'
}

export async function measure(contender: Contender, row: Row, options: MeasureOptions): Promise<Measured> {
  if (row.kind === 'copy') return measureCopy(contender, row, options)
  if (row.kind === 'fio') return measureFio(contender, row, options)
  if (row.kind === 'depth') return measureDepth(contender, row, options)
  const before = await contender.server.cpuSeconds()
  const figures = await options.generator.run(loadOf(contender, row, options))
  const cpuSeconds = (await contender.server.cpuSeconds()) - before
  return {
    serverCpuUs: (cpuSeconds * 1e6) / figures.sent,
    rate: unitOf(row) === 'MB/s' ? figures.bytesPerSecond / 1e6 : figures.requestsPerSecond / 1000,
    p50Us: figures.p50Us,
    p99Us: figures.p99Us,
    clientCpu: figures.clientCpu,
  }
}

/** All of a span once and in order, holes too. */
function wholeSpan(requestBytes: number): Partial<Load> {
  return { requestBytes, depth: 8, connections: 1, order: 'sequential', fua: false, dataOnly: false, leadMs: 0, timedMs: TOUCH_MS_MAX, once: true }
}

/** Reads a span, so that it is in whatever cache the server has; or writes it, so that it is allocated. */
export async function touch(contender: Contender, row: Row, options: MeasureOptions & { span: Span }): Promise<void> {
  await options.generator.run({ ...loadOf(contender, row, options), span: options.span, ...wholeSpan(row.kind === 'write' ? 1 << 20 : 64 << 10) })
}

function loadOf({ server, exportName }: Contender, row: Row, options: MeasureOptions): Load {
  const { transport, depth, connections, requestBytes, order, fua } = row
  const cold = row.kind === 'cold'
  const all = { offset: 0, length: options.disks.byLayers[5].sizeBytes }
  return {
    address: server.address(transport), exportName, layers: 5, depth, connections, requestBytes, order, fua, seed: options.seed,
    span: row.kind === 'warm' ? options.warm : row.kind === 'write' ? options.written : all,
    command: row.kind === 'write' ? 'write' : 'read',
    dataOnly: true,
    everyBytes: cold ? COLD_EVERY_BYTES : 0,
    once: cold,
    leadMs: cold ? 0 : options.leadMs,
    timedMs: cold ? COLD_TIMES * options.timedMs : options.timedMs,
  }
}

/** Latency with 64 layers over that with 1, in turns, each in the same caches. */
async function measureDepth({ server, name }: Contender, row: Row, options: MeasureOptions): Promise<Measured> {
  const spans = new Map([1, 64].map((layers) => [layers, dataSpan(options.disks, layers, DEPTH_SPAN_BYTES)]))
  const sums = new Map([[1, 0], [64, 0]])
  const run = async (layers: number, change: Partial<Load>): Promise<number> => {
    const load = loadOf({ server, name, exportName: `${cvdName(layers)}@${SNAPSHOT}` }, row, options)
    return (await options.generator.run({ ...load, layers, span: spans.get(layers)!, ...change })).p50Us
  }
  for (const layers of [1, 64]) await run(layers, wholeSpan(64 << 10))
  for (let pair = 0; pair < DEPTH_PAIRS; pair++) {
    for (const layers of pair % 2 === 0 ? [1, 64] : [64, 1]) sums.set(layers, sums.get(layers)! + (await run(layers, {})))
  }
  return { rate: sums.get(64)! / sums.get(1)! }
}

/** A span that begins at a quarter of the data and holds so much of it. */
export function dataSpan(disks: Disks, layers: number, dataBytes: number): Span {
  const { extents, sizeBytes } = disks.byLayers[layers]
  const total = totalBytes(extents)
  if (dataBytes >= total) return { offset: 0, length: sizeBytes }
  const skipped = Math.min(total / 4, total - dataBytes)
  let offset: number | undefined
  let passed = 0
  for (let at = 0; at < extents.length; at += 2) {
    if (passed >= skipped) offset ??= extents[at]
    passed += extents[at + 1]
    if (offset !== undefined && passed >= skipped + dataBytes) return { offset, length: extents[at] + extents[at + 1] - offset }
  }
  return { offset: offset ?? 0, length: sizeBytes - (offset ?? 0) }
}

export function totalBytes(extents: readonly number[]): number {
  return extents.reduce((sum, value, index) => sum + (index % 2 === 1 ? value : 0), 0)
}

async function measureCopy({ server, exportName }: Contender, row: Row, { disks }: MeasureOptions): Promise<Measured> {
  const bytes = totalBytes(disks.byLayers[5].extents)
  const before = await server.cpuSeconds()
  const started = performance.now()
  execute('nbdcopy', [`--connections=${row.connections}`, server.uri(row.transport, exportName), 'null:'])
  const seconds = (performance.now() - started) / 1000
  const cpuSeconds = (await server.cpuSeconds()) - before
  return { rate: bytes / 1e6 / seconds, serverCpuUs: (cpuSeconds * 1e6) / (bytes / 2 ** 20) }
}

function measureFio({ server, exportName }: Contender, row: Row, { warm, timedMs, leadMs, seed }: MeasureOptions): Measured {
  const offset = Math.ceil(warm.offset / row.requestBytes) * row.requestBytes
  const { status, stdout, stderr } = spawnSync('fio', [
    '--name=random', '--ioengine=nbd', `--uri=${server.uri(row.transport, exportName)}`, '--rw=randread', `--bs=${row.requestBytes}`, `--iodepth=${row.depth}`,
    `--offset=${offset}`, `--size=${Math.floor(warm.length / row.requestBytes) * row.requestBytes}`, '--norandommap', `--randseed=${seed}`,
    '--time_based', `--runtime=${timedMs}ms`, `--ramp_time=${leadMs}ms`, '--output-format=json',
  ], { encoding: 'utf8' })
  if (status !== 0) throw new Error(`fio ended with ${status}\n${stderr}\n${stdout.slice(-2000)}`)
  const { jobs } = JSON.parse(stdout.slice(stdout.indexOf('{'))) as { jobs: { read: { iops: number; clat_ns: { percentile: Record<string, number> } }; usr_cpu: number; sys_cpu: number }[] }
  const [{ read, usr_cpu, sys_cpu }] = jobs
  return { rate: read.iops / 1000, p50Us: read.clat_ns.percentile['50.000000'] / 1000, p99Us: read.clat_ns.percentile['99.000000'] / 1000, clientCpu: (usr_cpu + sys_cpu) / 100 }
}
