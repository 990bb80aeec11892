/**
 * The configuration file: what it may say, how mistakes are told, and that the command line goes before it.
 */
import assert from 'node:assert/strict'
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { formatSettings, loadSettings, requireSettings } from '@varve/tools/service/config-file.ts'
import { LISTS, SECTIONS, TOP, defaultSettings, kebab } from '@varve/tools/service/settings.ts'
import { Certificates } from '../../blockserver/nbd/certificates.ts'
import { Random, testSeed } from '../../random.ts'
import { ScratchDirectory, varve } from '../../varve-command.ts'

const EVERYTHING = `
home = "/srv/varve"

[nbd]
listen = ["[::1]:10809", "unix:/run/varve/nbd.sock"]
threads = 3
default-export = "desk"
drain-ms-max = 10_000

[cache]
bytes-max = 536_870_912

[http]
listen = "off"
tls = "required"
recovery = "/srv/varve/boot"
images = true

[log]
level = "info"

[limits]
connections-max = 5000
connections-per-peer-max = 50
handshake-ms-max = 5000
idle-ms-max = 60_000
option-bytes-max = 8192
in-flight-requests-max = 64
in-flight-bytes-max = 33_554_432
unsent-bytes-max = 1_048_576
request-bytes-max = 2_097_152
shared-bytes-max = 1_073_741_824
own-bytes = 65536
stalled-ms-max = 3000

[stream]
connections-max = 50
connections-per-agent-max = 2
handshake-ms-max = 4000
idle-ms-max = 30_000

[tls]
mode = "required"
certificate = "server.pem"
key = "server.key"
ca = "ca.pem"
verify-peer = true
psk = "keys.psk"

[[access]]
export = "secret-*"
client = "10.0.0.0/8"
identity = "backup"
allow = "read-only"

[[access]]
client = "uid:1000"
allow = "read-write"

[[access]]
allow = "deny"

[[site]]
name = "branch"
clients = ["10.1.0.0/16", "fd00::/8"]

[[rate]]
per = "site"
site = "branch"
from = "08:00"
to = "18:30"
bits-per-second-max = 20_000_000

[[rate]]
per = "agent"
bits-per-second-max = 100_000_000
`

function loadText(scratch: ScratchDirectory, text: string) {
  const file = scratch.join('varve.toml')
  writeFileSync(file, text)
  return { ...loadSettings(file), file }
}

test('every setting is taken from the file; relative paths start from its directory', async () => {
  using scratch = new ScratchDirectory('config')
  const certificates = await Certificates.make(scratch.join('made'))
  const files = { 'server.pem': certificates.file('server', 'cert'), 'server.key': certificates.file('server', 'key'), 'ca.pem': certificates.file('authority', 'cert'), 'keys.psk': certificates.pskFile('keys') }
  for (const [name, made] of Object.entries(files)) copyFileSync(made, scratch.join(name))
  const { settings, mistakes } = loadText(scratch, EVERYTHING)
  assert.deepEqual(mistakes, [])
  assert.deepEqual(settings, {
    home: '/srv/varve',
    nbd: { listen: ['[::1]:10809', 'unix:/run/varve/nbd.sock'], threads: 3, defaultExport: 'desk', drainMsMax: 10_000 },
    cache: { bytesMax: 512 << 20 },
    http: { listen: 'off', tls: 'required', recovery: '/srv/varve/boot', images: true },
    log: { level: 'info' },
    limits: {
      connectionsMax: 5000, connectionsPerPeerMax: 50, handshakeMsMax: 5000, idleMsMax: 60_000, optionBytesMax: 8192, inFlightRequestsMax: 64, inFlightBytesMax: 33_554_432, unsentBytesMax: 1_048_576,
      requestBytesMax: 2_097_152, sharedBytesMax: 1_073_741_824, ownBytes: 65536, stalledMsMax: 3000,
    },
    stream: { connectionsMax: 50, connectionsPerAgentMax: 2, handshakeMsMax: 4000, idleMsMax: 30_000 },
    tls: { mode: 'required', certificate: scratch.join('server.pem'), key: scratch.join('server.key'), ca: scratch.join('ca.pem'), verifyPeer: true, psk: scratch.join('keys.psk') },
    access: [
      { export: 'secret-*', client: '10.0.0.0/8', identity: 'backup', allow: 'read-only' },
      { export: '*', client: 'uid:1000', identity: undefined, allow: 'read-write' },
      { export: '*', client: undefined, identity: undefined, allow: 'deny' },
    ],
    site: [{ name: 'branch', clients: ['10.1.0.0/16', 'fd00::/8'] }],
    rate: [
      { per: 'site', site: 'branch', from: '08:00', to: '18:30', bitsPerSecondMax: 20_000_000 },
      { per: 'agent', site: undefined, from: undefined, to: undefined, bitsPerSecondMax: 100_000_000 },
    ],
  })
  // What is shown is a file that says the same.
  const shown = scratch.join('shown.toml')
  writeFileSync(shown, formatSettings(settings))
  assert.deepEqual(loadSettings(shown).settings, settings)
})

