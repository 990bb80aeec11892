/**
 * The boot benchmark: what it counts on a line, what it says of boots, and one small guest that is really booted over one.
 * Debian packages: qemu-system-x86, nbdkit, qemu-utils, busybox-static.
 */
import assert from 'node:assert/strict'
import { statSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { buildDemoLayers } from '@varve/tools/demo/debian.ts'
import { bootFigures } from '../../bench/boot/boot-figures.ts'
import { copyOut, CVD, MARK } from '../../bench/boot/images.ts'
import { measureBoot } from '../../bench/boot/measure.ts'
import type { Boot } from '../../bench/boot/measure.ts'
import { bootReport } from '../../bench/boot/report.ts'
import { RequestCounter } from '../../bench/boot/requests.ts'
import type { RequestCounts } from '../../bench/boot/requests.ts'
import { FLOOR, FLOOR_VARIANT, OUR_VARIANTS, OURS, PEERS } from '../../bench/boot/variants.ts'
import { compareResults, machine } from '../../bench/figures.ts'
import { Random, testSeed } from '../random.ts'
import { ScratchDirectory, varve } from '../varve-command.ts'

/** A session as it is sent, and what is in it. */
interface Session {
  bytes: Buffer
  /** Of a stream: what is answered. */
  answers: Buffer
  counts: RequestCounts
}

function nbdSession(random: Random): Session {
  const go = Buffer.alloc(16 + 10)
  go.write('IHAVEOPT')
  go.writeUInt32BE(7, 8)
  go.writeUInt32BE(10, 12)
  const pieces: Buffer[] = [Buffer.from([0, 0, 0, 3]), go]
  const counts = { requests: 1, misses: 0, fillBytes: 0 }
  for (let index = random.below(50); index > 0; index--) {
    const type = random.below(7)
    const head = Buffer.alloc(28)
    const length = random.below(100_000)
    head.writeUInt32BE(0x25609513)
    head.writeUInt16BE(type, 6)
    head.writeUInt32BE(length, 24)
    pieces.push(head, ...(type === 1 ? [random.bytes(length)] : []))
    counts.requests++
    if (type === 0) counts.misses++
  }
  return { bytes: Buffer.concat(pieces), answers: Buffer.alloc(0), counts }
}

function frame(type: number, payload: Buffer): Buffer {
  const head = Buffer.alloc(5)
  head.writeUInt32LE(payload.length)
  head[4] = type
  return Buffer.concat([head, payload])
}

function streamSession(random: Random): Session {
  const pieces: Buffer[] = [Buffer.from('GET /v1/stream HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: varve-stream/1\r\n\r\n')]
  const answers: Buffer[] = [Buffer.from('HTTP/1.1 101 Switching Protocols\r\n\r\n')]
  const counts = { requests: 1, misses: 0, fillBytes: 0 }
  for (let index = random.below(50); index > 0; index--) {
    const type = random.between(1, 8)
    const digests = random.between(1, 3000)
    const payload = type === 3 ? Buffer.concat([Buffer.from([random.below(3)]), random.bytes(digests * 32)]) : random.bytes(random.between(1, 1000))
    pieces.push(frame(type, payload))
    if (type <= 3) counts.requests++
    if (type === 3 && payload[0] === 0) counts.misses += digests
    if (type !== 3) continue
    // The first chunk that was asked for comes, and a PONG.
    const chunk = frame(3, Buffer.concat([payload.subarray(1, 33), Buffer.alloc(5), random.bytes(random.below(100_000))]))
    answers.push(chunk, frame(5, random.bytes(8)))
    if (payload[0] === 2) counts.fillBytes += chunk.length
  }
  return { bytes: Buffer.concat(pieces), answers: Buffer.concat(answers), counts }
}

for (const [protocol, session] of [['nbd', nbdSession], ['stream', streamSession]] as const) {
  test(`requests of ${protocol} connections are counted, however their bytes are cut into pieces`, () => {
    const seed = testSeed()
    const random = new Random(seed)
    for (let run = 0; run < 100; run++) {
      const counter = new RequestCounter(protocol)
      const sessions = [session(random), session(random)]
      const sent = [0, 0]
      while (sessions.some(({ bytes }, index) => sent[index] < bytes.length)) {
        const index = random.below(2)
        const count = random.pick([1, 7, 100, 10_000, 200_000])
        counter.sent(index, sessions[index].bytes.subarray(sent[index], sent[index] + count))
        sent[index] += count
      }
      for (const [index, { answers }] of sessions.entries()) {
        for (let at = 0, count = 0; at < answers.length; at += count) counter.received(index, answers.subarray(at, at + (count = random.pick([1, 7, 100, 10_000, 200_000]))))
      }
      const total = { requests: 0, misses: 0, fillBytes: 0 }
      for (const { counts } of sessions) for (const name of ['requests', 'misses', 'fillBytes'] as const) total[name] += counts[name]
      assert.deepEqual(counter.counts, total, `seed ${seed}, run ${run}`)
    }
  })

  test(`bytes that are not of ${protocol} are counted as something or refused, and take no memory`, () => {
    const seed = testSeed()
    const random = new Random(seed)
    for (let run = 0; run < 300; run++) {
      const counter = new RequestCounter(protocol)
      const { bytes } = session(random)
      try {
        for (let piece = 0; piece < 20; piece++) counter[random.pick(['sent', 'received'] as const)](0, random.chance(0.5) ? random.bytes(random.below(20_000)) : bytes)
      } catch (error) {
        assert.match((error as Error).message, /an NBD request starts with|not the protocol/, `seed ${seed}, run ${run}`)
      }
    }
  })
}

function boot(variant: string, seconds: number, counts: Partial<Boot> = {}): Boot {
  const markMs = seconds * 1000
  const at = { bytesDown: 40 << 20, fillBytes: 0, bytesUp: 1 << 20, requests: 3000, misses: 3000, ...counts }
  return { variant, line: { megabitsPerSecond: 20, roundTripMs: 80 }, round: 0, powerOnMs: 100, markMs, ...at, samples: [{ ms: 0, bytesDown: 0, fillBytes: 0, bytesUp: 0, requests: 0, misses: 0 }, { ms: markMs, ...at }] }
}

test('figures of boots carry the goals of streaming, the report holds all of them and needs no other file', () => {
  const peers = PEERS.map(({ name }) => boot(name, 100))
  assert.deepEqual(bootFigures([boot(FLOOR, 20), ...peers]), [], 'nothing is said without ours')
  const boots = [boot(FLOOR, 20), ...peers, boot(OURS.learned, 25, { bytesDown: 19 << 20, requests: 20, misses: 1 }), boot(OURS.never, 70)]
  const figures = bootFigures(boots)
  const met = Object.fromEntries(figures.map(({ name, met }) => [name, met]))
  assert.deepEqual(met, {
    'time to the mark, varve; 20 Mbit/s, 80 ms': true,
    'time to the mark over that from a local raw file, varve; 20 Mbit/s, 80 ms': true,
    'time to the mark, varve, never booted; 20 Mbit/s, 80 ms': false,
    'time to the mark over that from a local raw file, varve, never booted; 20 Mbit/s, 80 ms': null,
    'bytes down the line before the mark, less the fill, varve; 20 Mbit/s, 80 ms': true,
    'bytes down the line before the mark, varve; 20 Mbit/s, 80 ms': null,
    'requests before the mark, varve; 20 Mbit/s, 80 ms': true,
    'waited for before the mark, varve; 20 Mbit/s, 80 ms': null,
    'bytes down the line before the mark, less the fill, varve, never booted; 20 Mbit/s, 80 ms': null,
    'bytes down the line before the mark, varve, never booted; 20 Mbit/s, 80 ms': null,
    'requests before the mark, varve, never booted; 20 Mbit/s, 80 ms': null,
    'waited for before the mark, varve, never booted; 20 Mbit/s, 80 ms': null,
  })
  const result = { bench: 'boot', machine: machine(), versions: {}, seed: 1, image: 'debian', firmware: 'bios' as const, figures, boots, notes: ['<a note>'] }
  const html = bootReport(result)
  for (const { name } of figures) assert.ok(html.includes(name), name)
  assert.ok(html.includes('&lt;a note>'))
  assert.doesNotMatch(html, /(src|href)=|NaN|Infinity|undefined/)
  assert.match(compareResults(result, { ...result, figures: bootFigures([...peers, boot(OURS.learned, 12.5)]) }), /^time to the mark, varve; 20 Mbit\/s, 80 ms +s +25\.00 +12\.50 +2\.00 /m)
})

test('a small guest is booted from a local file and over a line, and what went over the line is counted', async () => {
  using scratch = new ScratchDirectory('bench-boot')
  const layers = buildDemoLayers(scratch.path)
  writeFileSync(path.join(layers.base, 'usr/sbin/init'), `#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
echo "${MARK}" >/dev/console
/bin/busybox sleep 1000
`, { mode: 0o755 })
  const home = scratch.join('home')
  varve(home, ['layer', 'import', 'base', `dir:${layers.base}`, '--kind', 'base'])
  varve(home, ['cvd', 'create', CVD, '--layer', 'base'])
  const rawFile = scratch.join('disk.raw')
  await copyOut(home, rawFile)
  const kernelFile = path.join(layers.base, `boot/vmlinuz-${layers.kernelVersion}`)
  const images = { image: 'debian' as const, homes: { never: home, learned: home, other: home }, bootChunks: 0, otherCovers: 0, rawFile, qcow2File: '', sizeBytes: statSync(rawFile).size, rootUuid: '', kernelFile, initrdFile: kernelFile.replace('vmlinuz-', 'initrd.img-') }
  const setting = { images, firmware: 'bios' as const, line: { megabitsPerSecond: 1000, roundTripMs: 2 }, round: 0 }
  const local = await measureBoot({ ...setting, variant: FLOOR_VARIANT })
  assert.equal(local.bytesDown, 0)
  const kernelBytes = statSync(kernelFile).size
  const ours = OUR_VARIANTS.find(({ name }) => name === OURS.never)!
  for (const variant of [...PEERS.filter(({ copiesFirst }) => !copiesFirst), ours]) {
    const { name, bytesDown, requests, misses, samples, markMs, powerOnMs } = { ...await measureBoot({ ...setting, variant }), name: variant.name }
    assert.ok(bytesDown > kernelBytes * 0.9, `${name}: ${bytesDown} bytes, less than the kernel`)
    // What we miss is asked for in few requests, what others miss in one each.
    assert.ok(variant === ours ? requests > 3 : misses > 10 && requests >= misses, `${name}: ${misses} waited for, ${requests} requests`)
    assert.ok(markMs > powerOnMs)
    assert.equal(samples.at(-1)!.bytesDown, bytesDown)
  }
})
