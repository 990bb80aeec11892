/**
 * `varve serve` as a service: signals against the real command, reload, the service manager, metrics under load. The clients are not ours.
 */
import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { cpSync, mkdirSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import path from 'node:path'
import test from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseExposition, valueOf } from '../blockserver/http/exposition.ts'
import { Certificates } from '../blockserver/nbd/certificates.ts'
import { ScratchDirectory, varve, VarveServer } from '../varve-command.ts'
import { NotifyReceiver } from './notify-receiver.ts'

const launcher = path.resolve(import.meta.dirname, '../../tools/varve')

type LogLine = { level: string; time: string; msg: string } & Record<string, unknown>

/** A home with the layer `files@1` and the CVD `desk` of it, which each test has a copy of. */
const template = makeTemplate()
test.after(() => template.scratch[Symbol.dispose]())

function makeTemplate() {
  const scratch = new ScratchDirectory('service-template')
  const home = scratch.join('home')
  const source = scratch.join('source')
  mkdirSync(source)
  writeFileSync(path.join(source, 'hello'), 'hello from the layer\n')
  varve(home, ['layer', 'import', 'files', `dir:${source}`, '--kind', 'base'])
  varve(home, ['cvd', 'create', 'desk', '--layer', 'files', '--boot', 'none'])
  return { scratch, path: home, sizeBytes: varve(home, ['compose', 'desk']).json.sizeBytes as number }
}

/** A home, its configuration file, and the log of what serves it. */
class ServiceHome implements Disposable {
  readonly scratch = new ScratchDirectory('service')
  readonly path = this.scratch.join('home')
  readonly config = this.scratch.join('varve.toml')
  readonly socket = this.scratch.join('nbd.sock')
  readonly log: LogLine[] = []
  readonly sizeBytes: number
  #rest = ''
  #waiting: (() => void)[] = []

  constructor() {
    cpSync(template.path, this.path, { recursive: true })
    this.sizeBytes = template.sizeBytes
    this.configure('')
  }

  configure(text: string): void {
    writeFileSync(this.config, `[http]\nlisten = "127.0.0.1:0"\n${text}`)
  }