const MISTAKES: [name: string, text: string, ...expected: string[]][] = [
  ['no TOML', 'a = ', ':1:5: Invalid TOML document: '],
  ['no TOML in a later line', '[nbd]\n\nlisten = ["x"', ':3:'],
  ['a key twice', '[log]\nlevel = "info"\nlevel = "warn"', ':3:'],
  ['an unknown section', '[nbb]', ': nbb is not known; there are home, [nbd], [cache], [http], [log], [limits], [stream], [tls], [[access]], [[site]], [[rate]]'],
  ['an unknown key', '[nbd]\nlissen = []', ': nbd.lissen is not known; there are listen, threads, default-export, drain-ms-max'],
  ['names of JavaScript', '__proto__.x = 1\n[nbd]\nconstructor = 1', ': __proto__ is not known; ', ': nbd.constructor is not known; '],
  ['a key of many lines', '[nbd]\n"a\\nb" = 1', ': "nbd.a\\nb" is not known; '],
  ['a value in place of a section', 'nbd = 1', ': nbd must be a section: [nbd]'],
  ['a list in place of a section', '[[nbd]]', ': nbd must be a section: [nbd]'],
  ['a section in place of a value', '[home]', ': home must be the path of a directory, not {}'],
  ['a section in place of rules', '[access]', ': access must be a list of tables, each under [[access]]'],
  ['one address without a list', '[nbd]\nlisten = "127.0.0.1:1"', ': nbd.listen must be a list of addresses, like ["127.0.0.1:10809"], not "127.0.0.1:1"'],
  ['no address', '[nbd]\nlisten = []', ': nbd.listen must be a list of addresses, like ["127.0.0.1:10809"], not []'],
  ['an address among others', '[nbd]\nlisten = ["127.0.0.1:1", "127.0.0.1:99999"]', ': nbd.listen must be HOST:PORT, [IPV6]:PORT or unix:PATH, not "127.0.0.1:99999"'],
  ['a number as an address', '[http]\nlisten = 8470', ': http.listen must be HOST:PORT, [IPV6]:PORT, unix:PATH or "off", not 8470'],
  ['a level', '[log]\nlevel = "loud"', ': log.level must be "trace" or "debug" or "info" or "warn" or "error", not "loud"'],
  ['a text as a number', '[limits]\nconnections-max = "10"', ': limits.connections-max must be a whole number from 1 to 1000000, not "10"'],
  ['a number out of range', '[limits]\nconnections-max = 0', ': limits.connections-max must be a whole number from 1 to 1000000, not 0'],
  ['a fraction', '[limits]\nstalled-ms-max = 1.5', ': limits.stalled-ms-max must be a whole number from 1 to 86400000, not 1.5'],
  ['no number', '[limits]\nstalled-ms-max = nan', ': limits.stalled-ms-max must be a whole number from 1 to 86400000, not null'],
  ['a date', '[limits]\nstalled-ms-max = 2026-01-01', ': limits.stalled-ms-max must be a whole number from 1 to 86400000, not "2026-01-01"'],
  ['no multiple', '[limits]\nrequest-bytes-max = 1_048_577', ': limits.request-bytes-max must be a whole number from 1048576 to 1073741824, a multiple of 65536, not 1048577'],
  ['limits that contradict', '[limits]\nshared-bytes-max = 1_048_576', ': limits.shared-bytes-max must hold at least one request: limits.request-bytes-max'],
  ['a long value', `[log]\nlevel = "${'x'.repeat(1000)}"`, `: log.level must be "trace" or "debug" or "info" or "warn" or "error", not "${'x'.repeat(59)}...`],
  ['a mode', '[tls]\nmode = true', ': tls.mode must be "off" or "optional" or "required", not true'],
  ['a certificate without key', '[tls]\ncertificate = "x"', ': tls.certificate needs its key: tls.key'],
  ['a key without certificate', '[tls]\nkey = "x"', ': tls.key needs its certificate: tls.certificate'],
  ['TLS without credentials', '[tls]\nmode = "required"', ': tls.mode needs tls.certificate and tls.key, or tls.psk'],
  ['authorities', '[tls]\nverify-peer = true', ': tls.verify-peer needs the authorities that sign certificates of clients: tls.ca'],
  ['a file that is not there', '[tls]\nmode = "optional"\npsk = "/nowhere/psk"', ': tls cannot be used: TLS file /nowhere/psk cannot be read: ENOENT'],
  ['a rule that allows nothing and forbids nothing', '[[access]]\nexport = "x"', ': access[0].allow is missing'],
  ['a permission', '[[access]]\nallow = "rw"', ': access[0].allow must be "deny" or "read-only" or "read-write", not "rw"'],
  ['a block', '[[access]]\nallow = "deny"\n[[access]]\nallow = "deny"\nclient = "10.0.0.0/33"', ': access[1].client must be an IP address, a block like "10.0.0.0/8", "unix" or "uid:N", not "10.0.0.0/33"'],
  ['a block of IPv6', '[[access]]\nallow = "deny"\nclient = "fe80::/129"', ': access[0].client must be an IP address, a block like "10.0.0.0/8", "unix" or "uid:N", not "fe80::/129"'],
  ['an identity that nobody can have', '[[access]]\nallow = "deny"\nidentity = "x"', ': access[0].identity is known by TLS only, and tls.mode is "off"'],
  ['HTTP with TLS and no certificate', '[http]\ntls = "required"', ': http.tls needs tls.certificate and tls.key'],
  ['a site without addresses', '[[site]]\nname = "x"', ': site[0].clients is missing'],
  ['a site that is no address', '[[site]]\nname = "x"\nclients = ["unix"]', ': site[0].clients must be a list of IP addresses and blocks, like ["10.0.0.0/8"], not ["unix"]'],
  ['two sites of one name', '[[site]]\nname = "x"\nclients = ["::1"]\n[[site]]\nname = "x"\nclients = ["::2"]', ': site[1].name is the name of another site'],
  ['a rate of nobody', '[[rate]]\nbits-per-second-max = 1e9', ': rate[0].per is missing'],
  ['a rate that is none', '[[rate]]\nper = "agent"', ': rate[0].bits-per-second-max is missing'],
  ['a rate of a site that is not there', '[[rate]]\nper = "site"\nsite = "x"\nbits-per-second-max = 10_000', ': rate[0].site is no name of a [[site]]'],
  ['a time', '[[rate]]\nper = "agent"\nfrom = "24:00"\nbits-per-second-max = 10_000', ': rate[0].from must be a time of day like "08:30", not "24:00"'],
  ['a time of no length', '[[rate]]\nper = "agent"\nfrom = "08:00"\nto = "08:00"\nbits-per-second-max = 10_000', ': rate[0].to is when it begins'],
  ['several', 'home = 1\n[nbd]\nlisten = 1\n[http]\nlisten = 1', ': home must be ', ': nbd.listen must be ', ': http.listen must be '],
]

