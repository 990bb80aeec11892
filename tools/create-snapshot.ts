/**
 * Snapshots of a CVD, whoever owns it: the process that does is asked; if none does, it is owned here meanwhile.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Digest } from '@varve/images/chunk/digest.ts'
import { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { isVarveError, VarveError } from '@varve/images/errors.ts'
import type { Home } from '@varve/images/store/home.ts'
import { CvdDisk } from './cvd-disk.ts'
import { requestSnapshot } from './exports.ts'
import { snapshotDocument } from './names.ts'

/** What is settled is read once. */
const SETTLING_CACHE_BYTES = 64 << 20
/** Between two attempts to reach the owner of a CVD, which may be just starting or just ending. */
const RETRY_MS = 200
const RETRIES_MAX = 25
/** Between two looks at whether the owner has settled a snapshot, and for how long it may be at that. */
const SETTLING_LOOK_MS = 100
const SETTLING_MS_MAX = 30 * 60 * 1000

export interface SnapshotOptions {
  cvd: string
  signal: AbortSignal
}

export async function createSnapshot(home: Home, { cvd, name, signal }: SnapshotOptions & { name: string }): Promise<Record<string, unknown>> {
  return whenReached(signal, async () => {
    const answer = await requestSnapshot(home, await home.catalog.cvd(cvd), name, signal)
    if (answer !== undefined) return answer
    await using disk = await openDisk(home, { cvd, signal })
    await disk.snapshot(name)
    await disk.settle(signal)
    return snapshotDocument(await home.catalog.snapshot(cvd, name))
  })
}

/**
 * A block map of what the disk of a CVD that has been started shows now. A snapshot is taken if something was written since its base.
 * @param options.name of that snapshot
 * @returns the snapshot's name, or null if none had to be taken
 */
export async function settledState(home: Home, { cvd, name, signal }: SnapshotOptions & { name: string }): Promise<{ map: Digest; snapshot: string | null }> {
  return whenReached(signal, async () => {
    const before = await home.catalog.cvd(cvd)
    if ((await requestSnapshot(home, before, name, signal)) !== undefined) {
      const map = await settledSnapshot(home, { cvd, name, signal })
      if (before.baseMap === null || Buffer.compare(map, before.baseMap) !== 0) return { map, snapshot: name }
      // The owner was asked without knowing whether anything was written; nothing was.
      await home.catalog.removeSnapshot(cvd, name)
      return { map, snapshot: null }
    }
    await using disk = await openDisk(home, { cvd, signal })
    await disk.settle(signal)
    const { baseMap } = await home.catalog.cvd(cvd)
    if (isUnchanged(disk)) return { map: baseMap!, snapshot: null }
    await disk.snapshot(name)
    await disk.settle(signal)
    return { map: (await home.catalog.snapshot(cvd, name)).map!, snapshot: name }
  })
}

/**
 * Freezes what a CVD that has been started shows now, if anything was written since its base; the snapshot is not settled.
 * @returns its name, or null if none had to be taken
 */
export async function freezeState(home: Home, { cvd, name, signal }: SnapshotOptions & { name: string }): Promise<string | null> {
  return whenReached(signal, async () => {
    if ((await requestSnapshot(home, await home.catalog.cvd(cvd), name, signal)) !== undefined) return name
    await using disk = await openDisk(home, { cvd, signal })
    if (isUnchanged(disk)) return null
    await disk.snapshot(name)
    return name
  })
}

/** The block map of a snapshot, which is settled first if it is frozen. @throws VarveError NOT_FOUND, STORE_LOCKED */
export async function settledSnapshot(home: Home, { cvd, name, signal }: SnapshotOptions & { name: string }): Promise<Digest> {
  const deadlineMs = performance.now() + SETTLING_MS_MAX
  for (;;) {
    signal.throwIfAborted()
    const { map } = await home.catalog.snapshot(cvd, name)
    if (map !== null) return map
    try {
      await using disk = await openDisk(home, { cvd, signal })
      await disk.settle(signal)
    } catch (error) {
      // Its owner settles it.
      if (!isVarveError(error, 'STORE_LOCKED')) throw error
      if (performance.now() > deadlineMs) throw new VarveError('STORE_LOCKED', `snapshot ${cvd}@${name} is not settled by the process that has CVD ${cvd}; its log may say why`, { cause: error })
      await sleep(SETTLING_LOOK_MS, undefined, { signal })
    }
  }
}

/** Since the map below its overlays. */
function isUnchanged(disk: CvdDisk): boolean {
  return disk.changedRuns(0, disk.device.sizeBytes, 1).every((run) => !run.changed && run.length === disk.device.sizeBytes)
}

function openDisk(home: Home, { cvd, signal }: SnapshotOptions): Promise<CvdDisk> {
  return CvdDisk.open(cvd, { home, cache: ChunkCache.create({ bytesMax: SETTLING_CACHE_BYTES }), signal })
}

/** Tries again while the CVD is owned by somebody who cannot be asked yet, or any more. */
async function whenReached<Result>(signal: AbortSignal, attempt: () => Promise<Result>): Promise<Result> {
  for (let retries = 0; ; retries++) {
    try {
      return await attempt()
    } catch (error) {
      if (!isVarveError(error, 'STORE_LOCKED') || retries === RETRIES_MAX) throw error
      await sleep(RETRY_MS, undefined, { signal })
    }
  }
}
