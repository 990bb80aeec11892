/**
 * Exports: disks offered under a name. The server asks an ExportProvider for them and knows nothing of what is behind.
 * SharedExports opens each device once for all of its connections.
 */
import type { BlockDevice } from '@varve/images/device/block-device.ts'

export interface ExportInfo {
  /** As clients ask for it; UTF-8, at most STRING_BYTES_MAX bytes. */
  name: string
  /** For people; may be empty. */
  description: string
}

/** A run of bytes with one status in a metadata context. */
export interface StatusRun {
  /** Bytes, at least 1. */
  length: number
  /** 32 bits; what they mean is the context's affair. */
  flags: number
}

/** A metadata context besides `base:allocation`: what a client may ask of the bytes of an export by NBD_CMD_BLOCK_STATUS. */
export interface MetaContext {
  /** `namespace:leaf`. */
  readonly name: string
  /** Runs from `offset` on: at least one, at most `most`, none beyond the range; neighbours of the same flags are one. They may end before the range does. */
  extents(offset: number, length: number, most: number): StatusRun[]
}

/** What a server knows of an export besides its names. */
export interface ExportAbilities {
  readonly device: BlockDevice
  /** True if `writeZeroes` without `noHole` is faster than writing: then NBD_CMD_FLAG_FAST_ZERO is honoured, else refused. */
  readonly fastZeroes?: boolean
  /** Metadata contexts that clients may select besides `base:allocation`. */
  readonly contexts?: readonly MetaContext[]
  /** Offsets, lengths and extents are multiples of this, bytes; a power of two, at most 64 KiB. 1 unless the device cannot do better. */
  readonly minimumBlockBytes?: number
}

/** An export that one connection uses. */
export interface ServedExport extends ExportInfo, ExportAbilities {
  /** The connection no longer uses it. Called once. */
  release(): Promise<void>
}

/** Which thread of a server a connection is to go on in. */
export interface Destination {
  /** Unless given, the one that has the export for itself; else the one with the fewest connections. */
  thread?: number
  /** Canonical name. */
  exportName?: string
}

/** The connection is to go on in another thread of the server. */
export class Elsewhere extends Error {
  override name = 'Elsewhere'
  readonly to: Destination

  constructor(to: Destination) {
    super('another thread goes on with the connection')
    this.to = to
  }
}

/** What is known of exports without opening any. */
export interface ExportNames {
  /** What NBD_OPT_LIST shows: canonical names. */
  list(): Promise<ExportInfo[]>
  /**
   * The one name of an export that may have several: `''` -> `desk`. That it has one does not say that there is such an export.
   * Devices are shared by this name.
   * @param name as the client sent it; empty for the default export
   * @throws VarveError EXPORT_NOT_FOUND
   */
  canonicalName(name: string): string | Promise<string>
}

export interface ExportProvider extends ExportNames {
  /**
   * @param name canonical
   * @throws VarveError EXPORT_NOT_FOUND, Elsewhere, or what opening the device throws
   */
  open(name: string): Promise<ServedExport>
}

/** What a source of exports opens: SharedExports closes it with its last user. */
export interface OpenedExport extends ExportInfo, ExportAbilities {
  /** Closes the device and what it stands on; by default the device alone. */
  close?(): Promise<void>
}

export interface ExportSource extends ExportNames {
  /** True for an export whose device one thread alone may have open; false unless given. @param name canonical */
  exclusive?(name: string): boolean
  /** @param name canonical. Not called again for it before the device that it returned is closed. */
  open(name: string): Promise<OpenedExport>
}

/** Which thread has which exclusive export: one for all threads of a server. */
export interface ExportOwners {
  /** The thread that asks. */
  readonly self: number
  /** @returns the thread that has the export; the one that asks, if none had it */
  acquire(name: string): Promise<number>
  release(name: string): void
}

/** Opens nothing: for a thread that negotiates until an export is asked for. */
export class ExportsElsewhere implements ExportProvider {
  readonly #names: ExportNames

  constructor(names: ExportNames) {
    this.#names = names
  }

  list(): Promise<ExportInfo[]> {
    return this.#names.list()
  }

  canonicalName(name: string): string | Promise<string> {
    return this.#names.canonicalName(name)
  }

  async open(exportName: string): Promise<never> {
    throw new Elsewhere({ exportName })
  }
}

interface SharedExport {
  opened: Promise<OpenedExport>
  users: number
  closed: Promise<void> | undefined
}

/** Counts the users of each export: the first opens its device, the last closes it, and whoever comes while it closes waits and opens it anew. */
export class SharedExports implements ExportProvider {
  readonly #source: ExportSource
  readonly #owners: ExportOwners | undefined
  readonly #shared = new Map<string, SharedExport>()

  /** @param owners where several threads have each a SharedExports of their own */
  constructor(source: ExportSource, owners?: ExportOwners) {
    this.#source = source
    this.#owners = owners
  }

  list(): Promise<ExportInfo[]> {
    return this.#source.list()
  }

  canonicalName(name: string): string | Promise<string> {
    return this.#source.canonicalName(name)
  }

  async open(name: string): Promise<ServedExport> {
    const shared = await this.#acquire(name)
    try {
      const { name: canonical, description, device, fastZeroes, contexts, minimumBlockBytes } = await shared.opened
      return { name: canonical, description, device, fastZeroes, contexts, minimumBlockBytes, release: () => this.#release(name, shared) }
    } catch (error) {
      if (this.#shared.get(name) === shared) this.#shared.delete(name)
      throw error
    }
  }

  /** The device of an export that is in use now, else undefined. */
  async opened(name: string): Promise<BlockDevice | undefined> {
    const shared = this.#shared.get(name)
    if (shared === undefined || shared.closed !== undefined) return undefined
    return (await shared.opened).device
  }

  async #acquire(name: string): Promise<SharedExport> {
    for (;;) {
      const known = this.#shared.get(name)
      if (known === undefined) {
        const shared: SharedExport = { opened: this.#openOwned(name), users: 1, closed: undefined }
        this.#shared.set(name, shared)
        return shared
      }
      if (known.closed === undefined) {
        known.users++
        return known
      }
      await known.closed.catch(() => undefined)
    }
  }

  async #openOwned(name: string): Promise<OpenedExport> {
    const owners = this.#source.exclusive?.(name) === true ? this.#owners : undefined
    if (owners === undefined) return this.#source.open(name)
    const thread = await owners.acquire(name)
    if (thread !== owners.self) throw new Elsewhere({ thread })
    try {
      const opened = await this.#source.open(name)
      const close = () => closeOpened(opened).finally(() => owners.release(name))
      return { ...opened, close }
    } catch (error) {
      owners.release(name)
      throw error
    }
  }

  async #release(name: string, shared: SharedExport): Promise<void> {
    if (--shared.users > 0) return
    shared.closed = shared.opened.then(closeOpened).finally(() => this.#shared.delete(name))
    await shared.closed
  }
}

async function closeOpened(opened: OpenedExport): Promise<void> {
  await (opened.close === undefined ? opened.device[Symbol.asyncDispose]() : opened.close())
}
