/**
 * What this process uses of the machine.
 */
export interface ProcessFigures {
  /** Of all threads, user and system. */
  cpuSeconds: number
  residentBytes: number
  /** Memory of JavaScript objects of the main thread, and of buffers. */
  heapBytes: number
  externalBytes: number
  /** Seconds since 1970. */
  startTimeSeconds: number
}

export function processFigures(): ProcessFigures {
  const { user, system } = process.cpuUsage()
  const { rss, heapUsed, external } = process.memoryUsage()
  return { cpuSeconds: (user + system) / 1e6, residentBytes: rss, heapBytes: heapUsed, externalBytes: external, startTimeSeconds: performance.timeOrigin / 1000 }
}
