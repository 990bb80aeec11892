/**
 * One boot over one line: from the moment in which the near end begins, to the mark on the guest's console.
 */
import { Guest } from '@varve/tools/demo/guest.ts'
import type { GuestOptions } from '@varve/tools/demo/guest.ts'
import { DelayLine } from '@varve/tools/wan/delay-line.ts'
import { ScratchDirectory } from '../../test/varve-command.ts'
import { IMAGES, MARK } from './images.ts'
import type { Images } from './images.ts'
import { RequestCounter } from './requests.ts'
import type { Variant } from './variants.ts'

export const FIRMWARES = ['bios', 'uefi', 'kernel'] as const
export type Firmware = (typeof FIRMWARES)[number]

export interface LineSetting {
  megabitsPerSecond: number
  roundTripMs: number
}

/** What had happened, so long after the near end began. */
export interface Sample {
  ms: number
  bytesDown: number
  /** Of these, what only the fill asked for. */
  fillBytes: number
  bytesUp: number
  requests: number
  misses: number
}

export interface Boot {
  variant: string
  line: LineSetting
  round: number
  /** When the guest was powered on. */
  powerOnMs: number
  markMs: number
  /** At the mark. */
  bytesDown: number
  fillBytes: number
  bytesUp: number
  requests: number
  misses: number
  samples: Sample[]
}

const BOOT_MS_MAX = 30 * 60_000
const SAMPLE_MS = 250
const MARK_PATTERN = new RegExp(MARK)

export interface BootOptions {
  images: Images
  variant: Variant
  line: LineSetting
  firmware: Firmware
  round: number
}

export async function measureBoot({ images, variant, line: setting, firmware, round }: BootOptions): Promise<Boot> {
  using scratch = new ScratchDirectory('boot')
  await using stack = new AsyncDisposableStack()
  let line: DelayLine | undefined
  let counter: RequestCounter | undefined
  const run = await variant.prepare({
    images,
    directory: scratch.path,
    stack,
    line: async (target, protocol) => {
      const counting = (counter = new RequestCounter(protocol))
      line = stack.use(await DelayLine.open({
        listen: '127.0.0.1:0',
        target,
        delayMs: setting.roundTripMs / 2,
        bitsPerSecond: setting.megabitsPerSecond * 1e6,
        onSent: (connection, bytes) => counting.sent(connection, bytes),
        onReceived: (connection, bytes) => counting.received(connection, bytes),
      }))
      return line.address
    },
  })
  const startedMs = performance.now()
  const sample = (): Sample => {
    const { requests, misses, fillBytes } = counter?.counts ?? { requests: 0, misses: 0, fillBytes: 0 }
    return { ms: performance.now() - startedMs, bytesDown: line?.figures.down.bytes ?? 0, fillBytes, bytesUp: line?.figures.up.bytes ?? 0, requests, misses: variant.copiesFirst ? 0 : misses }
  }
  const samples: Sample[] = [sample()]
  const timer = setInterval(() => samples.push(sample()), SAMPLE_MS)
  stack.defer(() => clearInterval(timer))
  const drive = await run()
  const powerOnMs = performance.now() - startedMs
  await using guest = new Guest(guestOptions(images, firmware, drive))
  await guest.waitFor(MARK_PATTERN, { timeoutMs: BOOT_MS_MAX })
  const atMark = sample()
  samples.push(atMark)
  const { ms, ...counts } = atMark
  return { variant: variant.name, line: setting, round, powerOnMs, markMs: ms, ...counts, samples }
}

function guestOptions(images: Images, firmware: Firmware, drive: string): GuestOptions {
  const { memoryMiB, display } = IMAGES[images.image]
  return {
    ...(firmware === 'kernel' ? { kernel: { image: images.kernelFile, initrd: images.initrdFile, commandLine: `root=UUID=${images.rootUuid} rw console=ttyS0` } } : { firmware }),
    memoryMiB,
    extra: ['-drive', `${drive},if=virtio,cache=writeback,discard=unmap`, ...display],
  }
}