for (const [name, text, ...expected] of MISTAKES) {
  test(`a mistake in the file is told in one line, with its place and what is allowed: ${name}`, () => {
    using scratch = new ScratchDirectory('config')
    const { file, mistakes } = loadText(scratch, text)
    assert.equal(mistakes.length, expected.length, mistakes.join('\n'))
    for (const [index, start] of expected.entries()) {
      assert.ok(mistakes[index].startsWith(file + start), `${mistakes[index]}\n${file}${start}`)
      assert.doesNotMatch(mistakes[index], /\n/)
    }
    assert.throws(() => requireSettings(file), { code: 'CONFIG_INVALID' })
  })
}

test('a file of any bytes is sound or has mistakes, and never breaks the reader', () => {
  using scratch = new ScratchDirectory('config')
  const seed = testSeed()
  const random = new Random(seed)
  for (let round = 0; round < 300; round++) {
    const bytes = Buffer.from(EVERYTHING)
    for (let count = random.between(1, 20); count > 0; count--) bytes[random.below(bytes.length)] = random.below(256)
    const from = random.below(bytes.length)
    const text = random.chance(0.3) ? bytes.subarray(from) : bytes
    const file = scratch.join('any.toml')
    writeFileSync(file, text)
    for (const mistake of loadSettings(file).mistakes) assert.match(mistake, /^\/.*[: ]/, `seed ${seed}, round ${round}`)
  }
  writeFileSync(scratch.join('deep.toml'), `x = ${'['.repeat(100_000)}`)
  assert.equal(loadSettings(scratch.join('deep.toml')).mistakes.length, 1)
  writeFileSync(scratch.join('long.toml'), ' '.repeat(2 << 20))
  assert.match(loadSettings(scratch.join('long.toml')).mistakes[0], /at most 1048576 bytes/)
  assert.match(loadSettings(scratch.path).mistakes[0], /cannot be read: EISDIR/)
  assert.match(loadSettings('/dev/zero/x').mistakes[0], /there is no such file/)
})

