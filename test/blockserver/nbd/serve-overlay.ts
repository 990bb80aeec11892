/**
 * A serving process for tests that kill it: `node serve-overlay.ts OVERLAY-DIRECTORY SOCKET SIZE`. Prints a line when it listens.
 */
import { MemoryDevice } from '@varve/images/device/memory-device.ts'
import { OverlayDevice } from '@varve/images/device/overlay-device.ts'
import { NbdServer } from '@varve/blockserver/nbd/server.ts'
import { exportsOf } from './serving.ts'

const [directory, socketPath, size] = process.argv.slice(2)
const lowerDigest = new Uint8Array(32)
const sizeBytes = Number(size)
if (!OverlayDevice.exists(directory)) await OverlayDevice.create({ directory, sizeBytes, lowerDigest })
const disk = await OverlayDevice.open({ directory, lower: new MemoryDevice(sizeBytes, { readOnly: true }), lowerDigest })
const server = await NbdServer.listen([`unix:${socketPath}`], { provider: exportsOf({ disk }) })
process.once('SIGTERM', () => void server.close())
process.stdout.write('listening\n')
