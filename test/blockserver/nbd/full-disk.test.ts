/**
 * A disk below the overlay that is full, for real: the client is told ENOSPC, nothing that was acknowledged is lost, and writing goes on when there is room.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import test from 'node:test'
import { NbdClient, NbdRequestError } from '@varve/blockserver/nbd/client.ts'
import { NBD_ENOSPC } from '@varve/blockserver/nbd/protocol.ts'
import { MemoryDevice } from '@varve/images/device/memory-device.ts'
import { OverlayDevice } from '@varve/images/device/overlay-device.ts'
import { serve } from './serving.ts'

const DISK_BYTES = 64 << 20
const WRITE_BYTES = 256 << 10
const LOWER = { lower: new MemoryDevice(DISK_BYTES, { readOnly: true }), lowerDigest: new Uint8Array(32) }

/** A filesystem of a few MiB. */
class SmallFilesystem implements Disposable {
  readonly path = mkdtempSync(path.join(tmpdir(), 'varve-small-'))

  constructor() {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=4m', 'varve-test', this.path])
  }

  [Symbol.dispose](): void {
    execFileSync('umount', [this.path])
    rmdirSync(this.path)
  }
}

function content(write: number): Buffer {
  return Buffer.alloc(WRITE_BYTES, write + 1)
}

for (const fua of [true, false]) {
  test(`on a full disk ${fua ? 'a write with FUA' : 'a write or its flush'} is answered by ENOSPC; trimming makes room, and nothing acknowledged is lost`, async () => {
    using filesystem = new SmallFilesystem()
    const directory = `${filesystem.path}/overlay`
    await OverlayDevice.create({ directory, sizeBytes: DISK_BYTES, lowerDigest: LOWER.lowerDigest })
    const acknowledged = new Map<number, Buffer>()
    {
      await using serving = await serve({ disk: await OverlayDevice.open({ directory, ...LOWER }) })
      const client = await NbdClient.connect(serving.unix)
      const write = async (index: number): Promise<void> => {
        await client.write(content(index), index * WRITE_BYTES, { fua })
        if (!fua) await client.flush()
        acknowledged.set(index, content(index))
      }
      for (let round = 0; round < 3; round++) {
        let refused = 0
        for (let index = 0; index < 30; index++) {
          if (acknowledged.has(index)) continue
          await write(index).catch((error: unknown) => {
            assert.ok(error instanceof NbdRequestError && error.errno === NBD_ENOSPC, String(error))
            refused++
          })
        }
        assert.ok(refused > 0 && acknowledged.size > 4, `${refused} refused, ${acknowledged.size} acknowledged`)
        for (const [index, bytes] of acknowledged) assert.ok((await client.read(index * WRITE_BYTES, WRITE_BYTES)).equals(bytes), `write ${index}`)
        for (const index of [...acknowledged.keys()].slice(0, 3)) {
          await client.trim(index * WRITE_BYTES, WRITE_BYTES)
          acknowledged.delete(index)
        }
      }
      await client.flush()
      await client.disconnect()
    }
    await using overlay = await OverlayDevice.open({ directory, ...LOWER })
    const read = Buffer.alloc(WRITE_BYTES)
    for (const [index, bytes] of acknowledged) {
      await overlay.read(read, index * WRITE_BYTES)
      assert.ok(read.equals(bytes), `write ${index} after opening again`)
    }
  })
}