test('varve config check ends with 1 and a line for each mistake, show prints what serve would take', () => {
  using scratch = new ScratchDirectory('config')
  const file = scratch.join('varve.toml')
  writeFileSync(file, 'home = "there"\n[nbd]\nlisten = ["127.0.0.1:1"]\n[http]\nlisten = "127.0.0.1:2"\n[log]\nlevel = "error"\n')
  assert.deepEqual(varve('/nowhere', ['config', 'check', file]).json, { file, mistakes: [] })
  const shown = varve(scratch.join('given'), ['config', 'show', '--config', file, '--nbd', '127.0.0.1:3', '--threads', '5', '--log-level', 'debug', '--tls-cert', scratch.join('a.pem'), '--tls-key', scratch.join('b.pem')]).json
  assert.deepEqual(shown, {
    ...JSON.parse(JSON.stringify(defaultSettings())),
    home: scratch.join('given'),
    nbd: { listen: ['127.0.0.1:3'], threads: 5, drainMsMax: 5000 },
    http: { listen: '127.0.0.1:2', tls: 'off', images: false },
    log: { level: 'debug' },
    tls: { mode: 'off', verifyPeer: false, certificate: scratch.join('a.pem'), key: scratch.join('b.pem') },
  })

  writeFileSync(file, '[nbd]\nlisten = 1\n[log]\nlevel = 1\n')
  assert.equal(varve('/nowhere', ['config', 'check', file], { expect: 1 }).json.mistakes.length, 2)
  const { code, message } = varve('/nowhere', ['serve', '--config', file], { expect: 1 }).json.error
  assert.equal(code, 'CONFIG_INVALID')
  assert.match(message, /nbd\.listen must be .*; and 1 more, which varve config check lists/)
  assert.equal(varve('/nowhere', ['serve', '--config', scratch.join('none')], { expect: 1 }).json.error.code, 'CONFIG_INVALID')
  assert.equal(varve('/nowhere', ['config', 'check', scratch.join('none')], { expect: 1 }).json.mistakes.length, 1)
})

test('docs/service.md lists every setting, and no other', () => {
  const page = readFileSync(path.resolve(import.meta.dirname, '../../../docs/service.md'), 'utf8')
  const section = page.slice(page.indexOf('## Configuration'), page.indexOf('## Signals'))
  const listed = [...section.matchAll(/^\| `([a-z][a-z-]*(?:\.[a-z-]+)?)` \|/gm)].map((match) => match[1])
  const settings = Object.keys(TOP).map(kebab)
  for (const [section, readers] of [...Object.entries(SECTIONS), ...Object.entries(LISTS).map(([list, { readers: columns }]) => [list, columns] as const)]) for (const name of Object.keys(readers)) settings.push(`${section}.${kebab(name)}`)
  assert.deepEqual(listed.sort(), settings.sort())
})
