/**
 * What is replayed: a real Debian with programs of many kinds, boots of it and days of work with it, recorded once from a guest on a local disk and
 * kept with its images. The boot set of its layer was learned from a boot of another CVD.
 */
import { copyFileSync, constants, existsSync, mkdirSync, renameSync, rmSync } from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { SharedExports } from '@varve/blockserver/nbd/export.ts'
import { NbdServer } from '@varve/blockserver/nbd/server.ts'
import { openLog } from '@varve/blockserver/log.ts'
import { FileDevice } from '@varve/images/device/file-device.ts'
import { ReadRecorder } from '@varve/images/device/read-recorder.ts'
import { Home } from '@varve/images/store/home.ts'
import { startCvd } from '@varve/tools/cvd-disk.ts'
import { Guest } from '@varve/tools/demo/guest.ts'
import { readMap } from '@varve/tools/settlement.ts'
import { recordHeat } from '@varve/tools/streaming/boot-lists.ts'
import { Random } from '../../test/random.ts'
import { varve } from '../../test/varve-command.ts'
import { copyOut, CVD, execute, IMAGES, MARK, TAUGHT_CVD, teach, tree } from '../boot/images.ts'
import { dayOf } from './day.ts'
import { readRecording, TimedReadsDevice, writeRecording } from './recording.ts'
import type { Recording } from './recording.ts'

/** Of the days: one number more for each. */
export const SEED = 4
/** Days that teach; the one after them is replayed. */
export const TEACHING_DAYS = 3
/** CVDs of the same layers, `desk-1` and so on, each for a client of its own. */
export const DESKS = 60
const IMAGE = 'workstation'
const BOOT_MS_MAX = 30 * 60_000
/** What else happens at the end of a day. */
const EVENING_MS = 3000

export interface Recordings {
  /** A home that knows how CVD boots, but not how it is used: none of its CVDs was. */
  home: string
  /** The same, after the days that teach. */
  taughtHome: string
  /** The disk that its CVDs show. */
  rawFile: string
  /** What is replayed, and where it is kept. */
  day: Recording
  dayFile: string
}

export function deskName(number: number): string {
  return `desk-${number}`
}

/** Makes them below `directory`, or takes what an earlier run made there. */
export async function prepareRecordings(directory: string): Promise<Recordings> {
  const place = path.join(directory, 'streams')
  mkdirSync(place, { recursive: true })
  const rawFile = path.join(place, 'disk.raw')
  const home = path.join(place, 'home')
  if (!existsSync(home)) await makeHome(place, home)
  if (!existsSync(rawFile)) {
    await copyOut(home, `${rawFile}.new`)
    renameSync(`${rawFile}.new`, rawFile)
  }
  const files = Array.from({ length: TEACHING_DAYS + 1 }, (_, day) => path.join(place, `day-${day + 1}.json`))
  for (const [day, file] of files.entries()) {
    if (existsSync(file)) continue
    console.error(`Recording day ${day + 1} of ${files.length} in ${place}`)
    writeRecording(file, await record({ rawFile, seed: SEED + day }))
  }
  const days = files.map(readRecording)
  const taughtHome = path.join(place, 'home-taught')
  if (!existsSync(taughtHome)) await teachHeat(home, taughtHome, days.slice(0, TEACHING_DAYS))
  return { home, taughtHome, rawFile, day: days[TEACHING_DAYS], dayFile: files[TEACHING_DAYS] }
}

