import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { decodeBootKit, encodeBootKit, placeBiosBoot } from '@varve/composer/boot/boot-kit.ts'
import { bootKitKey, buildBootKit } from '@varve/composer/boot/build-boot-kit.ts'
import { grubConfig } from '@varve/composer/boot/grub-config.ts'
import { hostGrubFiles, treeGrubFiles, withDependencies } from '@varve/composer/boot/grub-modules.ts'
import { isVarveError } from '@varve/images/errors.ts'
import { MemoryStore } from '@varve/images/store/memory-store.ts'
import { TreeBuilder } from '@varve/images/tree/tree-builder.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import { Random, testSeed } from '../../random.ts'

const directory = mkdtempSync(join(tmpdir(), 'varve-kit-test-'))
after(() => rmSync(directory, { recursive: true }))

const host = { 'i386-pc': hostGrubFiles('i386-pc'), 'x86_64-efi': hostGrubFiles('x86_64-efi') }

test('two builds from the same files give the same kit', async () => {
  const first = encodeBootKit(await buildBootKit(host))
  const second = encodeBootKit(await buildBootKit(host))
  assert.ok(Buffer.from(first).equals(second))
  assert.deepEqual(await bootKitKey(host), await bootKitKey(host))
})

test('files of GRUB in a layer give the same kit as the same files on the machine', async () => {
  await using store = new MemoryStore()
  const tree = await grubTree(store)
  const sources = { 'i386-pc': treeGrubFiles('i386-pc', tree, store)!, 'x86_64-efi': treeGrubFiles('x86_64-efi', tree, store)! }
  assert.deepEqual(await bootKitKey(sources), await bootKitKey(host))
  assert.ok(Buffer.from(encodeBootKit(await buildBootKit(sources))).equals(encodeBootKit(await buildBootKit(host))))
})

async function grubTree(store: MemoryStore) {
  const common = { mode: 0o755, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanoseconds: 0 }
  const builder = new TreeBuilder({ ...common, kind: Kind.directory })
  let parent = 0
  for (const name of ['usr', 'lib', 'grub']) parent = builder.addEntry(parent, name, builder.addInode({ ...common, kind: Kind.directory }))
  await using writer = store.writer()
  for (const platform of ['i386-pc', 'x86_64-efi']) {
    const entry = builder.addEntry(parent, platform, builder.addInode({ ...common, kind: Kind.directory }))
    for (const item of readdirSync(`/usr/lib/grub/${platform}`, { withFileTypes: true })) {
      if (!item.isFile()) continue
      const bytes = readFileSync(join(item.parentPath, item.name))
      const inode = builder.addInode({ ...common, kind: Kind.file })
      if (bytes.length > 0) builder.setContent(inode, [builder.addChunk(writer.put(bytes), bytes.length)], [bytes.length])
      builder.addEntry(entry, item.name, inode)
    }
  }
  await writer.commit()
  return builder.build()
}

test('without its files, GRUB is missing, and the package is named', async () => {
  const missing = { ...host, 'x86_64-efi': hostGrubFiles('x86_64-efi', join(directory, 'nothing')) }
  const named = (error: unknown) => isVarveError(error, 'BOOT_MISSING') && error.message.includes('grub-efi-amd64-bin')
  await assert.rejects(bootKitKey(missing), named)
  await assert.rejects(buildBootKit(missing), named)
})

test('files that are not those of GRUB are an error, not an image', async () => {
  const platform = join(directory, 'broken', 'i386-pc')
  mkdirSync(platform, { recursive: true })
  for (const name of readdirSync('/usr/lib/grub/i386-pc')) writeFileSync(join(platform, name), name === 'moddep.lst' ? 'biosdisk:\n' : 'x')
  await assert.rejects(buildBootKit({ ...host, 'i386-pc': hostGrubFiles('i386-pc', join(directory, 'broken')) }), (error) => isVarveError(error, 'BOOT_MISSING'))
})

