/**
 * Hostile peers: mutated handshakes and requests from a seed, and clients that keep the server waiting, flood it, or lie about lengths.
 */
import net from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { Random } from '../../random.ts'
import { counted, extendedRequest, go, metaContext, option, request, uint32, uint64 } from './raw-peer.ts'

const MiB = 1024 * 1024
/** A meta context that a test's export may have, and others do not. */
export const CONTEXT = 'x-test:all'

function someName(random: Random, victim: string): Buffer {
  return random.chance(0.7) ? Buffer.from(random.pick([victim, '', 'missing'])) : random.bytes(random.pick([1, 40, 4096, 4097, 60_000]))
}

function someOption(random: Random, victim: string): Buffer {
  switch (random.below(9)) {
    case 0: return option(3)
    case 1: return option(random.pick([8, 11]))
    case 2: return go(someName(random, victim), [0, 1, 2, 3], 6)
    case 3: return metaContext(10, victim, random.pick([['base:allocation'], ['base:allocation', CONTEXT], ['x-test:']]))
    case 4: return metaContext(9, random.pick([victim, 'missing']), random.pick([[], ['base:'], ['x'], Array.from({ length: 130 }, () => 'a:b')]))
    case 5: return option(random.uint32(), random.bytes(random.below(300)))
    case 6: return option(random.pick([1, 3, 5, 6, 7, 8, 9, 10, 11]), random.bytes(random.below(2000)))
    case 7: return option(random.pick([6, 7, 9, 10]), Buffer.concat([counted(someName(random, victim)), uint32(random.uint32())]))
    default: return Buffer.concat([Buffer.from('IHAVEOPT'), uint32(random.below(13)), uint32(random.pick([0, 1, 65_536, 65_537, 0x7fff_ffff, 0xffff_ffff]))])
  }
}

function someRequest(random: Random, extended: boolean): Buffer[] {
  const length = random.chance(0.9) ? random.pick([0, 1, 511, 4096, 65_536, random.below(100_000)]) : random.pick([1_000_000, 4_000_000, 32 * MiB, 33 * MiB, 0xffff_ffff])
  const type = random.chance(0.95) ? random.pick([0, 0, 1, 1, 3, 4, 5, 6, 7]) : random.below(65_536)
  const offset = random.chance(0.9) ? BigInt(random.below(5 * MiB)) : BigInt(random.uint32()) << BigInt(random.below(33))
  const flags = random.chance(0.7) ? 0 : random.chance(0.8) ? random.below(32) : random.below(65_536)
  if (extended) return someExtendedRequest(random, { type, offset, flags, length })
  const header = request({ type, flags, offset, length, cookie: BigInt(random.uint32()) })
  // Most payloads are there; some are short, so that what follows is taken for payload.
  return type === 1 ? [header, Buffer.alloc(random.chance(0.98) ? Math.min(length, 200_000) : random.below(1000), random.below(256))] : [header]
}

function someExtendedRequest(random: Random, { type, offset, flags, length }: { type: number; offset: bigint; flags: number; length: number }): Buffer[] {
  const cookie = BigInt(random.uint32())
  if (type === 7 && random.chance(0.5)) {
    const payload = random.chance(0.7) ? Buffer.concat([uint64(BigInt(length)), ...Array.from({ length: random.below(4) }, () => uint32(random.below(4)))]) : random.bytes(random.below(100))
    return [extendedRequest({ type, flags: flags | 32, offset, length: BigInt(payload.length), cookie }), payload]
  }
  const withPayload = random.chance(type === 1 ? 0.95 : 0.02)
  const header = extendedRequest({ type, flags: withPayload ? flags | 32 : flags, offset, length: withPayload || random.chance(0.9) ? BigInt(length) : BigInt(length) << 30n, cookie })
  return withPayload || type === 1 ? [header, Buffer.alloc(random.chance(0.98) ? Math.min(length, 200_000) : random.below(1000), random.below(256))] : [header]
}

export function mutated(random: Random, bytes: Buffer): Buffer {
  const copy = Buffer.from(bytes)
  for (let count = random.between(1, 3); count > 0 && copy.length > 0; count--) copy[random.below(Math.min(copy.length, 64))] ^= 1 << random.below(8)
  return random.chance(0.2) ? copy.subarray(0, random.below(copy.length + 1)) : copy
}

/** The frames of one hostile session, most of which get into the export `victim`. */
export function hostileSession(random: Random, victim: string): Buffer[] {
  const frames: Buffer[] = [random.chance(0.95) ? uint32(random.below(4)) : random.bytes(random.below(8))]
  // Most of them behave until they are in.
  const extended = random.chance(0.5)
  if (random.chance(0.75)) frames.push(option(extended ? 11 : 8), metaContext(10, victim, ['base:allocation', CONTEXT]))
  else for (let count = random.below(8); count > 0; count--) frames.push(someOption(random, victim))
  if (random.chance(0.9)) frames.push(random.chance(0.5) || extended ? go(victim) : option(1, Buffer.from(victim)))
  for (let count = random.below(40); count > 0; count--) frames.push(...someRequest(random, extended))
  const mutations = random.chance(0.6) ? 0 : 0.05
  return frames.map((frame) => random.chance(mutations) ? mutated(random, frame) : frame)
}

