/**
 * What is known of how a disk is used: chunk lists for agents, and what their reports are taken into.
 */
import type { Digest } from '@varve/images/chunk/digest.ts'
import type { Home } from '@varve/images/store/home.ts'

export interface BootLists {
  /** Object of the list of what a boot reads, in order; null if that is not known. */
  bootSet: Digest | null
  /** Object of the list of all chunks in the order in which they are best fetched; null: as they lie on the disk. */
  order: Digest | null
}

/** @param map object of the block map @param name `CVD` or `CVD@SNAPSHOT` */
export const bootListsOf: (home: Home, map: Digest, name: string) => Promise<BootLists> = async () => ({ bootSet: null, order: null })

/** @param numbers of chunks of the map, each once, in the order of their first use from power-on to the mark */
export const recordBoot: (home: Home, map: Digest, numbers: Uint32Array) => Promise<void> = async () => {}

/** @param uses of chunks of the map, by their numbers, ascending: how often each was used since the last report */
export const recordHeat: (home: Home, map: Digest, uses: { numbers: Uint32Array; uses: Uint32Array }) => Promise<void> = async () => {}
