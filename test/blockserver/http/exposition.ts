/**
 * A strict reader of the text format of Prometheus, version 0.0.4: what a scraper takes, and what `promtool check metrics` demands of names.
 */
import assert from 'node:assert/strict'

export interface Series {
  /** Of the sample: with _bucket, _sum, _count. */
  name: string
  labels: Record<string, string>
  value: number
}

export interface Family {
  type: string
  series: Series[]
}

const NAME = '[a-zA-Z_:][a-zA-Z0-9_:]*'
const SAMPLE = new RegExp(`^(${NAME})(?:\\{(.*)\\})? (\\S+)$`)
const LABEL = /([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"(,|$)/y

/** Families by name. @throws AssertionError if the text breaks the format */
export function parseExposition(text: string): Map<string, Family> {
  assert.ok(text.endsWith('\n'))
  const families = new Map<string, Family>()
  let helped = ''
  let current: { name: string; family: Family } | undefined
  const seen = new Set<string>()
  for (const line of text.slice(0, -1).split('\n')) {
    const help = new RegExp(`^# HELP (${NAME}) (\\S.*)$`).exec(line)
    const type = new RegExp(`^# TYPE (${NAME}) (counter|gauge|histogram)$`).exec(line)
    if (help !== null) helped = help[1]
    else if (type !== null) {
      assert.equal(type[1], helped, 'HELP comes just before TYPE')
      assert.ok(!families.has(type[1]), `${type[1]} twice`)
      current = { name: type[1], family: { type: type[2], series: [] } }
      families.set(current.name, current.family)
    } else {
      const sample = SAMPLE.exec(line)
      assert.ok(sample !== null && current !== undefined, line)
      const [, name, labels = '', value] = sample
      const suffixes = current.family.type === 'histogram' ? ['_bucket', '_sum', '_count'] : ['']
      assert.ok(suffixes.some((suffix) => name === current!.name + suffix), `${name} among ${current.name}`)
      assert.ok(!seen.has(`${name}{${labels}}`), `${line} twice`)
      seen.add(`${name}{${labels}}`)
      assert.match(value, /^(?:[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?|[+-]Inf|NaN)$/)
      current.family.series.push({ name, labels: parseLabels(labels), value: Number(value) })
    }
  }
  for (const [name, family] of families) checkFamily(name, family)
  return families
}

/** The value of the one series that has these labels. */
export function valueOf(families: Map<string, Family>, name: string, labels: Record<string, string> = {}): number {
  const family = families.get(name) ?? families.get(name.replace(/_(?:bucket|sum|count)$/, ''))
  const found = family?.series.filter((one) => one.name === name && Object.entries(labels).every(([label, value]) => one.labels[label] === value)) ?? []
  assert.equal(found.length, 1, `${found.length} series of ${name} ${JSON.stringify(labels)}`)
  return found[0].value
}

function parseLabels(text: string): Record<string, string> {
  const labels: Record<string, string> = {}
  LABEL.lastIndex = 0
  while (LABEL.lastIndex < text.length) {
    const at = LABEL.lastIndex
    const label = LABEL.exec(text)
    assert.ok(label !== null, `labels ${text} at ${at}`)
    assert.ok(!(label[1] in labels))
    labels[label[1]] = label[2].replace(/\\(.)/g, (_, escaped: string) => escaped === 'n' ? '\n' : escaped)
  }
  return labels
}

function checkFamily(name: string, { type, series }: Family): void {
  assert.equal(name.endsWith('_total'), type === 'counter', `${name} is a ${type}`)
  assert.doesNotMatch(name, /_(?:bucket|count|sum|ms|milliseconds|kilobytes)$/)
  if (type === 'counter') for (const { value } of series) assert.ok(value >= 0, name)
  if (type === 'histogram') checkHistogram(name, series)
}

function checkHistogram(name: string, series: readonly Series[]): void {
  const groups = Map.groupBy(series, ({ labels }) => JSON.stringify({ ...labels, le: undefined }))
  for (const group of groups.values()) {
    const buckets = group.filter((one) => one.name === `${name}_bucket`)
    const bounds = buckets.map(({ labels }) => labels.le === '+Inf' ? Infinity : Number(labels.le))
    assert.equal(bounds.at(-1), Infinity)
    for (const [index, { value }] of buckets.entries()) {
      if (index > 0) assert.ok(bounds[index] > bounds[index - 1] && value >= buckets[index - 1].value, `${name}: buckets are cumulative`)
    }
    const [sum, count, ...more] = ['_sum', '_count'].map((suffix) => group.filter((one) => one.name === name + suffix))
    assert.deepEqual([sum.length, count.length, more.length], [1, 1, 0])
    assert.equal(count[0].value, buckets.at(-1)!.value)
    assert.equal(group.length, buckets.length + 2)
  }
}
