/**
 * Reads VHDX images: fixed, dynamic, and differencing over their parents; the log is replayed in memory.
 * [MS-VHDX], revision 8.0; what of it is read and what is refused: docs/formats-of-images.md#vhdx. All bytes come from outside.
 */
import type { BlockDevice, ReadableDisk } from '../../device/block-device.ts'
import { VarveError } from '../../errors.ts'
import { PLACE, blockDisk } from '../block-disk.ts'
import type { ImageFile, OpenImageOptions } from '../disk-image.ts'
import { guidBytes } from '../gpt.ts'
import { openParent, pathOfWindows } from '../parent-image.ts'
import { SectorBitmaps } from '../sector-bitmaps.ts'
import { readPart, repeatedPlace } from '../table-pages.ts'
import { MIB, SIGNATURE, STATE, chunkBlocksOf, invalid, readHeader, readMetadata, readRegions } from './format.ts'
import type { Region, VhdxMetadata } from './format.ts'
import { replayedFile } from './log.ts'

/** Blocks of a disk: 16 TiB in the smallest, of 1 MiB; 64 TiB from 4 MiB on. */
const BLOCKS_MAX = 1 << 24
/** The block allocation table is read in parts of so many bytes. */
const TABLE_PART_BYTES = 1 << 20
const ENTRY_BYTES = 8
/** Bits of a state and of a place in MiB, in one number of 32 bits; a file of 512 TiB is longer than any disk. */
const MIB_BITS = 29
const MIB_MAX = 2 ** MIB_BITS - 1
const STATES: readonly number[] = Object.values(STATE)
/** Keys of a parent locator that lead to it, best first ([MS-VHDX] 2.6.2.6.3), and those that tell its id. */
const PATH_KEYS = ['relative_path', 'volume_path', 'absolute_win32_path']
const LINKAGE_KEYS = ['parent_linkage', 'parent_linkage2']

/** The disk inside a VHDX image. As OpenImage. */
export async function openVhdx(file: ImageFile, options: OpenImageOptions = {}): Promise<BlockDevice> {
  const start = await readPart(file, 0, SIGNATURE.file.length, 'its identifier')
  if (start.toString('latin1') !== SIGNATURE.file) throw invalid('the file does not begin as one')
  const replayed = await replayedFile(file, await readHeader(file))
  const regions = await readRegions(replayed)
  const metadata = await readMetadata(replayed, regions.metadata)
  const table = await BlockTable.read(replayed, regions.table, metadata)
  const bitmaps = new SectorBitmaps(replayed, { placeOf: (block) => table.bitmapOf(block), highBitFirst: false })
  await using opened = new AsyncDisposableStack()
  const parent = metadata.hasParent ? opened.use(await parentDisk(metadata, options)) : undefined
  const parts = opened.move()
  parts.use(file)
  const { sizeBytes, blockBytes, sectorBytes } = metadata
  return blockDisk({ file: replayed, sizeBytes, blockBytes, sectorBytes, placeOf: (block) => table.placeOf(block), bitmaps, parent, close: () => parts.disposeAsync() })
}

/** The block allocation table: a state and a place of each payload block, and the places of bitmap blocks. */
class BlockTable {
  /** By payload block: state and MiB. */
  readonly #payload: Uint32Array
  /** By chunk: MiB, 0 if there is none. */
  readonly #bitmaps: Uint32Array
  /** Payload blocks in a chunk. */
  readonly #chunkBlocks: number
  /** Of a payload block in a bitmap. */
  readonly #bitmapBytes: number

  private constructor(payload: Uint32Array, bitmaps: Uint32Array, { blockBytes, sectorBytes }: VhdxMetadata) {
    this.#payload = payload
    this.#bitmaps = bitmaps
    this.#chunkBlocks = chunkBlocksOf(blockBytes, sectorBytes)
    this.#bitmapBytes = blockBytes / sectorBytes / 8
    payload.forEach((_, block) => {
      if (this.bitmapOf(block) === 0) throw invalid(`block ${block} is there in part, but no sector bitmap says which`)
    })
  }

