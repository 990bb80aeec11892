import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { DirectoryWriter, Names } from '@varve/images/filesystems/ext4/directories.ts'
import { directoryHash, hashSeedWords } from '@varve/images/filesystems/ext4/directory-hash.ts'
import { Random, testSeed } from '../../../random.ts'
import { compareTree } from '../compare-tree.ts'
import { MemoryTree } from '../memory-tree.ts'
import { Ext4Image, OPTIONS } from './ext4-image.ts'

describe('directories of ext4', () => {
  test('hashes are those of the kernel', () => {
    const seed = testSeed()
    const random = new Random(seed)
    const built = new MemoryTree()
    const names = ['a', 'ab', 'abc', 'x'.repeat(31), 'x'.repeat(32), 'x'.repeat(33), 'x'.repeat(64), 'x'.repeat(255), '\xff\xfe\x80', ...Array.from({ length: 50 }, () => random.bytes(40).toString('hex').slice(random.below(79)))]
    for (const name of names) built.file(0, name)
    const tree = built.build()
    for (const hashSeed of [OPTIONS.hashSeed, Buffer.alloc(16)]) {
      using image = new Ext4Image(tree, { hashSeed })
      for (const name of names.filter((name) => /^\w+$/.test(name))) {
        const seedText = Buffer.from(hashSeed).toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-')
        const answer = image.debugfs(`dx_hash -h half_md4 -s ${seedText} ${name}`)
        assert.equal(directoryHash(name, hashSeedWords(hashSeed)), Number(/is (0x[0-9a-f]+)/.exec(answer)?.[1]), `${name}, VARVE_TEST_SEED=${seed}`)
      }
    }
  })

  test('names with one hash are found on both sides of the end of a block', () => {
    // Long names, so that few fill a block; pairs with one hash, so that many of them stand at its end.
    const seed = hashSeedWords(OPTIONS.hashSeed)
    const byHash = new Map<number, string>()
    const built = new MemoryTree()
    const directory = built.directory(0, 'd')
    const prefix = 'p'.repeat(224)
    let names = 0
    for (let index = 0; names < 400; index++) {
      const name = `${prefix}${index}`
      const hash = directoryHash(name, seed)
      const other = byHash.get(hash)
      byHash.set(hash, name)
      if (other === undefined) continue
      built.file(directory, name)
      built.file(directory, other)
      names += 2
    }
    const done = built.build()
    using image = new Ext4Image(done)
    image.check()
    const marked = [...image.debugfs('htree_dump /d').matchAll(/Hash 0x([0-9a-f]{8})/g)].filter(([, hash]) => Number.parseInt(hash, 16) % 2 === 1)
    assert.ok(marked.length > 0, 'no pair stands on both sides of an end')
    assert.deepEqual(compareTree(image.mount('ro'), done, { extraNames: ['lost+found'] }), [])
  })

  test('the index gets another level only when the one above is full', () => {
    const seed = hashSeedWords(OPTIONS.hashSeed)
    const names = new Names()
    const blocks = 3000
    const bytes = new Uint8Array(blocks * 4096)
    const writer = new DirectoryWriter(bytes, seed)
    const levels: number[] = []
    const place = { block: 0, self: 12, parent: 2, checksumSeed: 1, blocksMin: 1 }
    for (const count of [10, 17, 6000, 20_000]) {
      names.clear()
      for (let index = 0; index < count; index++) names.add(`${'n'.repeat(240)}${index}`, index + 13, 1)
      bytes.fill(0)
      const result = writer.write(names, place)
      levels.push(result.indexed ? bytes[30] : -1)
      assert.equal(result.large, false)
      assert.ok(result.blocks <= blocks)
    }
    assert.deepEqual(levels, [-1, 0, 0, 1])
  })
})
