// Which charts there are, and what of a run each of them draws; and the axis that they share.

import { roundTicks } from "./chart.js";
import { count, decimals, duration, share, small, whole } from "./units.js";

/** Of a run's points one column as a curve. `scaled` makes of a value what is shown. */
function curve(points, column, places, more = {}, scaled = (v) => v) {
  const shown = (values) => values.map((v) => (v === null ? null : scaled(v)));
  const { low, high, mean } = points[column];
  return { label: "", x: places(points), low: shown(low), high: shown(high), mean: shown(mean), ...more };
}

const dots = { dots: true };

export const PANELS = [
  {
    title: "Loss",
    note: "nats per token",
    falls: true,
    format: decimals,
    curves: (run, x) => [
      curve(run.steps, "loss", x, { label: "training" }),
      curve(run.evaluations, "loss", x, { ...dots, dashed: true, label: "validation" }),
    ],
  },
  {
    title: "Bits per byte",
    note: "of the validation text",
    falls: true,
    format: decimals,
    curves: (run, x) => [curve(run.evaluations, "bpb", x, dots)],
    marked: "true entropy",
    mark: (groups) => groups.find((group) => group.entropy !== null)?.entropy,
  },
  {
    title: "Learning rate",
    note: "AdamW's",
    plain: true,
    format: small,
    floor: 0,
    curves: (run, x) => [curve(run.steps, "rate", x, {}, (rate) => rate * (run.learning_rate ?? 1))],
  },
  {
    title: "Tokens per second",
    format: whole,
    tick: count,
    floor: 0,
    curves: (run, x) => [curve(run.steps, "tokens_per_second", x)],
  },
  {
    title: "MFU",
    note: "share of this machine's rate",
    format: share,
    tick: share,
    floor: 0,
    curves: (run, x) => [curve(run.steps, "mfu", x)],
  },
];

const CLOCK = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200];

function timeTicks(span, most) {
  const step = CLOCK.find((each) => span / each <= most) ?? 86400 * Math.ceil(span / most / 86400);
  return Array.from({ length: Math.floor(span / step) + 1 }, (_, k) => k * step);
}

function moment(s) {
  const [h, m, rest] = [Math.floor(s / 3600), Math.floor(s / 60) % 60, Math.round(s % 60)];
  if (h) return `${h} h ${m} min`;
  return m ? `${m} min ${rest} s` : `${rest} s`;
}

const numeric = (span, most) => roundTicks(0, span, most);

/** By name: the heading, where a run's points lie, a place in words, the same in short, and where to write it. */
export const AXES = {
  step: {
    axis: "step",
    places: () => (points) => points.step,
    label: (v) => `step ${whole(v)}`,
    short: (v) => (v < 10000 ? whole(v) : count(v)),
    ticks: numeric,
  },
  tokens: {
    axis: "tokens",
    places: (run) => (points) => points.step.map((step) => step * (run.tokens_per_step ?? 1)),
    label: (v) => `${count(v)} tokens`,
    short: count,
    ticks: numeric,
  },
  time: { axis: "time", places: () => (points) => points.time, label: moment, short: duration, ticks: timeTicks },
};
