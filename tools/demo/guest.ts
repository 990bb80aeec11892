/**
 * Guest: a QEMU virtual machine under software emulation, with its serial console.
 * For the demo, tests and benchmarks; Varve itself does not run guests.
 */
import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'

/** Emulated on any machine; without cx16=off, kernel 6.12 double-faults now and then under TCG. */
const MACHINE = ['-accel', 'tcg,thread=multi', '-cpu', 'max,cx16=off', '-smp', '2', '-nographic', '-no-reboot', '-nodefaults', '-serial', 'mon:stdio', '-vga', 'none', '-net', 'none']
/** The console is kept for error messages; older output is dropped. Bytes. */
const CONSOLE_BYTES_MAX = 4 << 20

export interface GuestOptions {
  /** Disk: a URI or file that QEMU opens, such as `nbd+unix:///NAME?socket=PATH`, in raw format. */
  disk?: string
  /** `bios` and `uefi` start the disk's boot loader; otherwise the kernel is loaded by QEMU. Default: bios. */
  firmware?: 'bios' | 'uefi'
  kernel?: { image: string; initrd?: string; commandLine: string }
  memoryMiB?: number
  /** Further arguments for qemu-system-x86_64. */
  extra?: readonly string[]
  onOutput?: (text: string) => void
}

export class Guest implements AsyncDisposable {
  #console = ''
  readonly #child: ChildProcess
  readonly #wakers = new Set<() => void>()
  /** Exit status, or -1 when ended by a signal. */
  readonly exited: Promise<number>
  #ended = false

  constructor(options: GuestOptions) {
    const args = [...MACHINE, '-m', String(options.memoryMiB ?? 1024)]
    if (options.firmware === 'uefi') args.push('-machine', 'q35', '-bios', '/usr/share/ovmf/OVMF.fd')
    if (options.kernel !== undefined) {
      args.push('-kernel', options.kernel.image, '-append', options.kernel.commandLine)
      if (options.kernel.initrd !== undefined) args.push('-initrd', options.kernel.initrd)
    }
    if (options.disk !== undefined) args.push('-drive', `file=${options.disk},format=raw,if=virtio,cache=writeback,discard=unmap`)
    args.push(...(options.extra ?? []))
    this.#child = spawn('qemu-system-x86_64', args, { stdio: ['pipe', 'pipe', 'pipe'] })
    const append = (bytes: Buffer): void => {
      const text = bytes.toString('latin1')
      this.#console = (this.#console + text).slice(-CONSOLE_BYTES_MAX)
      options.onOutput?.(text)
      for (const wake of this.#wakers) wake()
    }
    this.#child.stdout!.on('data', append)
    this.#child.stderr!.on('data', append)
    this.#child.stdin!.on('error', () => {})
    this.exited = new Promise((resolve) => {
      const end = (status: number): void => {
        this.#ended = true
        resolve(status)
        for (const wake of this.#wakers) wake()
      }
      this.#child.on('error', (error) => {
        append(Buffer.from(`qemu-system-x86_64 cannot be started: ${error.message}`))
        end(-1)
      })
      this.#child.on('close', (status) => end(status ?? -1))
    })
  }

  /** What the serial console has shown so far. */
  get console(): string {
    return this.#console
  }

  get pid(): number | undefined {
    return this.#child.pid
  }

  /** Types on the serial console. */
  type(text: string): void {
    this.#child.stdin!.write(text)
  }

  /**
   * Waits until the console shows `pattern`.
   * @param after position in the console to search from; use `mark()` before typing a command
   * @throws Error with the end of the console if the guest ends, or `timeoutMs` passes, without it
   */
  async waitFor(pattern: RegExp, options: { timeoutMs: number; after?: number }): Promise<RegExpExecArray> {
    const deadline = Date.now() + options.timeoutMs
    for (;;) {
      const found = pattern.exec(this.#console.slice(options.after ?? 0))
      if (found !== null) return found
      const remaining = deadline - Date.now()
      if (this.#ended || remaining <= 0) {
        throw new Error(`the guest ${this.#ended ? 'ended' : `ran for ${options.timeoutMs} ms`} without ${pattern} on its console, which ends:\n${this.#console.slice(-4000)}`)
      }
      await new Promise<void>((resolve) => {
        const timer = setTimeout(done, Math.min(remaining, 1000))
        const wakers = this.#wakers
        function done(): void {
          clearTimeout(timer)
          wakers.delete(done)
          resolve()
        }
        wakers.add(done)
      })
    }
  }

  /** Position of the console's end, for waitFor's `after`. */
  mark(): number {
    return this.#console.length
  }

  /** Cuts the power. */
  async kill(): Promise<void> {
    this.#child.kill('SIGKILL')
    await this.exited
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#ended) await this.kill()
  }
}