  static async read(file: ReadableDisk, region: Region, metadata: VhdxMetadata): Promise<BlockTable> {
    const { sizeBytes, blockBytes, sectorBytes, hasParent } = metadata
    const blocks = Math.ceil(sizeBytes / blockBytes)
    if (blocks > BLOCKS_MAX) throw new VarveError('LIMIT_EXCEEDED', `VHDX: ${blocks} blocks of ${blockBytes} bytes are more than ${BLOCKS_MAX}`)
    const chunkBlocks = chunkBlocksOf(blockBytes, sectorBytes)
    const chunks = Math.ceil(blocks / chunkBlocks)
    // The last bitmap block of a disk without a parent has no entry.
    const entries = hasParent ? chunks * (chunkBlocks + 1) : blocks + Math.max(0, chunks - 1)
    if (entries * ENTRY_BYTES > region.length) throw invalid(`its block allocation table has ${region.length} bytes, too few for ${entries} entries`)
    const payload = new Uint32Array(blocks)
    const bitmaps = new Uint32Array(chunks)
    for (let at = 0; at < entries * ENTRY_BYTES; at += TABLE_PART_BYTES) {
      const bytes = await readPart(file, region.offset + at, Math.min(TABLE_PART_BYTES, entries * ENTRY_BYTES - at), 'the block allocation table')
      for (let entry = 0; entry < bytes.length / ENTRY_BYTES; entry++) {
        const index = at / ENTRY_BYTES + entry
        const chunk = Math.floor(index / (chunkBlocks + 1))
        const block = index - chunk
        const low = bytes.readUInt32LE(entry * ENTRY_BYTES)
        const mib = bytes.readUInt32LE(entry * ENTRY_BYTES + 4) * 4096 + (low >>> 20)
        const state = low & 7
        if (index % (chunkBlocks + 1) === chunkBlocks) bitmaps[chunk] = hasParent ? checkedBitmap(state, mib, file.sizeBytes, chunk) : 0
        else if (block < blocks) payload[block] = checkedPayload(state, mib, file.sizeBytes, block, metadata)
      }
    }
    const twice = repeatedPlace(bitmaps)
    if (twice !== undefined) throw invalid(`the sector bitmap at MiB ${twice} is used twice`)
    return new BlockTable(payload, bitmaps, metadata)
  }

  /** As of BlockDiskOptions. */
  placeOf(block: number): number {
    const state = this.#payload[block] >>> MIB_BITS
    if (state === STATE.fullyPresent || state === STATE.partiallyPresent) return (this.#payload[block] & MIB_MAX) * MIB
    return state === STATE.notPresent ? PLACE.below : state === STATE.zero ? PLACE.zero : PLACE.hole
  }

  /** As of SectorBitmapsOptions. */
  bitmapOf(block: number): number {
    if (this.#payload[block] >>> MIB_BITS !== STATE.partiallyPresent) return -1
    const mib = this.#bitmaps[Math.floor(block / this.#chunkBlocks)]
    return mib === 0 ? 0 : mib * MIB + (block % this.#chunkBlocks) * this.#bitmapBytes
  }
}

function checkedPayload(state: number, mib: number, fileBytes: number, block: number, { sizeBytes, blockBytes, hasParent }: VhdxMetadata): number {
  if (!STATES.includes(state) || (state === STATE.partiallyPresent && !hasParent)) throw invalid(`block ${block} is in state ${state}, which it cannot be in`)
  // Places of blocks that are not present are of no meaning now.
  if (state !== STATE.fullyPresent && state !== STATE.partiallyPresent) return (state << MIB_BITS) >>> 0
  const end = mib * MIB + Math.min(blockBytes, sizeBytes - block * blockBytes)
  if (mib === 0 || mib > MIB_MAX || end > fileBytes) throw invalid(`its file has ${fileBytes} bytes, but block ${block} ends at ${end}; the file was cut short, or its block allocation table is damaged`)
  return ((state << MIB_BITS) | mib) >>> 0
}

function checkedBitmap(state: number, mib: number, fileBytes: number, chunk: number): number {
  if (state === STATE.notPresent) return 0
  if (state !== STATE.fullyPresent || mib === 0 || (mib + 1) * MIB > fileBytes) throw invalid(`the sector bitmap of chunk ${chunk} is in state ${state} at MiB ${mib}, which it cannot be`)
  return mib
}

async function parentDisk({ locator }: VhdxMetadata, options: OpenImageOptions): Promise<BlockDevice> {
  const ids = LINKAGE_KEYS.map((key) => idOf(locator.get(key) ?? '')).filter((id) => id !== undefined)
  const mismatchOf = async (file: ReadableDisk): Promise<string | undefined> => {
    const { dataWriteGuid: id } = await readHeader(file)
    return ids.includes(id) ? undefined : `its id is ${id}, that of the parent ${ids.join(' or ')}`
  }
  return openParent(PATH_KEYS.map((key) => pathOfWindows(locator.get(key) ?? '')), options, { mismatchOf, open: openVhdx })
}

/** 32 hexadecimal digits of a GUID in text. */
function idOf(text: string): string | undefined {
  const guid = /^\{([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\}/i.exec(text)?.[1]
  return guid === undefined ? undefined : Buffer.from(guidBytes(guid)).toString('hex')
}
