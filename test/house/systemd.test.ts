/**
 * The unit of the service, judged by systemd: without a manager that runs, so that it can be done in a container too.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import test from 'node:test'

const root = path.resolve(import.meta.dirname, '../..')
const unit = readFileSync(path.join(root, 'tools/systemd/varve.service'), 'utf8')
/** Of 10; what runs as root without any protection has 9.6. */
const EXPOSURE_MAX = 1.5

/** The unit in a directory of its own, with the command of this checkout. */
function analyze(...args: string[]): string {
  const directory = mkdtempSync(path.join(tmpdir(), 'varve-unit-'))
  try {
    const file = path.join(directory, 'varve.service')
    writeFileSync(file, unit.replace('ExecStart=varve ', `ExecStart=${path.join(root, 'tools/varve')} `))
    const { status, stdout, stderr, error } = spawnSync('systemd-analyze', [...args, file], { encoding: 'utf8' })
    assert.equal(status, 0, `${error ?? ''}${stdout}${stderr}`)
    return stdout + stderr
  } finally {
    rmSync(directory, { recursive: true })
  }
}

test('systemd finds nothing to remark in the unit', () => {
  assert.equal(analyze('verify', '--man=no'), '')
})

test('the service is confined', () => {
  const [, exposure] = /Overall exposure level for varve\.service: (\d+\.\d+)/.exec(analyze('security', '--offline=true', '--no-pager'))!
  assert.ok(Number(exposure) <= EXPOSURE_MAX, exposure)
})

test('the unit says what the service does: it notifies, answers the watchdog, reloads, and may compile', () => {
  for (const line of ['Type=notify', 'ExecStart=varve serve', "ExecReload=/bin/sh -c 'kill -HUP $MAINPID'", 'MemoryDenyWriteExecute=no']) assert.ok(unit.split('\n').includes(line), line)
  assert.match(unit, /^WatchdogSec=\d+$/m)
})
