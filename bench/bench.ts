/**
 * `npm run bench -- NAME [--json] [--html FILE]`: runs one benchmark. Exit status 0 if it ran, whether or not goals are met; they are printed.
 * `npm run bench -- NAME --compare A.json B.json`: what changed between two runs that were kept.
 */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { compareResults, printResult } from './figures.ts'
import type { BenchResult } from './figures.ts'

interface Bench {
  run: () => Promise<BenchResult>
  /** Of a benchmark that has plots. */
  html?: (result: BenchResult) => string
}

const { values, positionals } = parseArgs({ allowPositionals: true, options: { json: { type: 'boolean', default: false }, html: { type: 'string' }, compare: { type: 'boolean', default: false } } })
const names = readdirSync(path.join(import.meta.dirname, 'runs')).map((file) => path.basename(file, '.ts'))
const [name, ...files] = positionals
if (!names.includes(name) || files.length !== (values.compare ? 2 : 0)) usage()
if (values.compare) {
  const [before, after] = files.map((file) => JSON.parse(readFileSync(file, 'utf8')) as BenchResult)
  console.log(compareResults(before, after))
} else {
  const { run, html } = (await import(`./runs/${name}.ts`)) as Bench
  if (values.html !== undefined && html === undefined) usage()
  const result = await run()
  console.log(values.json ? JSON.stringify(result, null, 2) : printResult(result))
  if (values.html !== undefined) writeFileSync(values.html, html!(result))
}

function usage(): never {
  console.error(`usage: npm run bench -- NAME [--json] [--html FILE], or NAME --compare A.json B.json, where NAME is one of ${names.join(', ')}; boot has a report in HTML`)
  process.exit(2)
}
