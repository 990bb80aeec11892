/** var/lib/dpkg/status: rules of docs/merge.md, and a database cut into layers that dpkg itself judges. */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { mkdir, mkdtemp, readFile, readdir, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { describe, test } from 'node:test'
import { promisify } from 'node:util'
import { contentOf, mergeSpecs, paths } from './layers.ts'
import type { LayerSpec, Merged } from './layers.ts'

const run = promisify(execFile)

interface Package {
  name: string
  version: string
  status?: string
  architecture?: string
  /** Multi-Arch: same. */
  same?: true
}

function stanza({ name, version, status = 'install ok installed', architecture = 'amd64', same }: Package): string {
  return `Package: ${name}\nStatus: ${status}\nPriority: optional\nMaintainer: Nobody <nobody@example.org>\nArchitecture: ${architecture}\n${same ? 'Multi-Arch: same\n' : ''}Version: ${version}\nDescription: ${name}\n about ${name}\n`
}

function listOf({ name, architecture = 'amd64', same }: Package): string {
  return `var/lib/dpkg/info/${name}${same ? `:${architecture}` : ''}.list`
}

/** @param database all packages in the layer's status @param installed those whose lists of files are in the layer, @param removed and are deleted by it */
function layer(database: Package[] | null, installed: Package[] = [], removed: Package[] = []): LayerSpec {
  return {
    ...(database === null ? {} : { 'var/lib/dpkg/status': database.map((entry) => `${stanza(entry)}\n`).join('') }),
    ...Object.fromEntries(installed.map((entry) => [listOf(entry), '/.\n'])),
    ...Object.fromEntries(removed.map((entry) => [listOf(entry), { whiteout: true as const }])),
  }
}

function versionsOf(merged: Merged): Record<string, string> {
  const stanzas = contentOf(merged, 'var/lib/dpkg/status').split('\n\n').filter((text) => text !== '')
  return Object.fromEntries(stanzas.map((text) => [`${/^Package: (.*)/m.exec(text)![1]}:${/^Architecture: (.*)/m.exec(text)![1]}`, `${/^Version: (.*)/m.exec(text)![1]} ${/^Status: \S+ \S+ (.*)/m.exec(text)![1]}`]))
}

const libc = (version: string): Package => ({ name: 'libc6', version, same: true })
const bash = (version: string): Package => ({ name: 'bash', version })
const gimp = (version: string): Package => ({ name: 'gimp', version })

describe('var/lib/dpkg/status', () => {
  test('after an update of the base below an application, each package has the state of the layer that has its files', async () => {
    const merged = await mergeSpecs([layer([libc('2'), bash('2')], [libc('2'), bash('2')]), layer([libc('1'), bash('1'), gimp('1')], [gimp('1')])])
    assert.deepEqual(versionsOf(merged), { 'libc6:amd64': '2 installed', 'bash:amd64': '2 installed', 'gimp:amd64': '1 installed' })
    assert.equal(merged.report.conflicts.length, 0)
  })

  test('a package that the application upgraded keeps the version of the application', async () => {
    const merged = await mergeSpecs([layer([libc('1'), bash('1')], [libc('1'), bash('1')]), layer([libc('3'), bash('1')], [libc('3')])])
    assert.deepEqual(versionsOf(merged), { 'libc6:amd64': '3 installed', 'bash:amd64': '1 installed' })
  })

  test('a package that a layer purges is gone, even if a layer above still speaks of it', async () => {
    const base = [bash('1'), gimp('1')]
    const merged = await mergeSpecs([layer(base, base), layer([bash('1')], [], [gimp('1')]), layer(base)])
    assert.deepEqual(versionsOf(merged), { 'bash:amd64': '1 installed' })
  })

  test('a package that is purged and installed again is there', async () => {
    const merged = await mergeSpecs([layer([gimp('1')], [gimp('1')]), layer([], [], [gimp('1')]), layer([gimp('2')], [gimp('2')])])
    assert.deepEqual(versionsOf(merged), { 'gimp:amd64': '2 installed' })
  })

  test('a package that the new base no longer has is left out, with a note', async () => {
    const merged = await mergeSpecs([layer([bash('2')], [bash('2')]), layer([bash('1'), gimp('1')])])
    assert.deepEqual(versionsOf(merged), { 'bash:amd64': '2 installed' })
    assert.deepEqual(merged.report.conflicts.map(({ key, needsDecision }) => [key, needsDecision]), [['var/lib/dpkg/status#gimp:amd64', false]])
    assert.equal(merged.report.open, 0)
  })

  test('what the lowest layer says of packages without lists is believed', async () => {
    const merged = await mergeSpecs([layer([bash('1')]), layer([bash('2'), gimp('1')], [gimp('1')])])
    assert.deepEqual(versionsOf(merged), { 'bash:amd64': '2 installed', 'gimp:amd64': '1 installed' })
  })

  test('what an upper layer made of the same version (configured it, removed it) stands', async () => {
    const merged = await mergeSpecs([
      layer([{ ...bash('1'), status: 'install ok unpacked' }, gimp('1')], [bash('1'), gimp('1')]),
      layer([bash('1'), { ...gimp('1'), status: 'deinstall ok config-files' }], [gimp('1')]),
      layer([{ ...bash('1'), status: 'hold ok installed' }]),
    ])
    assert.deepEqual(versionsOf(merged), { 'bash:amd64': '1 installed', 'gimp:amd64': '1 config-files' })
    assert.match(contentOf(merged, 'var/lib/dpkg/status'), /hold ok installed/)
  })

  test('architectures of one package are kept apart, and `all` is the native one', async () => {
    const foreign = { ...libc('1'), architecture: 'i386' }
    const dpkg: Package = { name: 'dpkg', version: '1' }
    const merged = await mergeSpecs([
      layer([dpkg, libc('2'), bash('1')], [dpkg, libc('2'), bash('1')]),
      layer([dpkg, libc('1'), foreign, { ...bash('2'), architecture: 'all' }], [foreign, bash('2')]),
    ])
    assert.deepEqual(versionsOf(merged), { 'dpkg:amd64': '1 installed', 'libc6:amd64': '2 installed', 'bash:all': '2 installed', 'libc6:i386': '1 installed' })
  })
})

test('dpkg finds nothing wrong in the database of a base that was updated below two applications', async () => {
  const base = Array.from({ length: 40 }, (_, index): Package => ({ name: `lib${index}`, version: '2.0', same: index % 3 === 0 || undefined }))
  const old = base.map((entry) => ({ ...entry, version: '1.0' }))
  const purged = [base[4], base[6]]
  const apps = [gimp('9'), { name: 'editor', version: '7' }]
  const merged = await mergeSpecs([
    layer(base, base),
    layer([...old, { name: 'dropped', version: '1' }, apps[0]], [apps[0]]),
    layer([...old.filter(({ name }) => !purged.some((entry) => entry.name === name)), apps[1]], [apps[1]], purged),
  ])
  await withDatabase(merged, async (admin) => {
    await mkdir(join(admin, 'info'))
    await writeFile(join(admin, 'info/format'), '1\n')
    for (const path of paths(merged.tree)) {
      if (!path.endsWith('.list')) continue
      await writeFile(join(admin, 'info', basename(path)), contentOf(merged, path), 'latin1')
      await writeFile(join(admin, 'info', basename(path, '.list') + '.md5sums'), '')
    }
    assert.deepEqual(await audit(admin), ['', ''])
    const expected = [...base.filter((entry) => !purged.includes(entry)), ...apps].map(({ name, version }) => `${name} ${version}`)
    assert.deepEqual((await query(admin)).map((line) => line.split(' ').slice(0, 2).join(' ')).sort(), expected.sort())
  })
})

test("this machine's own database, cut into an updated base and an application made on the old one, comes back whole", async () => {
  const status = await readFile('/var/lib/dpkg/status', 'latin1')
  const lists = (await readdir('/var/lib/dpkg/info')).filter((name) => name.endsWith('.list'))
  const stanzas = status.split('\n\n').filter((text) => text.trim() !== '')
  const nameOf = (text: string) => /^Package: (.*)/m.exec(text)![1]
  const ofApplication = (name: string) => name.charCodeAt(name.length - 1) % 4 === 0
  const outdated = (text: string) => (ofApplication(nameOf(text)) ? text : text.replace(/^Version: .*/m, 'Version: 0~old'))
  const layerOf = (texts: string[], own: (name: string) => boolean): LayerSpec => ({
    'var/lib/dpkg/status': texts.join('\n\n') + '\n\n',
    ...Object.fromEntries(lists.filter((file) => own(file.replace(/(:.*)?\.list$/, ''))).map((file) => [`var/lib/dpkg/info/${file}`, 'x'])),
  })
  const base = stanzas.filter((text) => !ofApplication(nameOf(text)))
  const merged = await mergeSpecs([layerOf(base, (name) => !ofApplication(name)), layerOf(stanzas.map(outdated), ofApplication)])
  assert.ok(base.length > 10 && base.length < stanzas.length - 10)
  await withDatabase(merged, async (admin) => {
    for (const part of ['info', 'arch', 'triggers', 'diversions', 'statoverride']) await symlink(join('/var/lib/dpkg', part), join(admin, part))
    assert.deepEqual(await audit(admin), await audit('/var/lib/dpkg'))
    assert.deepEqual(await query(admin), await query('/var/lib/dpkg'))
  })
})

const ENVIRONMENT = { env: { ...process.env, LC_ALL: 'C' }, maxBuffer: 1 << 26 }

async function withDatabase(merged: Merged, use: (admin: string) => Promise<void>): Promise<void> {
  const admin = await mkdtemp(join(tmpdir(), 'varve-dpkg-'))
  try {
    await mkdir(join(admin, 'updates'))
    await writeFile(join(admin, 'status'), contentOf(merged, 'var/lib/dpkg/status'), 'latin1')
    await use(admin)
  } finally {
    await rm(admin, { recursive: true })
  }
}

async function audit(admin: string): Promise<string[]> {
  const { stdout, stderr } = await run('dpkg', [`--admindir=${admin}`, '--audit'], ENVIRONMENT)
  return [stdout, stderr]
}

async function query(admin: string): Promise<string[]> {
  const { stdout, stderr } = await run('dpkg-query', [`--admindir=${admin}`, '-W', '-f', '${Package} ${Version} ${Architecture} ${Status} ${Depends} ${Conffiles}\\n'], ENVIRONMENT)
  assert.equal(stderr, '')
  return stdout.trim().split('\n')
}
