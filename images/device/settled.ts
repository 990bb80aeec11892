/** Waits for all calls, so that nothing is written to a caller's buffer once it has its answer, and then fails as the first that failed. */
export async function settled(calls: readonly Promise<void>[]): Promise<void> {
  for (const result of await Promise.allSettled(calls)) if (result.status === 'rejected') throw result.reason
}
