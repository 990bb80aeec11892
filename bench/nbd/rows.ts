/**
 * What is measured, and what is hoped for.
 */
import type { Transport } from './servers.ts'

/** Names of the peers, as figures show them. */
export const PEERS = {
  memory: 'nbdkit memory',
  file: 'nbdkit file',
  raw: 'qemu-nbd raw',
  chain4: 'qemu-nbd qcow2 chain of 4',
  chain64: 'qemu-nbd qcow2 chain of 64',
  nbdServer: 'nbd-server',
  zstd4: 'qemu-nbd zstd qcow2 chain of 4',
  overlay: 'qemu-nbd qcow2 over a chain of 4',
} as const

export type Peer = (typeof PEERS)[keyof typeof PEERS]

export interface Row {
  name: string
  transport: Transport
  /**
   * `warm`: reads within the warm span; `all`: anywhere in the disk; `write`: in the CVD; `cold`: everywhere once, by a fresh server;
   * `depth`: in the CVDs of 1 and of 64 layers; `copy`: the whole disk by nbdcopy; `fio`: the warm span by fio.
   */
  kind: 'warm' | 'all' | 'write' | 'cold' | 'depth' | 'copy' | 'fio'
  requestBytes: number
  depth: number
  connections: number
  order: 'sequential' | 'random'
  fua: boolean
  /** Least ratio against each of these peers. */
  goals: Partial<Record<Peer, number>>
}

const SEQUENTIAL = { requestBytes: 1 << 20, depth: 4, connections: 1, order: 'sequential', fua: false } as const
const RANDOM = { requestBytes: 4096, depth: 1, connections: 1, order: 'random', fua: false } as const
const COLD = { kind: 'cold', goals: { [PEERS.zstd4]: 1.5 } } as const

const READS = { warm: '', all: 'whole disk, ', cold: 'cold ' } as const

function randomReads(transport: Transport, kind: keyof typeof READS, row: { bytes: number; depth: number; connections: number }, goals: Row['goals'] = {}): Row {
  const { bytes, depth, connections } = row
  const name = `${transport}: ${READS[kind]}random read, ${bytes >> 10} KiB, depth ${depth}${connections === 1 ? '' : `, ${connections} connections`}`
  return { ...RANDOM, name, transport, kind, requestBytes: bytes, depth, connections, goals }
}

function randomWrites(depth: number, fua: boolean): Row {
  return { ...RANDOM, name: `unix: random write${fua ? ', FUA' : ''}, 4 KiB, depth ${depth}`, transport: 'unix', kind: 'write', depth, fua, goals: fua ? { [PEERS.raw]: 1 } : {} }
}

/** Goals are for the unix socket: on TCP both sides pay for the same network stack. */
export const ROWS: readonly Row[] = [
  { ...SEQUENTIAL, name: 'unix: sequential read, 1 MiB, depth 4', transport: 'unix', kind: 'warm', goals: { [PEERS.memory]: 1, [PEERS.chain4]: 2 } },
  { ...SEQUENTIAL, name: 'unix: sequential read, 1 MiB, depth 4, 4 connections', transport: 'unix', kind: 'warm', connections: 4, goals: {} },
  randomReads('unix', 'warm', { bytes: 4096, depth: 1, connections: 1 }, { [PEERS.memory]: 1.3, [PEERS.chain4]: 2.2 }),
  randomReads('unix', 'warm', { bytes: 4096, depth: 16, connections: 1 }),
  randomReads('unix', 'warm', { bytes: 4096, depth: 64, connections: 1 }),
  randomReads('unix', 'warm', { bytes: 4096, depth: 1, connections: 4 }),
  randomReads('unix', 'warm', { bytes: 4096, depth: 16, connections: 4 }),
  randomReads('unix', 'warm', { bytes: 4096, depth: 64, connections: 4 }, { [PEERS.memory]: 4, [PEERS.chain4]: 10 }),
  randomReads('unix', 'warm', { bytes: 65536, depth: 8, connections: 1 }, { [PEERS.memory]: 1.1, [PEERS.chain4]: 1.2 }),
  randomReads('unix', 'warm', { bytes: 65536, depth: 8, connections: 4 }),
  { ...RANDOM, name: 'unix: fio, random read, 4 KiB, depth 1', transport: 'unix', kind: 'fio', goals: {} },
  { ...RANDOM, name: 'unix: fio, random read, 4 KiB, depth 64', transport: 'unix', kind: 'fio', depth: 64, goals: {} },
  { ...SEQUENTIAL, name: 'unix: nbdcopy, 4 connections', transport: 'unix', kind: 'copy', connections: 4, goals: { [PEERS.memory]: 1.5, [PEERS.chain4]: 2 } },
  randomReads('unix', 'all', { bytes: 4096, depth: 16, connections: 1 }),
  { ...SEQUENTIAL, name: 'unix: sequential write, 1 MiB, depth 4', transport: 'unix', kind: 'write', goals: {} },
  ...[1, 16, 64].map((depth) => randomWrites(depth, false)),
  ...[1, 16, 64].map((depth) => randomWrites(depth, true)),
  { ...RANDOM, name: 'unix: latency of 64 layers over that of 1, 4 KiB, depth 1', transport: 'unix', kind: 'depth', goals: {} },
  { ...SEQUENTIAL, ...COLD, name: 'unix: cold sequential read, 1 MiB, depth 4', transport: 'unix' },
  randomReads('unix', 'cold', { bytes: 4096, depth: 1, connections: 1 }, COLD.goals),
  randomReads('unix', 'cold', { bytes: 4096, depth: 64, connections: 4 }, COLD.goals),
  randomReads('unix', 'cold', { bytes: 65536, depth: 8, connections: 1 }, COLD.goals),
  { ...SEQUENTIAL, name: 'tcp: sequential read, 1 MiB, depth 4', transport: 'tcp', kind: 'warm', goals: {} },
  randomReads('tcp', 'warm', { bytes: 4096, depth: 1, connections: 1 }),
  randomReads('tcp', 'warm', { bytes: 4096, depth: 64, connections: 4 }),
  randomReads('tcp', 'warm', { bytes: 65536, depth: 8, connections: 1 }),
  { ...SEQUENTIAL, name: 'tcp: nbdcopy, 4 connections', transport: 'tcp', kind: 'copy', connections: 4, goals: {} },
]
