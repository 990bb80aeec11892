/**
 * Two hosts and a line between them, in namespaces of the test's own (iproute2, ethtool; root).
 */
import assert from 'node:assert/strict'
import { type ChildProcess, execFileSync } from 'node:child_process'
import { once } from 'node:events'
import test from 'node:test'
import { NetworkLine } from '@varve/tools/wan/network-line.ts'

const PORT = 7000
const BYTES = 2_000_000
/** Says when it listens; then sends, and ends. */
const SERVE = `require('net').createServer((socket) => socket.end(Buffer.alloc(${BYTES}))).listen(${PORT}, () => console.log('listening')).unref(); setTimeout(() => {}, 60000)`
/** Prints bytes and milliseconds. */
const fetchFrom = (address: string): string => `
const startMs = performance.now(); let bytes = 0
require('net').connect(${PORT}, '${address}').on('data', (piece) => { bytes += piece.length }).on('end', () => console.log(JSON.stringify({ bytes, ms: performance.now() - startMs })))`

async function printed(child: ChildProcess): Promise<string> {
  const [bytes] = await once(child.stdout!, 'data') as [Buffer]
  return bytes.toString()
}

function namespaces(): string {
  return execFileSync('ip', ['netns', 'list'], { encoding: 'utf8' })
}

test('TCP between two hosts gets no more than the rate, and nothing is left behind', async () => {
  const line = new NetworkLine({ rate: '40mbit' })
  const { near, far } = line
  const server = line.spawn(far, process.execPath, ['-e', SERVE], { stdio: ['ignore', 'pipe', 'inherit'] })
  try {
    assert.match(namespaces(), new RegExp(near.namespace))
    assert.match(await printed(server), /listening/)
    const client = line.spawn(near, process.execPath, ['-e', fetchFrom(far.address)], { stdio: ['ignore', 'pipe', 'inherit'] })
    const { bytes, ms } = JSON.parse(await printed(client))
    assert.equal(bytes, BYTES)
    // Five bytes a microsecond, less what the bucket lets through at once.
    assert.ok(ms >= (BYTES - 64 * 1024) / 5000, `${ms} ms`)
  } finally {
    server.kill('SIGKILL')
    await once(server, 'close')
    line[Symbol.dispose]()
  }
  assert.doesNotMatch(namespaces(), new RegExp(near.namespace.slice(0, -'near'.length)))
})
