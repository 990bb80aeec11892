/**
 * The boot benchmark's report: one HTML file that needs nothing else. For each line a bar per variant and plots over time, drawn as SVG.
 */
import type { Figure } from '../figures.ts'
import type { BootResult } from '../runs/boot.ts'
import { byLine } from './boot-figures.ts'
import type { Boot, Sample } from './measure.ts'

const WIDTH = 860
const HEIGHT = 260
const LEFT = 64
const BOTTOM = 28
const BAR = 26
/** Told apart by people who see colours differently, too (Okabe and Ito). */
const COLOURS = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#000000', '#999999']
const TICKS = 5

interface Curve {
  variant: string
  points: [number, number][]
}

export function bootReport(result: BootResult): string {
  const variants = [...new Set(result.boots.map(({ variant }) => variant))].sort()
  const colour = (variant: string): string => COLOURS[variants.indexOf(variant) % COLOURS.length]
  const sections = [...byLine(result.boots)].map(([line, boots]) => {
    const typical = [...Map.groupBy(boots, ({ variant }) => variant)].map(([, rounds]) => median(rounds)).sort((a, b) => a.markMs - b.markMs)
    const curves = (value: (sample: Sample) => number): Curve[] => typical.map(({ variant, samples }) => ({ variant, points: samples.map((sample) => [sample.ms / 1000, value(sample)]) }))
    return `<h2>${escape(line)}</h2>
<h3>Time to the mark, seconds</h3>${bars(typical, colour)}
<p>${variants.map((variant) => `<span style="color:${colour(variant)}">&#9632;</span> ${escape(variant)}`).join(' &nbsp; ')}</p>
<h3>MiB down the line</h3>${plot(curves(({ bytesDown }) => bytesDown / 2 ** 20), colour)}
<h3>Requests over the line</h3>${plot(curves(({ requests }) => requests), colour)}
<h3>Requests that the guest waited for</h3>${plot(curves(({ misses }) => misses), colour)}`
  })
  const { machine, versions } = result
  return `<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Boot over a line</title>
<style>body{font:15px/1.5 system-ui,sans-serif;max-width:920px;margin:2rem auto;padding:0 1rem;color:#222}table{border-collapse:collapse}td,th{padding:.2rem .6rem;border-bottom:1px solid #ddd;text-align:left}svg{max-width:100%}text{font-size:12px;fill:#444}.missed{color:#b00020;font-weight:600}</style>
<h1>Boot over a line: ${escape(result.image)}, ${escape(result.firmware)}</h1>
<p>${escape(`${machine.cores} x ${machine.cpu}, ${machine.memoryMiB} MiB, Linux ${machine.kernel}; ${Object.entries(versions).map((pair) => pair.join(' ')).join('; ')}; seed ${result.seed}`)}</p>
${figureTable(result.figures)}
${sections.join('\n')}
<h2>What confounds this</h2><ul>${result.notes.map((note) => `<li>${escape(note)}</li>`).join('')}</ul>
</html>
`
}

/** The boot whose time is the median, the later of two. */
function median(boots: readonly Boot[]): Boot {
  return [...boots].sort((a, b) => a.markMs - b.markMs)[boots.length >> 1]
}

function escape(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('"', '&quot;')
}

function number(value: number): string {
  return value >= 100 ? value.toFixed(0) : Number(value.toPrecision(3)).toString()
}

function figureTable(figures: readonly Figure[]): string {
  const rows = figures.map(({ name, unit, ours, peers, ratio, goal, met }) => {
    const beside = Object.entries(peers).map(([peer, { median }]) => `${escape(peer)} ${number(median)}`).join(', ')
    return `<tr><td>${escape(name)}<td>${number(ours.median)} ${escape(unit)}<td>${beside}<td>${ratio === null ? '' : number(ratio)}<td>${escape(goal ?? '')}<td${met === false ? ' class="missed">missed' : met === true ? '>met' : '>'}`
  })
  return rows.length === 0 ? '' : `<table><tr><th>figure<th>ours<th>peers<th>ratio<th>goal<th></tr>${rows.join('\n')}</table>`
}

function bars(boots: readonly Boot[], colour: (variant: string) => string): string {
  const longestMs = Math.max(...boots.map(({ markMs }) => markMs))
  const scale = (ms: number): number => (ms / longestMs) * (WIDTH - 320)
  const rows = boots.map(({ variant, powerOnMs, markMs }, index) => {
    const y = index * BAR
    // Paler: before the guest is powered on.
    return `<text x="240" y="${y + 17}" text-anchor="end">${escape(variant)}</text>
<rect x="250" y="${y + 4}" width="${scale(powerOnMs)}" height="18" fill="${colour(variant)}" opacity="0.45"/>
<rect x="${250 + scale(powerOnMs)}" y="${y + 4}" width="${scale(markMs - powerOnMs)}" height="18" fill="${colour(variant)}"/>
<text x="${256 + scale(markMs)}" y="${y + 17}">${(markMs / 1000).toFixed(1)}</text>`
  })
  return `<svg viewBox="0 0 ${WIDTH} ${boots.length * BAR}" width="${WIDTH}">${rows.join('\n')}</svg>`
}

function plot(curves: readonly Curve[], colour: (variant: string) => string): string {
  const points = curves.flatMap((curve) => curve.points)
  const xMax = Math.max(1, ...points.map(([x]) => x))
  const yMax = Math.max(1, ...points.map(([, y]) => y))
  const x = (value: number): string => (LEFT + (value / xMax) * (WIDTH - LEFT - 16)).toFixed(1)
  const y = (value: number): string => (HEIGHT - BOTTOM - (value / yMax) * (HEIGHT - BOTTOM - 8)).toFixed(1)
  const ticks = Array.from({ length: TICKS + 1 }, (_, index) => index / TICKS)
  const grid = ticks.map((part) => `<line x1="${LEFT}" x2="${WIDTH - 16}" y1="${y(part * yMax)}" y2="${y(part * yMax)}" stroke="#e5e5e5"/>
<text x="${LEFT - 8}" y="${Number(y(part * yMax)) + 4}" text-anchor="end">${number(part * yMax)}</text>
<text x="${x(part * xMax)}" y="${HEIGHT - 8}" text-anchor="middle">${number(part * xMax)}${part === 1 ? ' s' : ''}</text>`)
  const lines = curves.map(({ variant, points: of }) => `<polyline fill="none" stroke="${colour(variant)}" stroke-width="2" points="${of.map(([at, value]) => `${x(at)},${y(value)}`).join(' ')}"><title>${escape(variant)}</title></polyline>`)
  return `<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" width="${WIDTH}">${grid.join('\n')}${lines.join('\n')}</svg>`
}
