/**
 * `load-process.ts MANIFEST`, the process that makes load: forked by load-generator.ts, one thread for each connection (load-thread.ts). So its CPU time is the client's.
 */
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { Worker } from 'node:worker_threads'
import type { Disks } from './disks.ts'
import type { Load, LoadFigures, ThreadFigures, ThreadLoad, ThreadMessage } from './load.ts'
import { eligibleOffsets, requestTables } from './request-table.ts'

/** Answer to a `Load`. */
export type LoadAnswer = { figures: LoadFigures } | { error: string }

const { byLayers } = JSON.parse(readFileSync(process.argv[2], 'utf8')) as Disks
const threads: Worker[] = []
const offsetsOf = new Map<string, Float64Array>()

process.on('message', (load: Load) => {
  runLoad(load).then(
    (figures) => process.send!({ figures } satisfies LoadAnswer),
    (error: Error) => process.send!({ error: error.message } satisfies LoadAnswer),
  )
})
process.on('disconnect', () => process.exit())

async function runLoad(load: Load): Promise<LoadFigures> {
  const disk = byLayers[load.layers]
  const key = JSON.stringify([load.layers, load.span, load.requestBytes, load.everyBytes, load.dataOnly])
  const offsets = offsetsOf.get(key) ?? eligibleOffsets(disk, load.span, load)
  offsetsOf.set(key, offsets)
  const gate = new Int32Array(new SharedArrayBuffer(8))
  const { address, exportName, command, fua, requestBytes, depth, leadMs, timedMs, once } = load
  const common = { address, exportName, command, fua, requestBytes, depth, leadMs, timedMs, once, rawFile: disk.rawFile, gate: gate.buffer }
  let startCpu = process.cpuUsage()
  let startMs = 0
  let clientCpu = 0
  const states = new ThreadStates(load.connections, {
    connected: () => {
      startCpu = process.cpuUsage()
      startMs = performance.now()
      Atomics.store(gate, 1, 1)
      Atomics.notify(gate, 1)
    },
    timed: () => {
      const { user, system } = process.cpuUsage(startCpu)
      clientCpu = (user + system) / 1000 / (performance.now() - startMs)
    },
  })
  const tables = requestTables(load, offsets)
  const figures = await Promise.all(tables.map((table, index) => states.run(thread(index), { ...common, ...table })))
  return { ...joined(figures, requestBytes), clientCpu }
}

/** Calls back when all threads have come to a state. */
class ThreadStates {
  readonly #threads: number
  readonly #callbacks: { connected: () => void; timed: () => void }
  readonly #counts = { connected: 0, timed: 0 }

  constructor(threads: number, callbacks: { connected: () => void; timed: () => void }) {
    this.#threads = threads
    this.#callbacks = callbacks
  }

  run(worker: Worker, load: ThreadLoad): Promise<ThreadFigures> {
    return new Promise((resolve, reject) => {
      const listener = (message: ThreadMessage): void => {
        if (message.state === 'connected' || message.state === 'timed') {
          if (++this.#counts[message.state] === this.#threads) this.#callbacks[message.state]()
          return
        }
        worker.off('message', listener)
        if (message.state === 'done') resolve(message.figures)
        else reject(new Error(message.message))
      }
      worker.on('message', listener)
      worker.postMessage(load)
    })
  }
}

function thread(index: number): Worker {
  threads[index] ??= new Worker(path.join(import.meta.dirname, 'load-thread.ts'), { trackUnmanagedFds: false })
  return threads[index]
}

function joined(figures: readonly ThreadFigures[], requestBytes: number): Omit<LoadFigures, 'clientCpu'> {
  const requestsPerSecond = figures.reduce((sum, { requests, seconds }) => sum + (seconds > 0 ? requests / seconds : 0), 0)
  const latencies = new Float32Array(figures.reduce((sum, { latenciesUs }) => sum + latenciesUs.length, 0))
  let at = 0
  for (const { latenciesUs } of figures) {
    latencies.set(latenciesUs, at)
    at += latenciesUs.length
  }
  if (latencies.length === 0) throw new Error('no request was answered while the clock ran')
  latencies.sort()
  const quantile = (share: number): number => latencies[Math.min(latencies.length - 1, Math.floor(latencies.length * share))]
  const sent = figures.reduce((sum, one) => sum + one.sent, 0)
  return { sent, requestsPerSecond, bytesPerSecond: requestsPerSecond * requestBytes, p50Us: quantile(0.5), p99Us: quantile(0.99) }
}
