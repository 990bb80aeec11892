/**
 * Writes tar archives member by member, right or wrong as a test wants them.
 */

export interface TarWriterMember {
  path: string
  /** One character. */
  type: string
  mode?: number
  uid?: number
  gid?: number
  mtimeSeconds?: number
  linkName?: string
  data?: Uint8Array
  /** If it is not the length of the data. */
  sizeBytes?: number
  magic?: string
  /** Raw bytes at offsets of the header, before the checksum is made. */
  patch?: { offset: number; bytes: Uint8Array }[]
  checksum?: number
}

export class TarWriter {
  readonly #parts: Uint8Array[] = []

  member({ path, type, mode = 0o644, uid = 0, gid = 0, mtimeSeconds = 0, linkName = '', data = new Uint8Array(), sizeBytes = data.length, magic = 'ustar\x0000', patch = [], checksum }: TarWriterMember): void {
    const header = Buffer.alloc(512)
    const octal = (value: number, offset: number, length: number) => header.write(value.toString(8).padStart(length - 1, '0'), offset, 'latin1')
    header.write(path, 0, 100, 'latin1')
    octal(mode, 100, 8)
    octal(uid, 108, 8)
    octal(gid, 116, 8)
    octal(sizeBytes, 124, 12)
    octal(mtimeSeconds, 136, 12)
    header.write(type, 156, 'latin1')
    header.write(linkName, 157, 100, 'latin1')
    header.write(magic, 257, 'latin1')
    for (const { offset, bytes } of patch) header.set(bytes, offset)
    header.fill(' ', 148, 156)
    const sum = header.reduce((total, byte) => total + byte, 0)
    header.write(`${(checksum ?? sum).toString(8).padStart(6, '0')}\0 `, 148, 'latin1')
    this.#parts.push(header, data, new Uint8Array((512 - (data.length % 512)) % 512))
  }

  file(path: string, data: Uint8Array): void {
    this.member({ path, type: '0', data })
  }

  /** An extended header; `type` `x` for the next member, `g` for all. */
  pax(records: readonly (readonly [string, string | Uint8Array])[], type = 'x'): void {
    const parts = records.map(([key, value]) => {
      const rest = Buffer.concat([Buffer.from(` ${key}=`, 'latin1'), typeof value === 'string' ? Buffer.from(value, 'latin1') : value, Buffer.from('\n')])
      let length = rest.length + 1
      while (String(length).length + rest.length > length) length++
      return Buffer.concat([Buffer.from(String(length)), rest])
    })
    this.member({ path: 'PaxHeaders/x', type, data: Buffer.concat(parts) })
  }

  /** Bytes as they are. */
  raw(bytes: Uint8Array): void {
    this.#parts.push(bytes)
  }

  /** The mark of the end. */
  end(): void {
    this.raw(new Uint8Array(1024))
  }

  bytes(): Buffer {
    return Buffer.concat(this.#parts)
  }
}
