/**
 * LvmDisk: a disk of two partitions that are physical volumes, made by LVM's own tools, which need no device mapper as long as nothing is activated.
 */
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

const MIB = 2 ** 20
export const PARTITIONS = [{ firstByte: MIB, byteLength: 96 * MIB }, { firstByte: 97 * MIB, byteLength: 62 * MIB }]

export class LvmDisk implements Disposable {
  readonly directory = mkdtempSync(join(tmpdir(), 'varve-lvm-'))
  readonly path = join(this.directory, 'disk')
  /** Of the partitions. */
  readonly devices: readonly string[]

  constructor() {
    writeFileSync(this.path, '')
    truncateSync(this.path, 160 * MIB)
    mkdirSync(join(this.directory, 'system'))
    const lines = PARTITIONS.map(({ firstByte, byteLength }) => `start=${firstByte / 512}, size=${byteLength / 512}, type=lvm`)
    execFileSync('sfdisk', ['-q', this.path], { input: `label: gpt\n${lines.join('\n')}\n` })
    this.devices = PARTITIONS.map(({ firstByte, byteLength }) => execFileSync('losetup', ['-f', '--show', '-o', String(firstByte), '--sizelimit', String(byteLength), this.path], { encoding: 'utf8' }).trim())
  }

  /** One of LVM's commands. @returns what it prints */
  lvm(command: string, ...options: string[]): string {
    const filter = [...this.devices.map((device) => `"a|^${device}$|"`), '"r|.*|"'].join(',')
    const config = `devices { use_devicesfile=0 filter=[${filter}] } global { use_lvmpolld=0 use_lvmlockd=0 locking_dir="${this.directory}/lock" } activation { udev_sync=0 udev_rules=0 monitoring=0 } backup { backup=0 archive=0 }`
    return execFileSync('lvm', [command, '--config', config, '--driverloaded', 'n', ...options], {
      encoding: 'utf8',
      env: { ...process.env, LVM_SYSTEM_DIR: join(this.directory, 'system'), LVM_SUPPRESS_FD_WARNINGS: '1' },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
  }

  create(name: string, ...options: string[]): void {
    this.lvm('lvcreate', '-q', '-an', '-Zn', '-Wn', '-n', name, ...options)
  }

  [Symbol.dispose](): void {
    for (const device of this.devices) spawnSync('losetup', ['-d', device])
    rmSync(this.directory, { recursive: true, force: true })
  }
}
