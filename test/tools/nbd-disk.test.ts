/** URIs of NBD exports as people write them. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { parseNbdUri } from '@varve/tools/nbd-disk.ts'

test('URIs of NBD exports are taken apart, and what is none is refused by what it should be', () => {
  assert.deepEqual(parseNbdUri('nbd://host/a%20b'), { address: 'host:10809', exportName: 'a b', isSecure: false })
  assert.deepEqual(parseNbdUri('nbds://[::1]:11/'), { address: '[::1]:11', exportName: '', isSecure: true })
  assert.deepEqual(parseNbdUri('nbd+unix:///desk?socket=/run/a%20b'), { address: 'unix:/run/a b', exportName: 'desk', isSecure: false })
  for (const text of ['nbd:', 'nbd:///desk', 'nbd+unix:///desk', 'http://host/desk', 'nbd://host/%zz', 'nbd://host/%ff', 'nbd://host:99999/']) assert.throws(() => parseNbdUri(text), { code: 'SOURCE_INVALID' }, text)
})