  serve(env: Record<string, string> = {}): Promise<VarveServer> {
    return VarveServer.start(this.path, `unix:${this.socket}`, { args: ['--config', this.config], env, onLog: (text) => this.#logged(text) })
  }

  uri(disk = 'desk'): string {
    return `nbd+unix:///${disk}?socket=${this.socket}`
  }

  /** The first line at or after `from` that has this message. */
  async logged(msg: string, from = 0): Promise<LogLine> {
    for (;;) {
      const found = this.log.slice(from).find((line) => line.msg === msg)
      if (found !== undefined) return found
      await new Promise<void>((resolve) => this.#waiting.push(resolve))
    }
  }

  /** Every line of the log is one JSON document. */
  #logged(text: string): void {
    const lines = (this.#rest + text).split('\n')
    this.#rest = lines.pop()!
    for (const line of lines) {
      const document = JSON.parse(line) as LogLine
      assert.match(document.level, /^(?:debug|info|warn|error)$/)
      assert.ok(!Number.isNaN(Date.parse(document.time)) && document.msg.length > 0)
      this.log.push(document)
    }
    for (const wake of this.#waiting.splice(0)) wake()
  }

  [Symbol.dispose](): void {
    this.scratch[Symbol.dispose]()
  }
}

/** The largest request that clients are told of: one of the limits that a reload sets. */
function requestBytesMax(uri: string): number {
  const { status, stdout, stderr } = spawnSync('nbdinfo', ['--json', uri], { encoding: 'utf8' })
  assert.equal(status, 0, stderr)
  return JSON.parse(stdout).exports[0].block_size_maximum as number
}

async function healthStatus(server: VarveServer): Promise<number> {
  return (await fetch(`http://${server.document.http}/healthz`)).status
}

/** Runs Python with libnbd. @returns a promise of what it printed; it must end with 0 */
function python(program: string, onOutput: (text: string) => void = () => undefined): Promise<string> {
  const child = spawn('/usr/bin/python3', ['-'], { stdio: ['pipe', 'pipe', 'pipe'] })
  let stdout = ''
  let stderr = ''
  child.stdout.on('data', (bytes: Buffer) => {
    stdout += bytes.toString()
    onOutput(stdout)
  })
  child.stderr.on('data', (bytes: Buffer) => (stderr += bytes.toString()))
  child.stdin.end(program)
  return new Promise((resolve, reject) => {
    child.once('close', (status) => status === 0 ? resolve(stdout) : reject(new Error(`python ended with ${status}\n${stdout.slice(-1000)}\n${stderr}`)))
  })
}

/** A client that asks for much and takes none of it: it has something in flight for ever. */
async function stalledClient(home: ServiceHome): Promise<net.Socket> {
  const socket = net.connect({ path: home.socket })
  socket.on('error', () => undefined)
  const go = Buffer.alloc(20)
  go.write('IHAVEOPT')
  go.writeUInt32BE(1, 8)
  go.writeUInt32BE(4, 12)
  go.write('desk', 16)
  const read = Buffer.alloc(28)
  read.writeUInt32BE(0x25609513)
  read.writeUInt32BE(4 << 20, 24)
  socket.write(Buffer.concat([Buffer.from([0, 0, 0, 3]), go, ...Array<Buffer>(8).fill(read)]))
  // The greeting, and the end of the handshake, are there; no more is read.
  await once(socket, 'readable')
  return socket
}

for (const signal of ['SIGTERM', 'SIGINT'] as const) {
  test(`${signal} under load: every write that was acknowledged is there at the next start, and the command ends with 0`, async () => {
    using home = new ServiceHome()
    await using server = await home.serve()
    const load = python(`
import nbd
h = [nbd.NBD() for _ in range(4)]
for one in h: one.connect_uri(${JSON.stringify(home.uri())})
half, size = ${Math.floor(home.sizeBytes / 2 / 65536) * 65536}, 4096
count, written = 0, 0
try:
    while True:
        h[count % 4].pwrite(count.to_bytes(4, 'big') * (size // 4), half + (count % 1000) * size)
        count += 1
        if count == 200: print('busy', flush=True)
except nbd.Error as error:
    assert error.errno in ('ESHUTDOWN', 'ENOTCONN', 'EINVAL', 'EPIPE', 'ECONNRESET', None), error.errno
print(count)
`, (text) => {
      if (text === 'busy\n') server.process.kill(signal)
    })
    const count = Number((await load).split('\n')[1])
    assert.ok(count >= 200)
    assert.equal(await server.exited, 0)
    await using again = await home.serve()
    await python(`
import nbd
h = nbd.NBD()
h.connect_uri(${JSON.stringify(home.uri())})
half, size, count = ${Math.floor(home.sizeBytes / 2 / 65536) * 65536}, 4096, ${count}
for slot in range(min(count, 1000)):
    last = slot + (count - 1 - slot) // 1000 * 1000
    got = h.pread(size, half + slot * size)
    # The one that was not acknowledged may have come to pass too.
    assert got in [n.to_bytes(4, 'big') * (size // 4) for n in (last, count)], (slot, last)
`)
    assert.equal(await again.stop(), 0)
  })
}

test('a client that takes no replies is cut when the drain has lasted long enough', async () => {
  using home = new ServiceHome()
  home.configure('[nbd]\ndrain-ms-max = 50\n')
  await using server = await home.serve()
  using _client = disposable(await stalledClient(home))
  assert.equal(await server.stop(), 0)
})

test('a second signal, of the other kind too, ends at once what is still draining', async () => {
  using home = new ServiceHome()
  home.configure('[nbd]\ndrain-ms-max = 3_600_000\n')
  for (const [first, second] of [['SIGTERM', 'SIGTERM'], ['SIGTERM', 'SIGINT'], ['SIGINT', 'SIGTERM']] as const) {
    await using server = await home.serve()
    using _client = disposable(await stalledClient(home))
    assert.equal(await healthStatus(server), 200)
    server.process.kill(first)
    // HTTP tells that the server ends, while it ends.
    while (await healthStatus(server) !== 503) await sleep(10)
    assert.equal(await server.stop(second), second)
  }
})

test('SIGHUP takes over log level and limits; a file with mistakes leaves all as it was; addresses stay', async () => {
  using home = new ServiceHome()
  home.configure('[limits]\nrequest-bytes-max = 1_048_576\n')
  await using server = await home.serve()
  assert.equal(requestBytesMax(home.uri()), 1 << 20)

  home.configure('[limits]\nrequest-bytes-max = 2_097_152\n[log]\nlevel = "info"\n')
  server.process.kill('SIGHUP')
  await home.logged('configuration reloaded')
  assert.equal(requestBytesMax(home.uri()), 2 << 20)

  home.configure('[limits]\nrequest-bytes-max = 3_000_000\nunknown = 1\n')
  server.process.kill('SIGHUP')
  const { level, mistakes } = await home.logged('the configuration has mistakes; that of before stays')
  assert.equal(level, 'error')
  assert.equal((mistakes as string[]).length, 2)
  assert.equal(requestBytesMax(home.uri()), 2 << 20)

  const from = home.log.length
  writeFileSync(home.config, '[http]\nlisten = "127.0.0.1:1"\n[log]\nlevel = "info"\n')
  server.process.kill('SIGHUP')
  await home.logged('configuration reloaded', from)
  // The command line says where NBD listens, whatever the file says.
  assert.deepEqual(home.log.slice(from).filter(({ setting }) => setting !== undefined).map(({ setting, level }) => [setting, level]), [['http.listen', 'warn']])
  assert.equal(await healthStatus(server), 200)
  assert.equal(requestBytesMax(home.uri()), 32 << 20)
  assert.equal(await server.stop(), 0)
})

test('clients that are served do not notice a reload', async () => {
  using home = new ServiceHome()
  await using server = await home.serve()
  home.configure('[log]\nlevel = "info"\n')
  let reloads = 0
  await python(`
import nbd, time
h = nbd.NBD()
h.connect_uri(${JSON.stringify(home.uri())})
for n in range(300):
    h.pwrite(bytes([n % 256]) * 4096, n * 4096 + ${Math.floor(home.sizeBytes / 2 / 4096) * 4096})
    if n % 30 == 0: print('hup', flush=True)
for n in range(300): assert h.pread(4096, n * 4096 + ${Math.floor(home.sizeBytes / 2 / 4096) * 4096}) == bytes([n % 256]) * 4096
`, (text) => {
    while (reloads < text.split('\n').length - 1) {
      reloads++
      server.process.kill('SIGHUP')
    }
  })
  assert.equal(reloads, 10)
  await home.logged('configuration reloaded')
  assert.equal(await server.stop(), 0)
})

for (const abstract of [false, true]) {
  test(`the service manager is told of start, reload, life and end, on ${abstract ? 'an abstract socket' : 'the path of a socket'}`, async () => {
    using home = new ServiceHome()
    const socket = abstract ? `@varve-test-${process.pid}` : home.scratch.join('notify')
    await using manager = await NotifyReceiver.bind(socket)
    await using server = await home.serve({ NOTIFY_SOCKET: socket, WATCHDOG_USEC: '20000' })
    const ready = await manager.until(({ READY }) => READY === '1')
    assert.match(ready.STATUS, /^serving 2 exports on unix:/)
    await manager.until(({ WATCHDOG }) => WATCHDOG === '1')

    const from = manager.messages.length
    const beforeUsec = process.hrtime.bigint() / 1000n
    server.process.kill('SIGHUP')
    const { MONOTONIC_USEC: usec } = await manager.until(({ RELOADING }) => RELOADING === '1', from)
    // The clock of both processes is that of the machine.
    assert.ok(BigInt(usec) >= beforeUsec && BigInt(usec) <= process.hrtime.bigint() / 1000n)
    await manager.until(({ READY }) => READY === '1', from)
    await manager.until(({ WATCHDOG }) => WATCHDOG === '1', manager.messages.length)

    server.process.kill('SIGTERM')
    await manager.until(({ STOPPING }) => STOPPING === '1')
    assert.equal(await server.exited, 0)
    const kinds = manager.messages.map((message) => Object.keys(message)[0]).filter((kind) => kind !== 'WATCHDOG')
    assert.deepEqual(kinds, ['READY', 'RELOADING', 'READY', 'STOPPING'])
  })
}

test('the watchdog of another process is not ours; a manager that is not there does not keep the service from running', async () => {
  using home = new ServiceHome()
  {
    await using manager = await NotifyReceiver.bind(home.scratch.join('notify'))
    await using server = await home.serve({ NOTIFY_SOCKET: home.scratch.join('notify'), WATCHDOG_USEC: '2000', WATCHDOG_PID: '1' })
    await manager.until(({ READY }) => READY === '1')
    await sleep(200)
    assert.equal(await server.stop(), 0)
    await manager.until(({ STOPPING }) => STOPPING === '1')
    assert.ok(manager.messages.every(({ WATCHDOG }) => WATCHDOG === undefined))
  }
  for (const socket of [home.scratch.join('nobody'), 'relative', `@${'x'.repeat(200)}`]) {
    const from = home.log.length
    await using server = await home.serve({ NOTIFY_SOCKET: socket })
    await Promise.any([home.logged('the service manager was not told', from), home.logged('the service manager cannot be told', from)])
    assert.equal(await server.stop(), 0)
  }
})

test('metrics scraped under load are always valid, only grow, and end with what the clients did', async () => {
  using home = new ServiceHome()
  home.configure(`[cache]\nbytes-max = ${64 << 20}\n`)
  await using server = await home.serve()
  const scrape = async () => parseExposition(await (await fetch(`http://${server.document.http}/metrics`)).text())
  let loading = true
  const loads = Promise.all([1, 2].map((client) => python(`
import nbd
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_uri(${JSON.stringify(home.uri())})
at = ${Math.floor(home.sizeBytes / 2 / 65536) * 65536} + ${client} * (1 << 20)
for n in range(500):
    h.pwrite(b'x' * 4096, at + n % 16 * 4096)
    h.pread(8192, at)
    if n % 50 == 0:
        h.flush(); h.zero(4096, at); h.trim(4096, at); h.cache(4096, at); h.block_status(65536, at, lambda *_: 0)
h.shutdown()
`))).finally(() => { loading = false })
  let last = await scrape()
  while (loading) {
    const now = await scrape()
    for (const [name, { type, series }] of last) {
      if (type === 'gauge') continue
      for (const { name: sample, labels, value } of series) assert.ok(valueOf(now, sample, labels) >= value, `${name} ${JSON.stringify(labels)}`)
    }
    last = now
  }
  await loads
  while (valueOf(last = await scrape(), 'varve_nbd_connections') > 0) await sleep(10)
  const count = (command: string) => valueOf(last, 'varve_nbd_request_duration_seconds_count', { export: 'desk', command })
  assert.deepEqual(
    Object.fromEntries(['read', 'write', 'flush', 'write_zeroes', 'trim', 'cache', 'block_status'].map((command) => [command, count(command)])),
    { read: 1000, write: 1000, flush: 20, write_zeroes: 20, trim: 20, cache: 20, block_status: 20 },
  )
  assert.equal(valueOf(last, 'varve_nbd_written_bytes_total', { export: 'desk' }), 1000 * 4096)
  assert.equal(valueOf(last, 'varve_nbd_read_bytes_total', { export: 'desk' }), 1000 * 8192)
  assert.equal(valueOf(last, 'varve_nbd_requests_in_flight', { export: 'desk' }), 0)
  assert.equal(valueOf(last, 'varve_nbd_connections_accepted_total'), 2)
  assert.ok(valueOf(last, 'varve_event_loop_delay_seconds_count') > 0)
  assert.equal(valueOf(last, 'varve_chunk_cache_max_bytes'), 64 << 20)
  const misses = valueOf(last, 'varve_chunk_cache_misses_total')
  assert.equal(spawnSync('nbdcopy', [home.uri('layer:files'), 'null:']).status, 0)
  assert.ok(valueOf(await scrape(), 'varve_chunk_cache_misses_total') > misses)
  const { exports } = await (await fetch(`http://${server.document.http}/v1/exports`)).json() as { exports: { name: string; bytesWritten: number }[] }
  assert.deepEqual(exports.map(({ name, bytesWritten }) => [name, bytesWritten]), [['desk', 1000 * 4096], ['layer:files@1', 0]])
  assert.equal(await server.stop(), 0)
})

test('a server whose terminal is closed ends in order', async () => {
  using home = new ServiceHome()
  home.configure('[log]\nlevel = "info"\n')
  await python(`
import os, pty
pid, fd = pty.fork()
if pid == 0: os.execv(${JSON.stringify(launcher)}, ['varve', 'serve', '--config', ${JSON.stringify(home.config)}, '--home', ${JSON.stringify(home.path)}, '--nbd', 'unix:${home.socket}'])
text = b''
while b'  desk' not in text: text += os.read(fd, 1000)
os.close(fd)
_, status = os.waitpid(pid, 0)
assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0, status
`)
})

test('TLS, access rules and the default export are as the file says, and as it says after a reload', async () => {
  using home = new ServiceHome()
  const certificates = await Certificates.make(home.scratch.join('certificates'))
  const tls = (mode: string, more = '') => `[tls]\nmode = "${mode}"\ncertificate = "certificates/server-cert.pem"\nkey = "certificates/server-key.pem"\npsk = "certificates/psk-keys/keys.psk"\n${more}`
  const plain = (disk: string) => `nbd+unix:///${disk}?socket=${home.socket}`
  const secured = (user: string, disk: string) => `nbds+unix://${user}@/${disk}?socket=${home.socket}&tls-psk-file=${certificates.pskFile('keys')}`
  const shown = (uri: string) => {
    const { status, stdout } = spawnSync('nbdinfo', ['--json', uri], { encoding: 'utf8' })
    return status === 0 ? JSON.parse(stdout).exports[0].is_read_only ? 'read-only' : 'read-write' : 'refused'
  }
  home.configure(`[log]\nlevel = "info"\n[nbd]\ndefault-export = "layer:files@1"\n${tls('required')}
[[access]]\nidentity = "alice"\nallow = "read-write"\n[[access]]\nexport = "desk"\nidentity = "bob"\nallow = "read-only"\n`)
  await using server = await home.serve()
  assert.deepEqual([plain('desk'), secured('alice', 'desk'), secured('bob', 'desk')].map(shown), ['refused', 'read-write', 'read-only'])
  // The default export, a layer, is not for bob.
  assert.deepEqual([secured('alice', ''), secured('bob', '')].map(shown), ['read-only', 'refused'])

  home.configure(`[log]\nlevel = "info"\n${tls('optional')}\n[[access]]\nclient = "uid:0"\nallow = "read-only"\n`)
  server.process.kill('SIGHUP')
  await home.logged('configuration reloaded')
  assert.deepEqual([plain('desk'), secured('bob', '')].map(shown), ['read-only', 'read-only'])

  // Credentials that are not sound leave all as it was.
  home.configure(`${tls('required', 'ca = "missing.pem"\nverify-peer = true\n')}`)
  server.process.kill('SIGHUP')
  const { mistakes } = await home.logged('the configuration has mistakes; that of before stays')
  assert.match((mistakes as string[])[0], /tls cannot be used: .*missing\.pem/)
  assert.equal(shown(plain('desk')), 'read-only')
  assert.equal(await server.stop(), 0)
})

function disposable(socket: net.Socket): Disposable {
  return { [Symbol.dispose]: () => { socket.destroy() } }
}
