/** What a chain of qcow2 images has written over one that is known; and chains of which that cannot be told. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'
import { changedAbove } from '@varve/images/formats/qcow2/backing-chain.ts'
import { qemuImg, qemuIo } from './image-judge.ts'

const root = mkdtempSync(join(tmpdir(), 'varve-backing-chain-'))
after(() => rmSync(root, { recursive: true }))
const CLUSTER = 64 << 10
const inRoot = (name: string): string => join(root, name)

function createOver(name: string, below: string, format: string): string {
  qemuImg('create', '-q', '-f', 'qcow2', '-b', below, '-F', format, inRoot(name))
  return inRoot(name)
}

describe('what is written above an image that is known', () => {
  test('is what all images above it have, to whole clusters', async () => {
    const base = inRoot('base.raw')
    writeFileSync(base, Buffer.alloc(1 << 20, 1))
    qemuIo(createOver('one.qcow2', base, 'raw'), 'write 0 512')
    qemuIo(createOver('two.qcow2', 'one.qcow2', 'qcow2'), 'write -z 128k 64k', 'write 512k 1k')
    const above = await changedAbove(inRoot('two.qcow2'), (file) => file === base)
    assert.equal(above?.file, base)
    assert.deepEqual([...above.changed], [0, CLUSTER, 2 * CLUSTER, 3 * CLUSTER, 8 * CLUSTER, 9 * CLUSTER])
    assert.equal(await changedAbove(inRoot('two.qcow2'), () => false), undefined)
  })

  test('is not told by a raw disk that holds the bytes of an image', async () => {
    const known = inRoot('known.raw')
    writeFileSync(known, Buffer.alloc(1 << 20, 1))
    const guest = createOver('guest.raw', known, 'raw')
    assert.equal(await changedAbove(createOver('over-guest.qcow2', guest, 'raw'), (file) => file === known), undefined)
    // It is an image where the one above says so, or leaves it open.
    assert.equal((await changedAbove(createOver('over-image.qcow2', guest, 'qcow2'), (file) => file === known))?.file, known)
  })

  test('is not known of an image whose data is in another file, which changes by itself', async () => {
    const image = inRoot('with-data.qcow2')
    qemuImg('create', '-q', '-f', 'qcow2', '-o', `data_file=${inRoot('data.raw')},data_file_raw=on`, image, '1M')
    assert.equal(await changedAbove(createOver('over-data.qcow2', image, 'qcow2'), (file) => file === image), undefined)
  })
})