/** Only a finished home has the name. */
async function makeHome(place: string, home: string): Promise<void> {
  console.error(`Preparing ${place}, which is kept for later runs`)
  const system = tree(path.join(place, 'system.tree'), IMAGE)
  const untaught = path.join(place, 'home-untaught')
  const building = path.join(place, 'home-building')
  rmSync(untaught, { recursive: true, force: true })
  varve(untaught, ['layer', 'import', 'system', `dir:${system}`, '--kind', 'base'])
  varve(untaught, ['cvd', 'create', TAUGHT_CVD, '--layer', 'system'])
  await teach(untaught, building, TAUGHT_CVD, IMAGE)
  {
    await using opened = await Home.open(building)
    // Started, so that their disk stays as it is, whatever is learned.
    for (const name of [CVD, ...Array.from({ length: DESKS }, (_, index) => deskName(index + 1))]) {
      await opened.catalog.createCvd({ name, layers: ['system'], policy: {} })
      await startCvd(name, { home: opened })
    }
  }
  rmSync(untaught, { recursive: true })
  renameSync(building, home)
}

/** Boots a copy of the disk, and does on its console what a day has. */
async function record({ rawFile, seed }: { rawFile: string; seed: number }): Promise<Recording> {
  const copy = `${rawFile}.copy`
  const socket = `${rawFile}.sock`
  copyFileSync(rawFile, copy, constants.COPYFILE_FICLONE)
  try {
    await using device = new TimedReadsDevice(FileDevice.open({ path: copy }))
    const info = { name: CVD, description: 'is recorded' }
    const provider = new SharedExports({ list: async () => [info], canonicalName: (name) => name, open: async () => ({ ...info, device, close: async () => {} }) })
    const server = await NbdServer.listen([`unix:${socket}`], { provider, log: openLog('warn') })
    try {
      return await useGuest({ device, socket, seed })
    } finally {
      await server.close()
    }
  } finally {
    rmSync(copy)
  }
}

async function useGuest({ device, socket, seed }: { device: TimedReadsDevice; socket: string; seed: number }): Promise<Recording> {
  const powerOnMs = device.ms
  const elapsedMs = (): number => device.ms - powerOnMs
  await using guest = new Guest({ disk: `nbd+unix:///${CVD}?socket=${socket}`, memoryMiB: IMAGES[IMAGE].memoryMiB })
  await guest.waitFor(new RegExp(MARK), { timeoutMs: BOOT_MS_MAX })
  const markMs = elapsedMs()
  await guest.waitFor(/root@[\w-]+:~# /, { timeoutMs: BOOT_MS_MAX })
  const actions: Recording['actions'] = []
  for (const [index, { thinkMs, command }] of dayOf(new Random(seed)).entries()) {
    await sleep(thinkMs)
    actions.push({ ms: elapsedMs(), command })
    const after = guest.mark()
    // The echo of the typed line does not hold the tag as it is printed.
    guest.type(`{ ${command}; } >/dev/null 2>/tmp/errors </dev/null; echo "action ""${index} ended with $?"\n`)
    const [, status] = await guest.waitFor(new RegExp(`action ${index} ended with (\\d+)`), { timeoutMs: BOOT_MS_MAX, after })
    if (status !== '0') console.error(`day of seed ${seed}: ${command} ended with ${status}`)
  }
  await sleep(EVENING_MS)
  return { seed, markMs, actions, reads: device.reads.map((read) => ({ ...read, ms: read.ms - powerOnMs })) }
}

/** A copy of a home that was told how its CVD was used on some days, as agents tell it. Only a finished one has the name. */
async function teachHeat(home: string, to: string, days: readonly Recording[]): Promise<void> {
  const building = `${to}.building`
  rmSync(building, { recursive: true, force: true })
  execute('cp', ['-a', home, building])
  {
    await using opened = await Home.open(building)
    const { baseMap } = await opened.catalog.cvd(CVD)
    const map = await readMap(opened, baseMap!)
    for (const { reads } of days) {
      const recorder = new ReadRecorder(map)
      let second = 0
      for (const { ms, offset, length } of reads) {
        if (Math.floor(ms / 1000) > second) {
          second = Math.floor(ms / 1000)
          recorder.turn()
        }
        recorder.note(offset, length)
      }
      await recordHeat(opened, baseMap!, recorder.takeUsed())
    }
  }
  renameSync(building, to)
}