test('a module brings what it needs, over any number of steps and in circles', () => {
  assert.deepEqual(withDependencies(['a', 'x'], 'a: b c\nb: d\nd: a\ne: f\n'), ['a', 'b', 'c', 'd', 'x'])
})

test('a kit is read back as it was written', () => {
  const random = new Random(1)
  const kit = { bootImage: random.bytes(440), coreImage: random.bytes(1024), efiImage: random.bytes(777) }
  const decoded = decodeBootKit(encodeBootKit(kit))
  assert.deepEqual(Object.values(decoded).map((bytes) => Buffer.from(bytes)), Object.values(kit))
})

test('damaged kits are refused with a code', () => {
  const seed = testSeed()
  const random = new Random(seed)
  const valid = Buffer.from(encodeBootKit({ bootImage: random.bytes(440), coreImage: random.bytes(1024), efiImage: random.bytes(77) }))
  for (let round = 0; round < 5000; round++) {
    let bytes: Buffer = random.chance(0.1) ? random.bytes(random.below(100)) : Buffer.from(valid)
    if (random.chance(0.5)) bytes = bytes.subarray(0, random.below(bytes.length + 1))
    for (let flips = random.below(4); flips > 0 && bytes.length > 0; flips--) bytes[random.below(Math.min(bytes.length, 32))] = random.below(256)
    try {
      decodeBootKit(bytes)
    } catch (error) {
      assert.ok(isVarveError(error, 'FORMAT_INVALID', 'FORMAT_UNSUPPORTED'), `VARVE_TEST_SEED=${seed}, round ${round}: ${error}`)
    }
  }
})

test('boot code and core image know where the core image lies', () => {
  const kit = { bootImage: new Uint8Array(440).fill(1), coreImage: new Uint8Array(1024).fill(2), efiImage: new Uint8Array(1) }
  const { bootCode, core } = placeBiosBoot(kit, 5 * 2 ** 41)
  assert.equal(Buffer.from(bootCode).readBigUInt64LE(0x5c), 5n * 2n ** 32n)
  assert.deepEqual([...bootCode.subarray(0x64, 0x69)], [1, 1, 0x90, 0x90, 1])
  assert.equal(Buffer.from(core).readBigUInt64LE(0x1f4), 5n * 2n ** 32n + 1n)
  assert.equal(kit.bootImage[0x5c], 1, 'the kit itself stays as it is')
})

test('grub.cfg is accepted by GRUB\'s own parser, whatever the command line', () => {
  const kernels = [{ version: '6.1.0-10-amd64', path: 'boot/vmlinuz-6.1.0-10-amd64', initrdPath: 'boot/initrd.img-6.1.0-10-amd64' }, { version: '6.1.0-9-amd64', path: 'boot/vmlinuz-6.1.0-9-amd64', initrdPath: undefined }]
  const rootUuid = '01234567-89ab-8def-8123-456789abcdef'
  for (const kernelCommandLine of ['', 'quiet console=ttyS0,115200', `a='b c' d="e" $f {g} ;h |i &j \`k\` #l <m> \\n`]) {
    for (const [kernelsOn, links] of [['root', undefined], ['root', { kernel: 'vmlinuz', initrd: 'initrd.img' }], ['efi', undefined]] as const) {
      const text = grubConfig({ kernels, kernelsOn, links, rootUuid, rootPartitionGuid: rootUuid, rootPartition: 3, kernelCommandLine })
      writeFileSync(join(directory, 'grub.cfg'), text, 'latin1')
      execFileSync('grub-script-check', [join(directory, 'grub.cfg')], { stdio: 'pipe' })
      assert.match(text, /root=PARTUUID=.* rootwait rw/)
    }
  }
})

test('the digest of a kit changes with any of its files', async () => {
  const changed = { ...host, 'i386-pc': { where: 'test', read: async (name: string) => (name === 'kernel.img' ? Buffer.from('other') : host['i386-pc'].read(name)) } }
  assert.notDeepEqual(await bootKitKey(changed), await bootKitKey(host))
})
