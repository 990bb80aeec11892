/**
 * The published package: one tarball of plain JavaScript that works where it is installed.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { ScratchDirectory } from '../varve-command.ts'

const root = path.resolve(import.meta.dirname, '../..')
/** npm runs under the Node of this test: the version that the package asks for. */
const environment = { ...process.env, PATH: `${path.dirname(process.execPath)}:${process.env.PATH}` }

function run(command: string, args: string[], cwd = root): string {
  return execFileSync(command, args, { cwd, env: environment, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'], maxBuffer: 64 << 20 })
}

test('npm pack gives one tarball whose varve imports, composes and verifies after npm install -g', () => {
  using scratch = new ScratchDirectory('package')
  run('npm', ['pack', '--pack-destination', scratch.path])
  const tarballs = readdirSync(scratch.path)
  assert.equal(tarballs.length, 1)
  const files = run('tar', ['-tf', scratch.join(tarballs[0])]).split('\n')
  assert.deepEqual(files.filter((file) => file.endsWith('.ts') && !file.endsWith('.d.ts')), [], 'no TypeScript that Node would have to strip')
  assert.ok(files.includes('package/dist/images/store/home.d.ts'), 'type declarations')
  assert.ok(files.includes('package/tools/systemd/varve.service'), 'the unit of the service')

  const prefix = scratch.join('prefix')
  run('npm', ['install', '--global', '--prefix', prefix, scratch.join(tarballs[0])])
  assert.ok(existsSync(path.join(prefix, 'bin/varve')))
  const source = scratch.join('source')
  mkdirSync(source)
  writeFileSync(path.join(source, 'hello.txt'), 'hello\n')
  const varve = (...args: string[]): any => JSON.parse(run(path.join(prefix, 'bin/varve'), [...args, '--json', '--home', scratch.join('home')], scratch.path))
  assert.equal(varve('layer', 'import', 'hello', `dir:${source}`, '--kind', 'user').layer, 'hello@1')
  varve('cvd', 'create', 'desk', '--layer', 'hello', '--boot', 'none')
  assert.match(varve('compose', 'desk').diskDigest, /^[0-9a-f]{64}$/)
  assert.equal(varve('verify').damageCount, 0)
})
