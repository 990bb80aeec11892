/**
 * Ways to boot a disk that is at the other end of a line. Each is set up off the clock: servers at the far end, the line. What the near end
 * has to do before the guest is powered on, such as copying, is on the clock.
 */
import path from 'node:path'
import { startNbdkit, startQemuNbd } from '../nbd/servers.ts'
import type { PeerOptions } from '../nbd/servers.ts'
import { varve, VarveServer } from '../../test/varve-command.ts'
import { CVD, execute, executeInTheBackground } from './images.ts'
import type { Homes, Images } from './images.ts'
import { VarveProcess } from './varve-process.ts'

/** What a variant is set up with. */
export interface Stage {
  images: Images
  /** For files of this boot alone. */
  directory: string
  /** Ends what the variant starts, when the boot is over. */
  stack: AsyncDisposableStack
  /** Puts the line in front of a server. @returns `HOST:PORT` of its near end */
  line: (target: string, protocol: 'nbd' | 'stream') => Promise<string>
}

/** Value of QEMU's -drive, less what all disks have in common. */
type Drive = string

export interface Variant {
  name: string
  /** The guest reads from a local disk: what goes over the line is not waited for by it. */
  copiesFirst?: true
  /** @returns what is done on the clock */
  prepare: (stage: Stage) => Promise<() => Promise<Drive>>
}

export const FLOOR = 'local raw file'
export const COPY_PEER = 'nbdcopy, then boot'
/** Ours, by what the server knows of the boot: it was recorded; nothing; that of another system of the same packages. */
export const OURS = { learned: 'varve', never: 'varve, never booted', other: 'varve, boot set of another system' } as const

export const PEERS: readonly Variant[] = [
  {
    name: COPY_PEER,
    copiesFirst: true,
    async prepare({ images, directory, stack, line }) {
      const server = stack.use(await startNbdkit(['file', images.qcow2File], far(directory)))
      const near = await line(server.address('tcp'), 'nbd')
      const copy = path.join(directory, 'copy.qcow2')
      return async () => {
        await executeInTheBackground('nbdcopy', [`nbd://${near}`, copy])
        return `file=${copy},format=qcow2`
      }
    },
  },
  {
    name: 'qemu on nbdkit',
    async prepare({ images, directory, stack, line }) {
      const server = stack.use(await startNbdkit(['file', images.rawFile], far(directory)))
      const drive = overlayOn(await line(server.address('tcp'), 'nbd'), images, directory)
      return async () => drive
    },
  },
  {
    name: 'qemu on qemu-nbd',
    async prepare({ images, directory, stack, line }) {
      const server = stack.use(await startQemuNbd(images.rawFile, 'raw', far(directory)))
      const drive = overlayOn(await line(server.address('tcp'), 'nbd'), images, directory)
      return async () => drive
    },
  },
  {
    name: 'nbdkit cow, readahead, cache',
    async prepare({ images, directory, stack, line }) {
      const server = stack.use(await startNbdkit(['file', images.rawFile], far(directory)))
      const near = await line(server.address('tcp'), 'nbd')
      return async () => {
        // Read-ahead asks what is below it to cache: nbdkit-readahead-filter(1).
        const filters = ['cow', 'readahead', 'cache'].map((filter) => `--filter=${filter}`)
        const local = stack.use(await startNbdkit([...filters, 'nbd', `uri=nbd://${near}`, 'cow-on-read=true', 'cache-on-read=true'], { transport: 'unix', directory, readOnly: false }))
        return `file=${local.uri('unix', '')},format=raw`
      }
    },
  },
]

export const FLOOR_VARIANT: Variant = {
  name: FLOOR,
  copiesFirst: true,
  async prepare({ images, directory }) {
    const copy = path.join(directory, 'disk.raw')
    execute('cp', ['--sparse=always', '--reflink=auto', images.rawFile, copy])
    return async () => `file=${copy},format=raw`
  },
}

export const OUR_VARIANTS: readonly Variant[] = [
  { name: OURS.learned, prepare: streamed('learned') },
  { name: OURS.never, prepare: streamed('never') },
  { name: OURS.other, prepare: streamed('other') },
]

/** From a copy of a home, which learns from the boot. */
function streamed(knowing: keyof Homes): Variant['prepare'] {
  return async ({ images, directory, stack, line }) => {
    const home = path.join(directory, 'home')
    execute('cp', ['-a', images.homes[knowing], home])
    const server = stack.use(await VarveServer.start(home, `unix:${path.join(directory, 'far.sock')}`, { args: ['--http', '127.0.0.1:0'] }))
    const { token } = varve(home, ['agent', 'token']).json as { token: string }
    const near = await line((server.document as { http: string }).http, 'stream')
    return async () => {
      const socket = path.join(directory, 'near.sock')
      const agent = stack.use(new VarveProcess([
        'agent', 'stream', CVD, '--to', path.join(directory, 'target.raw'), '--nbd', `unix:${socket}`, '--from', `http://${near}`, '--token', token, '--identity', path.join(directory, 'identity.json'),
      ], { XDG_RUNTIME_DIR: directory }))
      await agent.document()
      return `file=nbd+unix:///${CVD}?socket=${socket},format=raw`
    }
  }
}

function far(directory: string): PeerOptions {
  return { transport: 'tcp', directory, readOnly: true }
}

/** What the guest writes stays at the near end, and costs no reads: a subcluster is a block of its filesystem. */
function overlayOn(near: string, { sizeBytes }: Images, directory: string): Drive {
  const overlay = path.join(directory, 'overlay.qcow2')
  execute('qemu-img', ['create', '-q', '-u', '-f', 'qcow2', '-o', 'extended_l2=on,cluster_size=128k', '-F', 'raw', '-b', `nbd://${near}`, overlay, String(sizeBytes)])
  return `file=${overlay},format=qcow2`
}
