/**
 * What the command prints: text for people, or with --json one document on standard output and nothing else there.
 * Errors and progress go to standard error.
 */
import { VarveError } from '@varve/images/errors.ts'

/** Exit statuses of the command; README.md lists them. */
export const ExitStatus = { done: 0, failed: 1, usage: 2, undecided: 3, damaged: 4 } as const
export type ExitStatus = (typeof ExitStatus)[keyof typeof ExitStatus]

const KIBI = 1024
const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB']

/** `1.4 GiB` */
export function formatBytes(bytes: number): string {
  let value = bytes
  let unit = 0
  while (value >= KIBI && unit < UNITS.length - 1) {
    value /= KIBI
    unit++
  }
  return `${unit === 0 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`
}

/** `1.25 s` or `40 ms` */
export function formatDuration(milliseconds: number): string {
  return milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(2)} s`
}

/** Columns aligned by spaces; the first row is the heading. */
export function formatTable(rows: readonly (readonly string[])[]): string {
  const widths: number[] = []
  for (const row of rows) row.forEach((cell, column) => (widths[column] = Math.max(widths[column] ?? 0, cell.length)))
  return rows.map((row) => row.map((cell, column) => (column === row.length - 1 ? cell : cell.padEnd(widths[column]))).join('  ')).join('\n')
}

export interface Progress {
  /** @param total bytes, or null while unknown */
  update(done: number, total: number | null, detail?: string): void
  stop(): void
}

/** A bar with rate and time left on a terminal; nothing where standard error is not one. */
export async function startProgress(label: string): Promise<Progress> {
  if (!process.stderr.isTTY) return { update: () => {}, stop: () => {} }
  const { Presets, SingleBar } = await import('cli-progress')
  const started = Date.now()
  const bar = new SingleBar({
    stream: process.stderr,
    hideCursor: true,
    clearOnComplete: true,
    format: `${label} {bar} {percentage}% {amount} {rate} ETA {eta_formatted} {detail}`,
  }, Presets.shades_classic)
  let running = false
  return {
    update(done, total, detail = '') {
      const payload = { amount: formatBytes(done), rate: `${formatBytes((done / Math.max(1, Date.now() - started)) * 1000)}/s`, detail }
      if (!running) {
        bar.start(total ?? 1, 0, payload)
        running = true
      }
      // Without a total the bar stays at its start, and amount and rate tell what goes on.
      bar.setTotal(total ?? Math.max(1, done * 2))
      bar.update(done, payload)
    },
    stop() {
      if (running) bar.stop()
    },
  }
}

/** One line: what, where, what to do; causes follow where they add something. */
export function describeError(error: unknown): { code: string; message: string } {
  if (error instanceof VarveError) {
    const cause = error.cause instanceof Error && !error.message.includes(error.cause.message) ? ` (${error.cause.message})` : ''
    return { code: error.code, message: `${error.message}${cause}` }
  }
  if (error instanceof Error) {
    const code = (error as NodeJS.ErrnoException).code ?? 'INTERNAL'
    return { code, message: error.message }
  }
  return { code: 'INTERNAL', message: String(error) }
}
