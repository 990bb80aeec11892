/**
 * The log of a service: one JSON document a line on standard error (docs/service.md).
 */
import { type Logger, pino } from 'pino'

/** @param fields that every line has */
export function openLog(level: string, fields: Record<string, unknown> = {}): Logger {
  const destination = pino.destination({ dest: 2, sync: true })
  // Whoever read the log may go; the service stays.
  destination.on('error', () => undefined)
  return pino({ level, base: { pid: process.pid, ...fields }, formatters: { level: (label) => ({ level: label }) }, timestamp: pino.stdTimeFunctions.isoTime }, destination)
}
