/**
 * `npm run bench -- NAME [--json]`: runs one benchmark. Exit status 0 if it ran, whether or not goals are met; they are printed.
 */
import { readdirSync } from 'node:fs'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { printResult } from './figures.ts'
import type { BenchResult } from './figures.ts'

const { values, positionals } = parseArgs({ allowPositionals: true, options: { json: { type: 'boolean', default: false } } })
const names = readdirSync(path.join(import.meta.dirname, 'runs')).map((file) => path.basename(file, '.ts'))
const name = positionals[0]
if (positionals.length !== 1 || !names.includes(name)) {
  console.error(`usage: npm run bench -- NAME [--json], where NAME is one of ${names.join(', ')}`)
  process.exit(2)
}
const { run } = (await import(`./runs/${name}.ts`)) as { run: () => Promise<BenchResult> }
const result = await run()
console.log(values.json ? JSON.stringify(result, null, 2) : printResult(result))
