/**
 * Handshake of the load's connections: fixed newstyle, NBD_OPT_GO and nothing else, so that every server answers reads by simple replies.
 */
import { GREETING_BYTES, IHAVEOPT, NBD_FLAG_C_FIXED_NEWSTYLE, NBD_FLAG_C_NO_ZEROES, NBD_OPT_GO, NBD_REP_ACK, NBD_REP_ERR, OPTION_REPLY_HEADER_BYTES } from '@varve/blockserver/nbd/protocol.ts'
import { readExactly, writeFully } from './blocking-socket.ts'

const REPLY_BYTES_MAX = 1 << 16

/** Brings a connection to transmission. @throws Error if the server refuses */
export function handshake(fd: number, exportName: string): void {
  readExactly(fd, Buffer.alloc(GREETING_BYTES))
  const name = Buffer.from(exportName)
  const hello = Buffer.alloc(4 + 16 + 4 + name.length + 2)
  hello.writeUInt32BE(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES)
  hello.writeUInt32BE(IHAVEOPT[0], 4)
  hello.writeUInt32BE(IHAVEOPT[1], 8)
  hello.writeUInt32BE(NBD_OPT_GO, 12)
  hello.writeUInt32BE(4 + name.length + 2, 16)
  hello.writeUInt32BE(name.length, 20)
  name.copy(hello, 24)
  writeFully(fd, hello)
  const header = Buffer.alloc(OPTION_REPLY_HEADER_BYTES)
  for (;;) {
    readExactly(fd, header)
    const type = header.readUInt32BE(12)
    const bytes = header.readUInt32BE(16)
    if (bytes > REPLY_BYTES_MAX) throw new Error(`an option reply of ${bytes} bytes`)
    const data = Buffer.alloc(bytes)
    readExactly(fd, data)
    if (type === NBD_REP_ACK) return
    if (type >= NBD_REP_ERR) throw new Error(`export ${JSON.stringify(exportName)} is refused: ${data.toString()}`)
  }
}
