/**
 * The thread that learns from one boot, and ends.
 */
import { parentPort, workerData } from 'node:worker_threads'
import { Home } from '@varve/images/store/home.ts'
import { learnFromReport } from './boot-lists.ts'
import type { BootReport } from './boot-lists.ts'

const report = workerData as BootReport
await using home = await Home.open(report.directory)
parentPort!.postMessage(await learnFromReport(home, report))
