/**
 * What an ELF file says of the libraries that it needs (64-bit, little-endian: x86-64, AArch64). Read from its headers alone.
 * Bytes: System V ABI, chapters 4 and 5. They come from outside: what is not sound needs nothing.
 */

export interface ElfNeeds {
  /** The program that loads it: `/lib64/ld-linux-x86-64.so.2`. Bytes in latin1, as all that follows. */
  interpreter: string | undefined
  /** Names of libraries, as DT_NEEDED gives them. */
  needed: string[]
  /** Directories to look in first, from DT_RUNPATH or DT_RPATH; may begin with `$ORIGIN`. */
  runPath: string[]
}

const HEADER_BYTES = 64
const PROGRAM_HEADER_BYTES = 56
const PROGRAM_HEADERS_MAX = 256
const DYNAMIC_BYTES_MAX = 64 << 10
const STRINGS_BYTES_MAX = 8 << 20
const INTERPRETER_BYTES_MAX = 4096
const NEEDED_MAX = 512

const SegmentType = { load: 1, dynamic: 2, interpreter: 3 } as const
const Tag = { end: 0, needed: 1, strings: 5, stringBytes: 10, rpath: 15, runPath: 29 } as const

interface Segment {
  type: number
  offset: number
  address: number
  fileBytes: number
}

/**
 * @param read gives bytes of the file from an offset on; fewer at its end
 * @returns undefined if it is no such file
 */
export async function readElf(read: (offset: number, length: number) => Promise<Uint8Array>): Promise<ElfNeeds | undefined> {
  const at = async (offset: number, length: number): Promise<Buffer> => {
    const bytes = await read(offset, length)
    return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  }
  const header = await at(0, HEADER_BYTES)
  // Magic, 64-bit, little-endian.
  if (header.length < HEADER_BYTES || header.toString('latin1', 0, 6) !== '\x7fELF\x02\x01') return undefined
  const count = header.readUInt16LE(56)
  if (header.readUInt16LE(54) !== PROGRAM_HEADER_BYTES || count > PROGRAM_HEADERS_MAX) return undefined
  const segments = readSegments(await at(Number(header.readBigUInt64LE(32)), count * PROGRAM_HEADER_BYTES))
  const interpreter = segments.find(({ type }) => type === SegmentType.interpreter)
  const needs: ElfNeeds = { interpreter: undefined, needed: [], runPath: [] }
  if (interpreter !== undefined) needs.interpreter = textAt(await at(interpreter.offset, Math.min(interpreter.fileBytes, INTERPRETER_BYTES_MAX)), 0)
  const dynamic = segments.find(({ type }) => type === SegmentType.dynamic)
  if (dynamic === undefined) return needs
  const entries = readDynamic(await at(dynamic.offset, Math.min(dynamic.fileBytes, DYNAMIC_BYTES_MAX)))
  const address = entries.find(([tag]) => tag === Tag.strings)?.[1]
  const bytes = entries.find(([tag]) => tag === Tag.stringBytes)?.[1] ?? 0
  const load = segments.find((segment) => segment.type === SegmentType.load && address !== undefined && segment.address <= address && address < segment.address + segment.fileBytes)
  if (address === undefined || load === undefined) return needs
  const strings = await at(load.offset + address - load.address, Math.min(bytes, STRINGS_BYTES_MAX))
  const textsOf = (...tags: number[]) => entries.filter(([tag]) => tags.includes(tag)).map(([, value]) => textAt(strings, value)).filter((text) => text !== undefined)
  needs.needed = textsOf(Tag.needed).slice(0, NEEDED_MAX)
  needs.runPath = textsOf(Tag.rpath, Tag.runPath).flatMap((text) => text.split(':')).slice(0, NEEDED_MAX)
  return needs
}

function readSegments(table: Buffer): Segment[] {
  const segments: Segment[] = []
  for (let at = 0; at + PROGRAM_HEADER_BYTES <= table.length; at += PROGRAM_HEADER_BYTES) {
    const [offset, address, fileBytes] = [8, 16, 32].map((field) => Number(table.readBigUInt64LE(at + field)))
    if ([offset, address, fileBytes].every((value) => Number.isSafeInteger(value))) segments.push({ type: table.readUInt32LE(at), offset, address, fileBytes })
  }
  return segments
}

function readDynamic(table: Buffer): [tag: number, value: number][] {
  const entries: [number, number][] = []
  for (let at = 0; at + 16 <= table.length; at += 16) {
    const tag = Number(table.readBigUInt64LE(at))
    if (tag === Tag.end) break
    entries.push([tag, Number(table.readBigUInt64LE(at + 8))])
  }
  return entries
}

/** Text up to its NUL; undefined if there is none there. */
function textAt(bytes: Buffer, at: number): string | undefined {
  if (!(at < bytes.length)) return undefined
  const end = bytes.indexOf(0, at)
  return end <= at ? undefined : bytes.toString('latin1', at, end)
}
