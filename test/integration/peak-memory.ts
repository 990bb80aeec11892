/**
 * Loaded into a command (`--import`): says at its end, in the file VARVE_TEST_PEAK_FILE, how much memory the process had at most, all its threads together.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { isMainThread } from 'node:worker_threads'

const file = process.env.VARVE_TEST_PEAK_FILE
if (isMainThread && file !== undefined) process.on('exit', () => writeFileSync(file, /VmHWM:\s*(\d+) kB/.exec(readFileSync('/proc/self/status', 'latin1'))![1]))
