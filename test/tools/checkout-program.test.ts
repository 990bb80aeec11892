/**
 * The command of a checkout runs from a bundle that is never older than its sources.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { appendFileSync, cpSync, mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, utimesSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { ScratchDirectory } from '../varve-command.ts'

const root = path.resolve(import.meta.dirname, '../..')

/** The launcher and what bundles, around a program of two modules and a file beside one of them. */
class Checkout extends ScratchDirectory {
  constructor() {
    super('checkout')
    mkdirSync(this.join('tools/parts'), { recursive: true })
    for (const file of ['varve', 'varve.ts', 'checkout-program.ts', 'bundle.ts']) cpSync(path.join(root, 'tools', file), this.join('tools', file))
    writeFileSync(this.join('package.json'), '{ "type": "module" }')
    writeFileSync(this.join('tsconfig.json'), '{}')
    writeFileSync(this.join('tools/program.ts'), `
      import { word } from './parts/word.ts'
      const { place } = await import('./parts/place.ts')
      console.log(word + ' ' + process.argv.slice(2).join(' ') + ' ' + place)
    `)
    this.write('one')
    writeFileSync(this.join('tools/parts/beside.txt'), 'found')
    writeFileSync(this.join('tools/parts/place.ts'), `
      import { readFileSync } from 'node:fs'
      const ways = [import.meta.resolve('./beside.txt'), new URL('./beside.txt', import.meta.url).href, 'file://' + import.meta.dirname + '/beside.txt']
      export const place: string = ways.map((url) => readFileSync(new URL(url), 'utf8')).join()
    `)
    mkdirSync(this.join('node_modules'))
    for (const name of readdirSync(path.join(root, 'node_modules'))) if (name !== '.cache') symlinkSync(path.join(root, 'node_modules', name), this.join('node_modules', name))
  }

  get cache(): string {
    return this.join('node_modules/.cache/varve')
  }

  write(word: string): void {
    writeFileSync(this.join('tools/parts/word.ts'), `export const word: string = '${word}'`)
  }

  run(...args: string[]): { status: number | null; stdout: string; stderr: string } {
    return spawnSync(this.join('tools/varve'), args, { encoding: 'utf8', env: { ...process.env, NODE_COMPILE_CACHE: '' } })
  }

  /** Marks the newest bundle, so that its output tells that it ran. */
  markBundle(): void {
    const { bundle } = JSON.parse(readFileSync(path.join(this.cache, 'newest.json'), 'utf8')) as { bundle: string }
    appendFileSync(path.join(this.cache, bundle, 'program.mjs'), '\nconsole.log("from a bundle")\n')
  }
}

test('a copy of a checkout runs its own sources', () => {
  using checkout = new Checkout()
  assert.equal(checkout.run().stdout, 'one  found,found,found\n')
  using copies = new ScratchDirectory('checkout-copy')
  const copy = copies.join('copy')
  cpSync(checkout.path, copy, { recursive: true, preserveTimestamps: true, verbatimSymlinks: true })
  writeFileSync(path.join(copy, 'tools/parts/word.ts'), "export const word: string = 'other'")
  assert.equal(spawnSync(path.join(copy, 'tools/varve'), [], { encoding: 'utf8', env: { ...process.env, NODE_COMPILE_CACHE: '' } }).stdout, 'other  found,found,found\n')
})

test('a checkout runs the bundle of its sources as they are, and modules find what is beside them', () => {
  using checkout = new Checkout()
  assert.equal(checkout.run('a', 'b').stdout, 'one a b found,found,found\n')
  checkout.markBundle()
  assert.equal(checkout.run('a').stdout, 'one a found,found,found\nfrom a bundle\n')

  checkout.write('two')
  assert.equal(checkout.run().stdout, 'two  found,found,found\n')
  checkout.markBundle()
  assert.equal(checkout.run().stdout, 'two  found,found,found\nfrom a bundle\n')

  // Only the time differs.
  utimesSync(checkout.join('tools/parts/word.ts'), 1, 1)
  assert.equal(checkout.run().stdout, 'two  found,found,found\n')
})

test('a source that does not parse, or is gone, is reported as Node reports it; put right, it runs', () => {
  using checkout = new Checkout()
  checkout.run()
  writeFileSync(checkout.join('tools/parts/word.ts'), 'export const word = = 1')
  const broken = checkout.run()
  assert.notEqual(broken.status, 0)
  assert.match(broken.stderr, /parts\/word\.ts/)
  rmSync(checkout.join('tools/parts/word.ts'))
  assert.match(checkout.run().stderr, /ERR_MODULE_NOT_FOUND/)
  checkout.write('again')
  assert.equal(checkout.run().stdout, 'again  found,found,found\n')
})

test('where no bundle can be made, the sources run', () => {
  using checkout = new Checkout()
  rmSync(checkout.join('node_modules/esbuild'))
  assert.equal(checkout.run('x').stdout, 'one x found,found,found\n')
  assert.deepEqual(readdirSync(checkout.cache).filter((name) => name !== 'compiled'), [], 'nothing is left of the attempt')

  using readOnly = new Checkout()
  writeFileSync(readOnly.join('node_modules/.cache'), 'a file where the cache would be')
  assert.equal(readOnly.run('x').stdout, 'one x found,found,found\n')
})

test('bundles and what was compiled of them do not pile up', () => {
  using checkout = new Checkout()
  checkout.run()
  for (let old = 0; old < 40; old++) {
    const directory = path.join(checkout.cache, `bundle-old${old}`)
    mkdirSync(directory)
    utimesSync(directory, 1000 + old, 1000 + old)
  }
  const compiled = path.join(checkout.cache, 'compiled/some-node')
  mkdirSync(compiled, { recursive: true })
  for (const [name, time] of [['of-a-removed-bundle', 1000], ['of-a-kept-bundle', 1039]] as const) {
    writeFileSync(path.join(compiled, name), '')
    utimesSync(path.join(compiled, name), time, time)
  }
  checkout.write('new')
  assert.equal(checkout.run().stdout, 'new  found,found,found\n')
  const bundles = readdirSync(checkout.cache).filter((name) => name.startsWith('bundle-'))
  assert.equal(bundles.length, 16)
  assert.ok(bundles.includes('bundle-old39') && !bundles.includes('bundle-old0'))
  assert.deepEqual(readdirSync(compiled), ['of-a-kept-bundle'])
})
