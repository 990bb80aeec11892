import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import test, { after, describe } from 'node:test'
import { VarveError } from '@varve/images/errors.ts'
import { OciImage } from '@varve/images/formats/oci-layout.ts'
import { Random, testSeed } from '../../random.ts'
import { INDEX_TYPE, LAYER_TYPE, MANIFEST_TYPE, OciFiles, tagged } from './oci-files.ts'

const seed = testSeed()
const directory = mkdtempSync(path.join(tmpdir(), 'varve-oci-'))
after(() => rmSync(directory, { recursive: true, force: true }))

let layouts = 0
function layout(): OciFiles {
  return new OciFiles(path.join(directory, String(layouts++)))
}

async function read(files: OciFiles, options: { tag?: string; architecture?: string } = {}): Promise<string[]> {
  const image = await OciImage.open(files.directory, options)
  const contents: string[] = []
  for (const layer of image.layers) {
    const parts: Buffer[] = []
    for await (const bytes of image.layerBytes(layer)) parts.push(Buffer.from(bytes))
    contents.push(Buffer.concat(parts).toString())
  }
  return contents
}

function layer(files: OciFiles, content: string, mediaType = LAYER_TYPE) {
  return files.blob(Buffer.from(content), mediaType)
}

describe('OCI image layout', () => {
  test('layers come bottom first, by tag or because there is but one image', async () => {
    const files = layout()
    files.index([files.manifest([layer(files, 'one'), layer(files, 'two')], tagged('a')), files.manifest([layer(files, 'three')], tagged('b'))])
    assert.deepEqual(await read(files, { tag: 'a' }), ['one', 'two'])
    assert.deepEqual(await read(files, { tag: 'b' }), ['three'])
    await assert.rejects(read(files), { code: 'SOURCE_INVALID', message: /several images, a, b; choose one/ })
    await assert.rejects(read(files, { tag: 'c' }), { code: 'SOURCE_INVALID', message: /no image c; it has a, b/ })
    files.index([files.manifest([layer(files, 'three')])])
    assert.deepEqual(await read(files), ['three'])
  })

  test('an index in the index is resolved for the machine', async () => {
    const files = layout()
    const forMachine = (architecture: string) => files.manifest([layer(files, architecture)], { platform: { os: 'linux', architecture } })
    const attestation = files.manifest([layer(files, 'attestation', 'application/vnd.in-toto+json')], { platform: { os: 'unknown', architecture: 'unknown' } })
    files.index([files.json({ schemaVersion: 2, manifests: [forMachine('arm64'), forMachine('amd64'), attestation] }, INDEX_TYPE, tagged('a'))])
    assert.deepEqual(await read(files, { architecture: 'amd64' }), ['amd64'])
    assert.deepEqual(await read(files, { tag: 'a', architecture: 'arm64' }), ['arm64'])
    await assert.rejects(read(files, { architecture: 's390x' }), { code: 'SOURCE_INVALID', message: /not for linux\/s390x; it is for linux\/arm64/ })
  })

  test("Docker's media types are read, those of other things are not", async () => {
    const files = layout()
    const docker = { schemaVersion: 2, layers: [layer(files, 'x', 'application/vnd.docker.image.rootfs.diff.tar.gzip')] }
    files.index([files.json(docker, 'application/vnd.docker.distribution.manifest.v2+json')])
    assert.deepEqual(await read(files), ['x'])
    files.index([files.manifest([layer(files, 'x', 'application/vnd.cncf.helm.chart.content.v1.tar+gzip')])])
    await assert.rejects(read(files), { code: 'FORMAT_UNSUPPORTED', message: /not that of a filesystem layer/ })
    files.index([files.json({}, 'application/json')])
    await assert.rejects(read(files), { code: 'FORMAT_UNSUPPORTED' })
  })

  test('blobs are checked against digest and size; SHA-512 is known', async () => {
    const files = layout()
    const good = files.blob(Buffer.from('good'), LAYER_TYPE, {}, 'sha512')
    files.index([files.manifest([good])])
    assert.deepEqual(await read(files), ['good'])
    for (const content of ['bad!', 'good and more', 'goo', '']) {
      writeFileSync(path.join(files.directory, 'blobs', good.digest.replace(':', '/')), content)
      await assert.rejects(read(files), { code: 'FORMAT_INVALID' }, content)
    }
    const manifest = files.manifest([])
    files.index([manifest])
    writeFileSync(path.join(files.directory, 'blobs', manifest.digest.replace(':', '/')), JSON.stringify({ layers: [good] }))
    await assert.rejects(read(files), { code: 'FORMAT_INVALID', message: /blob sha256/ })
    rmSync(path.join(files.directory, 'blobs', manifest.digest.replace(':', '/')))
    await assert.rejects(read(files), { code: 'SOURCE_INVALID', message: /not a whole OCI image layout/ })
  })

  test('digests that would lead out of the layout are refused', async () => {
    const files = layout()
    for (const digest of ['sha256:../../../etc/passwd', `sha256:${'A'.repeat(64)}`, 'md5:00', '', 'sha256', `sha512:${'0'.repeat(64)}`]) {
      files.index([{ mediaType: MANIFEST_TYPE, digest, size: 10 }])
      await assert.rejects(read(files), { code: 'FORMAT_INVALID' }, digest)
    }
  })

  test('what is no layout is refused', async () => {
    const files = layout()
    await assert.rejects(OciImage.open(path.join(directory, 'nothing')), { code: 'SOURCE_INVALID', message: /oci-layout is missing/ })
    await assert.rejects(read(files), { code: 'SOURCE_INVALID', message: /index\.json is missing/ })
    for (const text of ['', 'null', '[]', '{', '{"manifests": 5}', '{"manifests": [null]}', '['.repeat(1_000_000)]) {
      writeFileSync(`${files.directory}/index.json`, text)
      await assert.rejects(read(files), { code: 'FORMAT_INVALID' }, text.slice(0, 20))
    }
    writeFileSync(`${files.directory}/oci-layout`, '{"imageLayoutVersion": "2.0.0"}')
    await assert.rejects(read(files), { code: 'FORMAT_UNSUPPORTED' })
  })

  test('sizes, depths and numbers are limited', async () => {
    const files = layout()
    files.index([files.manifest(Array.from({ length: 1025 }, () => layer(files, 'x')))])
    await assert.rejects(read(files), { code: 'LIMIT_EXCEEDED', message: /1025 items/ })
    let inner = files.manifest([])
    for (let depth = 0; depth < 10; depth++) inner = files.json({ manifests: [inner] }, INDEX_TYPE)
    files.index([inner])
    await assert.rejects(read(files), { code: 'LIMIT_EXCEEDED', message: /nested/ })
    writeFileSync(`${files.directory}/index.json`, Buffer.alloc(5 << 20, ' '))
    await assert.rejects(read(files), { code: 'LIMIT_EXCEEDED' })
    files.index([{ ...files.manifest([]), size: 1e12 }])
    await assert.rejects(read(files), { code: 'LIMIT_EXCEEDED' })
  })

  test(`damaged JSON: an error with a code or an image, nothing else (seed ${seed})`, async () => {
    const random = new Random(seed)
    const files = layout()
    const first = layer(files, 'one')
    for (let round = 0; round < 1500; round++) {
      const manifest = files.blob(mutated(Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: MANIFEST_TYPE, config: first, layers: [first, first] })), random), MANIFEST_TYPE)
      files.index([manifest])
      const index = readFileSync(`${files.directory}/index.json`)
      if (random.chance(0.5)) writeFileSync(`${files.directory}/index.json`, mutated(index, random))
      try {
        await read(files)
      } catch (error) {
        assert.ok(error instanceof VarveError, `seed ${seed}, round ${round}: ${(error as Error).stack}`)
      }
    }
  })
})

/** Changes bytes, or takes a value for another. */
function mutated(bytes: Buffer, random: Random): Buffer {
  let text = bytes.toString('latin1')
  for (let changes = random.below(4); changes > 0; changes--) {
    const at = random.below(text.length)
    if (random.chance(0.5)) {
      text = text.slice(0, at) + String.fromCharCode(random.below(256)) + text.slice(at + random.below(3))
    } else {
      const values = [...text.matchAll(/"[^"]*"|\d+|\[[^[\]]*\]/g)]
      if (values.length === 0) continue
      const value = random.pick(values)
      text = text.slice(0, value.index) + random.pick(['null', '-1', '1e300', '[]', '{}', '""', 'true', '[null]', '{"__proto__": null}']) + text.slice(value.index + value[0].length)
    }
  }
  return Buffer.from(text, 'latin1')
}
