/**
 * The root filesystem of a CVD as it is served: varve serve, nbdfuse (which makes a file of it), a loop device, the kernel's mount.
 * The way of a guest, for a kernel without NBD. Debian packages: libnbd-bin, util-linux, mount.
 */
import { spawn, spawnSync } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { existsSync, mkdirSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import { LoopPartition } from '../composer/compose/raw-disk.ts'
import { VarveServer } from '../varve-command.ts'
import type { ScratchDirectory } from '../varve-command.ts'

const FILE_MS_MAX = 60_000
const POLL_MS = 50

export class ServedPartition implements AsyncDisposable {
  readonly server: VarveServer
  readonly partition: LoopPartition
  readonly #nbdfuse: NbdFile

  private constructor(server: VarveServer, nbdfuse: NbdFile, partition: LoopPartition) {
    this.server = server
    this.#nbdfuse = nbdfuse
    this.partition = partition
  }

  /** @param scratch gets the socket and the mount point of nbdfuse */
  static async open(home: string, cvd: string, place: { firstByte: number; byteLength: number }, scratch: ScratchDirectory): Promise<ServedPartition> {
    const socket = scratch.join('nbd.sock')
    await using stack = new AsyncDisposableStack()
    const server = stack.use(await VarveServer.start(home, `unix:${socket}`))
    const nbdfuse = stack.use(await NbdFile.open(scratch.join('nbd'), `nbd+unix:///${cvd}?socket=${socket}`))
    const partition = stack.use(new LoopPartition(nbdfuse.file, place))
    stack.move()
    return new ServedPartition(server, nbdfuse, partition)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.partition[Symbol.dispose]()
    await this.#nbdfuse[Symbol.asyncDispose]()
    await this.server[Symbol.asyncDispose]()
  }
}

/** An export as a read-only file. */
class NbdFile implements AsyncDisposable {
  readonly file: string
  readonly #directory: string
  readonly #process: ChildProcess
  readonly #exited: Promise<unknown>

  private constructor(directory: string, child: ChildProcess) {
    this.file = `${directory}/disk`
    this.#directory = directory
    this.#process = child
    this.#exited = new Promise((resolve) => child.on('exit', resolve))
  }

  static async open(directory: string, uri: string): Promise<NbdFile> {
    mkdirSync(directory)
    const opened = new NbdFile(directory, spawn('nbdfuse', ['-r', `${directory}/disk`, uri], { stdio: ['ignore', 'ignore', 'inherit'] }))
    for (let waitedMs = 0; !existsSync(opened.file); waitedMs += POLL_MS) {
      if (opened.#process.exitCode !== null || waitedMs > FILE_MS_MAX) {
        await opened[Symbol.asyncDispose]()
        throw new Error(`nbdfuse does not show ${uri} (exit status ${opened.#process.exitCode})`)
      }
      await delay(POLL_MS)
    }
    return opened
  }

  async [Symbol.asyncDispose](): Promise<void> {
    spawnSync('umount', [this.#directory])
    if (this.#process.exitCode === null && this.#process.signalCode === null) this.#process.kill()
    await this.#exited
    spawnSync('umount', ['-l', this.#directory])
  }
}
