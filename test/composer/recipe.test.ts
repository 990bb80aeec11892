/** Recipes: what a disk's name depends on, and what it does not. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { digestOf, digestToHex } from '@varve/images/chunk/digest.ts'
import { deriveSerial, deriveUuid, encodeRecipe, recipeDigest, uuidToString } from '@varve/composer/recipe.ts'
import type { Recipe } from '@varve/composer/recipe.ts'

const RECIPE: Recipe = {
  layers: [
    { name: 'base@1', kind: 'base', tree: digestOf(Buffer.from('base')) },
    { name: 'user@4', kind: 'user', tree: digestOf(Buffer.from('user')) },
  ],
  decisions: new Map([
    ['etc/passwd#zoë', 'user@4'],
    ['etc/group#gid:100', 'base@1'],
  ]),
  disk: { boot: 'grub', sizeBytes: null, freeBytes: 1 << 30, label: 'root', bootKit: digestOf(Buffer.from('kit')), filesystem: 'ext4', bootSet: null, kernelCommandLine: 'quiet' },
}

test('the encoding is canonical JSON, with decisions by place', () => {
  const tree = (text: string) => digestToHex(digestOf(Buffer.from(text)))
  assert.equal(
    Buffer.from(encodeRecipe(RECIPE)).toString(),
    `{"decisions":{"etc/group#gid:100":0,"etc/passwd#zoë":1},"disk":{"boot":"grub","bootKit":"${tree('kit')}","bootSet":null,"filesystem":"ext4","freeBytes":1073741824,"kernelCommandLine":"quiet","label":"root","sizeBytes":null},"layers":[{"kind":"base","tree":"${tree('base')}"},{"kind":"user","tree":"${tree('user')}"}],"version":1}`,
  )
})

test('names of layers and the order of decisions do not matter to the digest; everything else does', () => {
  const digest = digestToHex(recipeDigest(RECIPE))
  const renamed: Recipe = {
    ...RECIPE,
    layers: RECIPE.layers.map((layer, index) => ({ ...layer, name: `other@${index}` })),
    decisions: new Map([
      ['etc/group#gid:100', 'other@0'],
      ['etc/passwd#zoë', 'other@1'],
    ]),
  }
  assert.equal(digestToHex(recipeDigest(renamed)), digest)
  const changes: Recipe[] = [
    { ...RECIPE, layers: RECIPE.layers.toReversed() },
    { ...RECIPE, decisions: new Map() },
    { ...RECIPE, decisions: new Map([...RECIPE.decisions, ['etc/passwd#zoë', 'base@1']]) },
    ...Object.entries({ boot: 'none', sizeBytes: 5, freeBytes: null, label: 'x', bootKit: null, bootSet: digestOf(Buffer.from('s')), kernelCommandLine: '' }).map(([key, value]) => ({ ...RECIPE, disk: { ...RECIPE.disk, [key]: value } })),
  ]
  const digests = changes.map((recipe) => digestToHex(recipeDigest(recipe)))
  assert.equal(new Set([digest, ...digests]).size, changes.length + 1)
})

test('a decision for a layer that is not in the recipe is refused', () => {
  assert.throws(() => encodeRecipe({ ...RECIPE, decisions: new Map([['etc/passwd#a', 'gone@1']]) }), { code: 'NOT_FOUND' })
})

test('identifiers are of RFC 9562 version 8, differ by purpose and by recipe, and never change', () => {
  const digest = digestOf(Buffer.from('recipe'))
  const uuid = uuidToString(deriveUuid(digest, 'root filesystem'))
  assert.match(uuid, /^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/)
  assert.equal(uuid, '06330b01-de01-8e0f-b7f0-a13e5dc05946')
  assert.equal(deriveSerial(digest, 'EFI system partition'), 3406123077)
  assert.notEqual(uuid, uuidToString(deriveUuid(digest, 'disk')))
  assert.notEqual(uuid, uuidToString(deriveUuid(digestOf(Buffer.from('other')), 'root filesystem')))
})
