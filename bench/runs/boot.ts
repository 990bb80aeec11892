/**
 * From power-on to the default target of a real Debian whose disk is at the other end of a line, streamed by us and by the means that there are.
 * Parameters are in bench/README.md. Debian packages: qemu-system-x86, ovmf, mmdebstrap, nbdkit, libnbd-bin, qemu-utils.
 */
import { mkdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { Random, testSeed } from '../../test/random.ts'
import { bootFigures, lineName } from '../boot/boot-figures.ts'
import { IMAGES, prepareImages } from '../boot/images.ts'
import type { ImageName } from '../boot/images.ts'
import { FIRMWARES, measureBoot } from '../boot/measure.ts'
import type { Boot, Firmware, LineSetting } from '../boot/measure.ts'
import { FLOOR_VARIANT, OUR_VARIANTS, PEERS } from '../boot/variants.ts'
import { figure, machine, version } from '../figures.ts'
import type { BenchResult } from '../figures.ts'
import { shuffled } from '../nbd/request-table.ts'

export { bootReport as html } from '../boot/report.ts'

export interface BootResult extends BenchResult {
  image: string
  firmware: Firmware
  boots: Boot[]
}

const ROUNDS = Number(process.env.VARVE_BENCH_ROUNDS ?? 1)
const LINES = parseLines(process.env.VARVE_BENCH_LINES ?? '20/80')
const VARIANTS = new RegExp(process.env.VARVE_BENCH_VARIANTS ?? '')
const DIRECTORY = process.env.VARVE_BENCH_IMAGES ?? path.join(tmpdir(), 'varve-bench-boot')

function parseLines(text: string): LineSetting[] {
  return text.split(',').map((line) => {
    const found = /^(\d+)\/(\d+)$/.exec(line)
    if (found === null) throw new Error(`VARVE_BENCH_LINES holds ${line}; a line is MEGABITS/ROUND_TRIP_MS, such as 20/80`)
    return { megabitsPerSecond: Number(found[1]), roundTripMs: Number(found[2]) }
  })
}

function choice<Name extends string>(variable: string, names: readonly Name[]): Name {
  const given = process.env[variable] ?? names[0]
  const name = names.find((one) => one === given)
  if (name === undefined) throw new Error(`${variable} is one of ${names.join(', ')}`)
  return name
}

export async function run(): Promise<BootResult> {
  const seed = testSeed()
  const random = new Random(seed)
  const firmware = choice('VARVE_BENCH_FIRMWARE', FIRMWARES)
  mkdirSync(DIRECTORY, { recursive: true })
  const images = await prepareImages(path.resolve(DIRECTORY), choice('VARVE_BENCH_IMAGE', Object.keys(IMAGES) as ImageName[]))
  const variants = [FLOOR_VARIANT, ...PEERS, ...OUR_VARIANTS].filter(({ name }) => VARIANTS.test(name))
  const boots: Boot[] = []
  for (let round = 0; round < ROUNDS; round++) {
    for (const line of LINES) {
      for (const variant of shuffled(variants, random)) {
        const boot = await measureBoot({ images, variant, line, firmware, round })
        boots.push(boot)
        console.error(`round ${round + 1} of ${ROUNDS}, ${lineName(line)}, ${variant.name}: ${(boot.markMs / 1000).toFixed(1)} s, ${(boot.bytesDown / 2 ** 20).toFixed(1)} MiB, ${boot.requests} requests, ${boot.misses} waited for`)
      }
    }
  }
  return {
    bench: 'boot',
    machine: machine(),
    versions: { node: process.version, qemu: version('qemu-system-x86_64', '--version'), nbdkit: version('nbdkit', '--version'), 'qemu-nbd': version('qemu-nbd', '--version') },
    seed,
    image: images.image,
    firmware,
    figures: [
      figure({ name: 'what a boot uses, covered by the boot set of another system of the same packages', unit: '%', ours: [images.otherCovers * 100], moreIsBetter: true, oursMin: 90 }),
      ...bootFigures(boots),
    ],
    boots,
    notes: [
      `image ${images.image}, ${firmware}; ${ROUNDS} rounds, all variants in turns on each line, in another order each time`,
      'the guest is emulated (TCG): its processor is several times slower than a real one, so that a boot is longer, and a line matters less, than on hardware; guest, servers and line share this machine',
      'a line delays and paces bytes in a process of this machine; it loses nothing and has no slow start; its delays are exact to 1 to 2 ms',
      'the clock runs from when the near end begins (our agent, a copy, a local proxy), not from power-on; far servers run already, with the disk in the page cache',
      'what guests write stays at the near end, in every variant; "waited for" counts reads of a guest that go over the line, of ours chunks that were missed',
    ],
  }
}
