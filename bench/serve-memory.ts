/**
 * A server of one disk in memory, for the benchmark `idle`: `node serve-memory.ts SOCKET SIZE CONNECTIONS-MAX`. Prints a line when it listens; ends with its standard input.
 */
import { SharedExports } from '@varve/blockserver/nbd/export.ts'
import { NbdServer } from '@varve/blockserver/nbd/server.ts'
import { MemoryDevice } from '@varve/images/device/memory-device.ts'

const [socketPath, size, connectionsMax] = process.argv.slice(2)
const name = 'memory'
const provider = new SharedExports({
  list: async () => [{ name, description: 'a disk in memory' }],
  canonicalName: async () => name,
  open: async () => ({ name, description: 'a disk in memory', device: new MemoryDevice(Number(size)), fastZeroes: true }),
})
const server = await NbdServer.listen([`unix:${socketPath}`], { provider, limits: { connectionsMax: Number(connectionsMax) } })
process.stdout.write('listening\n')
await new Promise((resolve) => process.stdin.on('end', resolve).resume())
await server.close()
