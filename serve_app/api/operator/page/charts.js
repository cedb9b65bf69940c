// The charts of the last day, drawn by uPlot: bars that stand on each other, or lines of means.

import { element } from "./tables.js"

const { uPlot } = window
const DAY_S = 86400
const HEIGHT = 150
const drawn = new Map()

const color = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim()

// series: [{ name in a slot, label, color, line }]; bars of one slot stand on each other, the first at the bottom.
export function chart(place, title, activity, series, show) {
  const count = DAY_S / activity.slot_s
  const found = new Map(activity.slots.map(slot => [Math.round((slot.begins_s - activity.since_s) / activity.slot_s), slot]))
  const slots = Array.from({ length: count }, (_, at) => found.get(at))
  const values = series.map(one => slots.map(slot => slot?.[one.name] ?? (one.line ? null : 0)))
  const tops = values.map((_, at) => series[at].line ? values[at] : slots.map((_, slot) => sum(values, at, slot)))
  const times = slots.map((_, at) => activity.since_s + at * activity.slot_s)
  // The highest are drawn first, so that those below them lie in front.
  const order = series.map((_, at) => at).reverse()
  const data = [times, ...order.map(at => tops[at])]
  let { figure, caption, plot } = drawn.get(title) ?? {}
  if (!plot) {
    figure = element("figure")
    caption = element("figcaption")
    const box = element("div")
    figure.append(caption, box)
    place.append(figure)
    const raw = order.map(at => (_, __, ___, slot) => slot == null ? "–" : drawn.get(title).show(at, slot))
    plot = new uPlot(options(box, order.map(at => series[at]), raw, show), data, box)
    new ResizeObserver(() => plot.setSize({ width: box.clientWidth, height: HEIGHT })).observe(box)
  } else {
    plot.setData(data)
  }
  drawn.set(title, { figure, caption, plot, show: (at, slot) => values[at][slot] === null ? "–" : show(values[at][slot]) })
  const highest = Math.max(0, ...tops.flat())
  const total = series[0].line ? "" : `${values.flat().reduce((all, one) => all + one, 0)} in all, `
  caption.textContent = `${title}: ${total}at most ${show(highest)} in ${activity.slot_s / 60} min`
  return figure
}

function sum(values, last, slot) {
  let all = 0
  for (let at = 0; at <= last; at++) all += values[at][slot]
  return all
}

function options(box, series, raw, show) {
  const axis = { stroke: color("dim"), grid: { stroke: color("line"), width: 1 }, ticks: { stroke: color("line") } }
  return {
    width: box.clientWidth,
    height: HEIGHT,
    cursor: { drag: { x: false, y: false } },
    legend: { live: true },
    scales: { y: { range: (_, __, highest) => [0, Math.max(highest ?? 0, 1e-3) * 1.05] } },
    axes: [{ ...axis, space: 60 }, { ...axis, size: 58, values: (_, marks) => marks.map(mark => show(mark)) }],
    series: [
      { label: "from", value: (_, at) => at == null ? "–" : new Date(at * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }) },
      ...series.map((one, at) => ({
        label: one.label,
        stroke: color(one.color),
        value: raw[at],
        ...(one.line
          ? { width: 2, spanGaps: false, points: { show: true, size: 5 } }
          : { fill: color(one.color), width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.8], align: 1 }) }),
      })),
    ],
  }
}
