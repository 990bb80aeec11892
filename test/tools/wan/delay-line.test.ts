/**
 * The delay line: what goes in comes out, as late and as slowly as it should at least, bounded, and not at all while the line is cut.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import net from 'node:net'
import test from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { DelayLine, type DelayLineOptions } from '@varve/tools/wan/delay-line.ts'
import { Random, testSeed } from '../../random.ts'

/** Sends back what it gets. */
class Echo implements AsyncDisposable {
  readonly address: string
  readonly #server: net.Server

  static async start(): Promise<Echo> {
    const server = net.createServer({ allowHalfOpen: true }, (socket) => {
      socket.on('error', () => undefined)
      socket.pipe(socket)
    })
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    return new Echo(server)
  }

  private constructor(server: net.Server) {
    this.#server = server
    this.address = `127.0.0.1:${(server.address() as net.AddressInfo).port}`
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await new Promise((resolve) => this.#server.close(resolve))
  }
}

function open(target: Echo, options: Partial<DelayLineOptions>): Promise<DelayLine> {
  return DelayLine.open({ listen: '127.0.0.1:0', target: target.address, delayMs: 0, ...options })
}

function connect({ address }: DelayLine): net.Socket {
  const socket = net.connect(Number(address.split(':')[1]), '127.0.0.1')
  socket.on('error', () => undefined)
  return socket
}

async function received(socket: net.Socket): Promise<Buffer> {
  const pieces: Buffer[] = []
  for await (const piece of socket) pieces.push(piece as Buffer)
  return Buffer.concat(pieces)
}

/** How long an answer to one byte takes, on a connection that is there. */
async function roundTripMs(socket: net.Socket): Promise<number> {
  const startMs = performance.now()
  socket.write('x')
  await once(socket, 'data')
  return performance.now() - startMs
}

test('what goes in comes out on several connections, however it is cut into pieces', async () => {
  const seed = testSeed()
  const random = new Random(seed)
  await using echo = await Echo.start()
  await using line = await open(echo, { delayMs: 5, jitterMs: 10, bitsPerSecond: 400e6, queueBytes: 64 * 1024 })
  await Promise.all(Array.from({ length: 4 }, async () => {
    const sent = random.bytes(random.between(1, 3_000_000))
    const socket = connect(line)
    const answer = received(socket)
    for (let at = 0; at < sent.length;) {
      const count = random.pick([1, 1000, 100_000])
      if (!socket.write(sent.subarray(at, at + count))) await once(socket, 'drain')
      at += count
    }
    socket.end()
    assert.ok((await answer).equals(sent), `seed ${seed}`)
  }))
})

test('an answer takes two delays at least, and a stream no less than the rate allows', async () => {
  await using echo = await Echo.start()
  await using line = await open(echo, { delayMs: 40, bitsPerSecond: 8e6 })
  const socket = connect(line)
  await once(socket, 'connect')
  for (let times = 0; times < 3; times++) assert.ok((await roundTripMs(socket)) >= 80)
  const startMs = performance.now()
  const answer = received(socket)
  socket.end(Buffer.alloc(300_000))
  assert.equal((await answer).length, 300_000)
  // A byte a microsecond.
  assert.ok(performance.now() - startMs >= 300 + 80)
})

test('connections share the rate', async () => {
  await using echo = await Echo.start()
  await using line = await open(echo, { bitsPerSecond: 8e6 })
  const startMs = performance.now()
  await Promise.all(Array.from({ length: 3 }, async () => {
    const socket = connect(line)
    const answer = received(socket)
    socket.end(Buffer.alloc(100_000))
    assert.equal((await answer).length, 100_000)
  }))
  assert.ok(performance.now() - startMs >= 300)
})

test('a sender is held back when the line is full, or its receiver does not read', async () => {
  await using echo = await Echo.start()
  await using line = await open(echo, { delayMs: 20, bitsPerSecond: 80e6, queueBytes: 100_000 })
  const socket = connect(line)
  socket.write(Buffer.alloc(20_000_000))
  // Nobody reads what comes back.
  await sleep(500)
  const { up, down } = line.figures
  const onItsWay = 20 * 10_000
  for (const { bytesHeldMost } of [up, down]) assert.ok(bytesHeldMost <= onItsWay + 100_000 + 65_536, `${bytesHeldMost} bytes`)
  assert.ok(socket.writableLength > 0)
  const answer = received(socket)
  socket.end()
  assert.equal((await answer).length, 20_000_000)
})

test('nothing passes while the line is cut, and nothing is lost when it is mended', async () => {
  await using echo = await Echo.start()
  await using line = await open(echo, { delayMs: 10 })
  const socket = connect(line)
  await once(socket, 'connect')
  await roundTripMs(socket)
  const outage = line.outage(300)
  const late = connect(line)
  const [answered, first] = await Promise.all([roundTripMs(socket), roundTripMs(late)])
  assert.ok(answered >= 290 && first >= 290, `${answered} and ${first} ms`)
  await outage
  line.reset()
  await Promise.all([socket, late].map((one) => new Promise((resolve) => one.once('close', resolve))))
})
