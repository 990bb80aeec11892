/**
 * Which servers are measured for which rows; all of one transport run at once, and those of the other are not there.
 */
import { ftruncateSync, closeSync, mkdirSync, openSync } from 'node:fs'
import path from 'node:path'
import { chainImage, cvdName, execute, SNAPSHOT, WRITTEN_CVD } from './disks.ts'
import type { Disks } from './disks.ts'
import { PEERS } from './rows.ts'
import type { Peer, Row } from './rows.ts'
import { startNbdkit, startNbdServer, startQemuNbd, startVarve } from './servers.ts'
import type { PeerOptions, Server, Transport } from './servers.ts'

export const OURS = 'varve'

/** An export of a server that runs. */
export interface Contender {
  name: string
  server: Server
  exportName: string
}

const PEERS_OF: Record<Row['kind'], readonly Peer[]> = {
  warm: [PEERS.memory, PEERS.file, PEERS.raw, PEERS.chain4, PEERS.chain64, PEERS.nbdServer],
  all: [PEERS.memory, PEERS.file, PEERS.raw, PEERS.chain4, PEERS.chain64, PEERS.nbdServer],
  copy: [PEERS.memory, PEERS.file, PEERS.raw, PEERS.chain4, PEERS.chain64, PEERS.nbdServer],
  fio: [PEERS.memory, PEERS.raw, PEERS.chain4],
  write: [PEERS.memory, PEERS.file, PEERS.raw, PEERS.nbdServer, PEERS.overlay],
  cold: [PEERS.zstd4],
  depth: [],
}
const COMPOSED = `${cvdName(5)}@${SNAPSHOT}`

export class LineUp implements AsyncDisposable {
  readonly #disks: Disks
  readonly #transport: Transport
  readonly #directory: string
  readonly #peers: RegExp
  readonly #readers = new Map<string, Contender>()
  readonly #writers = new Map<string, Contender>()

  private constructor(disks: Disks, options: { transport: Transport; scratch: string; peers: RegExp }) {
    this.#disks = disks
    this.#transport = options.transport
    this.#directory = path.join(options.scratch, options.transport)
    this.#peers = options.peers
    mkdirSync(this.#directory)
  }

  /** Starts what `rows` of one transport need. @param options.scratch directory for sockets, logs and what is written */
  static async start(disks: Disks, rows: readonly Row[], options: { transport: Transport; scratch: string; peers: RegExp }): Promise<LineUp> {
    const lineUp = new LineUp(disks, options)
    try {
      await lineUp.#start(rows)
      return lineUp
    } catch (error) {
      await lineUp[Symbol.asyncDispose]()
      throw error
    }
  }

  async #start(rows: readonly Row[]): Promise<void> {
    const ours = await startVarve(this.#disks.home, this.#directory)
    this.#readers.set(OURS, { name: OURS, server: ours, exportName: COMPOSED })
    this.#writers.set(OURS, { name: OURS, server: ours, exportName: WRITTEN_CVD })
    for (const row of rows) {
      const writes = row.kind === 'write'
      const running = writes ? this.#writers : this.#readers
      for (const name of this.#peersOf(row)) {
        if (row.kind === 'cold' || running.has(name)) continue
        running.set(name, { name, server: await (writes ? this.#startWriter(name) : this.#startReader(name)), exportName: name === PEERS.nbdServer ? 'disk' : '' })
      }
    }
  }

  /** In the order in which they are given to a row. */
  contenders(row: Row): Contender[] {
    const running = row.kind === 'write' ? this.#writers : this.#readers
    return [OURS, ...this.#peersOf(row)].map((name) => running.get(name)!)
  }

  /** A server without anything in its caches, for one measurement. */
  async fresh(name: string): Promise<Contender> {
    if (name === OURS) return { name, server: await startVarve(this.#disks.home, this.#directory), exportName: COMPOSED }
    return { name, server: await this.#startReader(name as Peer), exportName: '' }
  }

  /** Names that `fresh` takes for a row. */
  freshNames(row: Row): string[] {
    return [OURS, ...this.#peersOf(row)]
  }

  #peersOf(row: Row): Peer[] {
    return PEERS_OF[row.kind].filter((name) => this.#peers.test(name))
  }

  async #startReader(name: Peer): Promise<Server> {
    const { directory } = this.#disks
    const { rawFile, sizeBytes } = this.#disks.byLayers[5]
    const options: PeerOptions = { transport: this.#transport, directory: this.#directory, readOnly: true }
    switch (name) {
      case PEERS.memory: {
        const server = await startNbdkit(['memory', `size=${sizeBytes}`], { ...options, readOnly: false })
        execute('nbdcopy', [rawFile, server.uri(this.#transport, '')])
        return server
      }
      case PEERS.file: return startNbdkit(['file', rawFile], options)
      case PEERS.raw: return startQemuNbd(rawFile, 'raw', options)
      case PEERS.nbdServer: return startNbdServer(rawFile, options)
      case PEERS.chain4: return startQemuNbd(chainImage(directory, 4, { compressed: false }), 'qcow2', options)
      case PEERS.chain64: return startQemuNbd(chainImage(directory, 64, { compressed: false }), 'qcow2', options)
      case PEERS.zstd4: return startQemuNbd(chainImage(directory, 4, { compressed: true }), 'qcow2', options)
      case PEERS.overlay: throw new Error(`${name} is written, not read`)
    }
  }

  /** What is written lies in files of its own, which hold nothing else. */
  async #startWriter(name: Peer): Promise<Server> {
    const { sizeBytes } = this.#disks.byLayers[5]
    const options: PeerOptions = { transport: this.#transport, directory: this.#directory, readOnly: false }
    const image = path.join(this.#directory, `${name.replaceAll(' ', '-')}.img`)
    if (name === PEERS.overlay) {
      execute('qemu-img', ['create', '-q', '-f', 'qcow2', '-F', 'qcow2', '-b', chainImage(this.#disks.directory, 4, { compressed: false }), image])
      return startQemuNbd(image, 'qcow2', options)
    }
    if (name === PEERS.memory) return startNbdkit(['memory', `size=${sizeBytes}`], options)
    const fd = openSync(image, 'w')
    ftruncateSync(fd, sizeBytes)
    closeSync(fd)
    switch (name) {
      case PEERS.file: return startNbdkit(['file', image], options)
      case PEERS.raw: return startQemuNbd(image, 'raw', options)
      case PEERS.nbdServer: return startNbdServer(image, options)
      default: throw new Error(`${name} is read, not written`)
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const server of new Set([...this.#readers.values(), ...this.#writers.values()].map((contender) => contender.server))) await server[Symbol.asyncDispose]()
  }
}