/** Sends the frames in pieces of any size; reads all, nothing or a little; ends politely or not. */
export async function attack(random: Random, socketPath: string, frames: readonly Buffer[]): Promise<void> {
  const socket = net.connect({ path: socketPath })
  const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()))
  socket.on('error', () => undefined)
  const reader = random.pick([0, 0, 0, 1, 2])
  if (reader === 0) socket.resume()
  else if (reader === 1) socket.once('data', () => socket.pause())
  const stream = Buffer.concat(frames)
  for (let at = 0; at < stream.length && !socket.destroyed;) {
    const count = random.pick([1, 27, 29, 1000, 100_000, 1_000_000])
    socket.write(stream.subarray(at, at + count))
    at += count
    if (random.chance(0.2)) await new Promise((resolve) => setImmediate(resolve))
  }
  if (reader === 0 && random.chance(0.7)) {
    socket.end()
    await Promise.race([closed, sleep(200)])
  } else if (random.chance(0.8)) await sleep(10)
  socket.destroy()
  await closed
}

/** Bytes that bring a client into the export, with structured replies. */
function entrance(victim: string): Buffer {
  return Buffer.concat([uint32(3), option(8), go(victim)])
}

/** One connection that is destroyed in the end, whatever comes; the server may close it first. */
async function connected(socketPath: string, action: (socket: net.Socket) => Promise<void>): Promise<void> {
  const socket = net.connect({ path: socketPath, allowHalfOpen: true })
  const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()))
  socket.on('error', () => undefined)
  try {
    await Promise.race([action(socket), closed])
  } finally {
    socket.destroy()
    await closed
  }
}

const HOSTILE_ACTS: Record<string, (random: Random, socketPath: string, victim: string) => Promise<number>> = {
  /** @returns frames, as every act does */
  async fuzz(random, socketPath, victim) {
    const frames = hostileSession(random, victim)
    await attack(random, socketPath, frames)
    return frames.length
  },
  /** A handshake of single bytes, which never ends. */
  async slowHandshake(random, socketPath, victim) {
    const bytes = entrance(victim).subarray(0, random.between(1, 60))
    await connected(socketPath, async (socket) => {
      for (const byte of bytes) {
        socket.write(Buffer.of(byte))
        await sleep(random.between(1, 40))
      }
    })
    return 1
  },
  /** Asks for much, and reads a little. */
  async slowReader(random, socketPath, victim) {
    const reads = Array.from({ length: random.between(10, 100) }, () => request({ type: 0, offset: BigInt(random.below(1000) * 512), length: random.pick([4096, MiB, 4 * MiB]) }))
    await connected(socketPath, async (socket) => {
      socket.write(Buffer.concat([entrance(victim), ...reads]))
      for (let left = random.between(1, 10); left > 0; left--) {
        socket.read(random.below(10_000))
        await sleep(random.between(1, 50))
      }
    })
    return reads.length
  },
  /** Ends its half at any point, or never says a word, and stays. */
  async halfOpen(random, socketPath, victim) {
    const bytes = Buffer.concat([entrance(victim), request({ type: 0, length: MiB })])
    await connected(socketPath, async (socket) => {
      if (random.chance(0.7)) socket.end(bytes.subarray(0, random.below(bytes.length + 1)))
      await sleep(random.between(1, 300))
    })
    return 1
  },
  async flood(random, socketPath) {
    const count = random.between(20, 200)
    await Promise.all(Array.from({ length: count }, () => connected(socketPath, () => sleep(random.below(20)))))
    return count
  },
  /** Options, names and writes of up to 4 GiB, of which a part comes. */
  async oversized(random, socketPath, victim) {
    const length = random.pick([65_537, MiB, 33 * MiB, 0x7fff_ffff, 0xffff_ffff])
    const claim = random.pick([
      Buffer.concat([uint32(3), Buffer.from('IHAVEOPT'), uint32(random.pick([1, 3, 6, 7, 10])), uint32(length)]),
      Buffer.concat([uint32(3), option(7, Buffer.concat([uint32(length), Buffer.alloc(100)]))]),
      Buffer.concat([entrance(victim), request({ type: random.pick([0, 1, 6, 7]), length })]),
    ])
    await connected(socketPath, async (socket) => {
      socket.resume()
      socket.write(claim)
      for (let left = random.below(20); left > 0 && !socket.destroyed; left--) {
        socket.write(Buffer.alloc(100_000, left))
        await new Promise((resolve) => setImmediate(resolve))
      }
    })
    return 1
  },
  /** Bytes of no meaning where requests are due. */
  async garbage(random, socketPath, victim) {
    await connected(socketPath, async (socket) => {
      socket.resume()
      socket.write(Buffer.concat([entrance(victim), random.bytes(random.between(1, 100_000))]))
      await sleep(random.below(20))
    })
    return 1
  },
}

/** Clients that do the above at once and over and over: which, and how, follows from the seed. */
export async function attackAll({ random, socketPath, victim, clients, isOver }: { random: Random; socketPath: string; victim: string; clients: number; isOver: (framesSent: number) => boolean }): Promise<Record<string, number>> {
  const names = Object.keys(HOSTILE_ACTS)
  const done = Object.fromEntries(names.map((name) => [name, 0]))
  let frames = 0
  await Promise.all(Array.from({ length: clients }, async () => {
    const own = new Random(random.uint32())
    while (!isOver(frames)) {
      const name = own.chance(0.5) ? 'fuzz' : own.pick(names)
      const sent = await HOSTILE_ACTS[name](own, socketPath, victim)
      frames += sent
      done[name]++
    }
  }))
  return done
}
