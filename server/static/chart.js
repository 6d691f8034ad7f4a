// One chart on a canvas: curves of several runs over one axis, a place that is read, and the same as a table of numbers.
//
// A curve is {label, x, low, high, mean, dots}: rising places, and for each the lowest, highest and mean value of the rows
// that lie there. Drawn are the range from low to high, faint, and over it the smoothed mean; or dots joined by a line.

import { h } from "./dom.js";

const MARGIN = { left: 52, right: 12, top: 10, bottom: 24 };
const HEIGHT = 230;
const ROWS = 12; // of the table

/** The coloured mark of a run. */
export function swatch(colour) {
  const mark = h("span", { class: "swatch", "aria-hidden": "true" });
  mark.style.setProperty("--colour", `var(--run-${colour})`);
  return mark;
}

export class Chart {
  /**
   * @param options title, note (what the value is), format (a value as text), tick (the same on the axis), floor (of the axis),
   *   falls (its beginning may be cut off), plain (it needs no smoothing), mark and marked (a value of its own, and its name).
   * @param moved called with a place on the axis, or null, when the person points at it.
   */
  constructor(options, moved) {
    this.options = options;
    this.moved = moved;
    this.groups = [];
    this.view = null;
    this.named = ""; // for whom the legend was made
    this.place = h("output", { class: "place soft" });
    this.legend = h("ul", { class: "legend" });
    this.canvas = h("canvas", { tabindex: 0, role: "img" });
    this.ground = h("canvas"); // the curves alone, so that pointing at them does not draw them anew
    this.scales = null; // how places and values become pixels, where there are any
    this.table = h("div", { class: "numbers", hidden: true });
    const title = h("h3", {}, options.title, options.note && h("span", { class: "soft" }, ` ${options.note}`));
    const caption = h("figcaption", {}, title, this.place);
    this.element = h("figure", { class: "card chart" }, caption, this.legend, this.canvas, this.table);
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerdown", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => this.moved(null));
    this.canvas.addEventListener("blur", () => this.moved(null));
    this.canvas.addEventListener("keydown", (event) => this.step(event));
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  /**
   * @param groups one for each run: {name, colour, curves}.
   * @param view {axis, label(x), short(x), ticks(span, most), span, log, smoothing, numbers, hover}, the same for all charts;
   *   hover is the place that is pointed at, or null.
   */
  show(groups, view) {
    if (groups !== this.groups || view.smoothing !== this.view.smoothing) {
      const amount = this.options.plain ? 0 : view.smoothing;
      this.smoothed = groups.map((group) => group.curves.map((curve) => smooth(curve, amount)));
    }
    this.groups = groups;
    this.view = view;
    this.canvas.hidden = view.numbers;
    this.table.hidden = !view.numbers;
    if (view.numbers) this.fillTable();
    this.tell();
    this.draw();
  }

  // ---- pointing

  /** Reads another place. */
  read(hover) {
    this.view = { ...this.view, hover };
    this.tell();
    this.drawHover();
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const share = (event.clientX - box.left - MARGIN.left) / (box.width - MARGIN.left - MARGIN.right);
    this.moved(Math.min(1, Math.max(0, share)) * this.view.span);
  }

  step(event) {
    const by = { ArrowLeft: -0.01, ArrowRight: 0.01, PageDown: -0.1, PageUp: 0.1, Home: -1, End: 1 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    const now = this.view.hover ?? this.view.span;
    this.moved(Math.min(this.view.span, Math.max(0, now + by * this.view.span)), this);
  }

  /** What stands in the legend: each run's values at the place, or its last ones. */
  tell() {
    const { hover, label } = this.view;
    this.place.textContent = hover === null ? "" : label(hover);
    const names = String(this.groups.map((group) => [group.name, group.colour]));
    if (names !== this.named) {
      this.named = names;
      const item = (group) => h("li", {}, swatch(group.colour), h("span", { class: "name" }, group.name), h("b"));
      this.legend.replaceChildren(...this.groups.map(item));
    }
    this.groups.forEach((group, g) => {
      this.legend.children[g].lastChild.textContent = this.values(group);
    });
    this.canvas.ariaLabel = `${this.options.title}: ${this.spoken()} Arrow keys read other places.`;
  }

  spoken() {
    const where = this.view.hover === null ? "last values" : `at ${this.view.label(this.view.hover)}`;
    return `${where}, ${this.groups.map((group) => `${group.name} ${this.values(group)}`).join("; ") || "none yet"}.`;
  }

  values(group) {
    const told = group.curves.map((curve) => {
      const at = this.view.hover === null ? last(curve) : nearest(curve, this.view.hover, 0.02 * this.view.span);
      const text = at === null ? "–" : this.options.format(curve.mean[at]);
      return curve.label ? `${curve.label} ${text}` : text;
    });
    return told.join(" · ");
  }

  fillTable() {
    const { label, span } = this.view;
    const { places, reach } = rowPlaces(this.groups.flatMap((group) => group.curves), span);
    const columns = this.groups.flatMap((group) => group.curves.map((curve) => ({ group, curve })));
    const head = columns.map(({ group, curve }) => {
      const name = [group.name, curve.label].filter(Boolean).join(", ");
      return h("th", { scope: "col" }, swatch(group.colour), name);
    });
    const rows = places.map((x) => {
      const cells = columns.map(({ curve }) => {
        const k = nearest(curve, x, reach);
        return h("td", {}, k !== null && Math.abs(curve.x[k] - x) <= reach && this.options.format(curve.mean[k]));
      });
      return h("tr", {}, h("th", { scope: "row" }, label(x)), ...cells);
    });
    const caption = h("caption", { class: "hidden" }, this.options.title);
    const top = h("thead", {}, h("tr", {}, h("th", { scope: "col" }, this.view.axis), ...head));
    this.table.replaceChildren(h("table", {}, caption, top, h("tbody", {}, ...rows)));
  }

  // ---- drawing

  draw() {
    if (!this.view || this.canvas.hidden) return;
    const ratio = window.devicePixelRatio || 1;
    const width = this.element.clientWidth - 2 * parseFloat(getComputedStyle(this.element).paddingLeft);
    if (width <= 0) return;
    for (const canvas of [this.canvas, this.ground]) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(HEIGHT * ratio);
      canvas.getContext("2d").scale(ratio, ratio);
    }
    this.drawCurves(this.ground.getContext("2d"), width);
    this.drawHover();
  }

  drawCurves(pen, width) {
    const frame = { left: MARGIN.left, right: width - MARGIN.right, top: MARGIN.top, bottom: HEIGHT - MARGIN.bottom };
    const colours = { line: this.colour("--line"), soft: this.colour("--soft") };
    const range = this.range();
    this.scales = null;
    pen.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    if (!range) {
      pen.fillStyle = colours.soft;
      pen.textAlign = "center";
      pen.fillText("nothing to draw yet", width / 2, HEIGHT / 2);
      return;
    }
    const scale = (v) => (this.view.log ? Math.log(v) : v);
    const [low, high] = range.map(scale);
    const x = (v) => frame.left + (v / this.view.span) * (frame.right - frame.left);
    const y = (v) => frame.bottom - ((scale(v) - low) / (high - low)) * (frame.bottom - frame.top);
    this.scales = { frame, x, y };
    this.drawAxes(pen, frame, x, y, range, colours);
    pen.save();
    pen.beginPath();
    pen.rect(frame.left, frame.top - 4, frame.right - frame.left + 4, frame.bottom - frame.top + 8);
    pen.clip();
    this.drawMark(pen, frame, y, range, colours);
    this.groups.forEach((group, g) => {
      const colour = this.colour(`--run-${group.colour}`);
      group.curves.forEach((curve, c) => this.drawCurve(pen, x, y, curve, this.smoothed[g][c], colour));
    });
    pen.restore();
  }

  /** A colour of the style sheets as it is now, by day or by night. */
  colour(name) {
    this.canvas.style.color = `var(${name})`;
    return getComputedStyle(this.canvas).color;
  }

  /** Lowest and highest value that is to be seen. Of what falls, the first tenth of the axis may stick out at the top. */
  range() {
    const shown = (v) => v !== null && Number.isFinite(v) && (!this.view.log || v > 0);
    let low = Infinity;
    let high = -Infinity;
    this.groups.forEach((group, g) =>
      group.curves.forEach((curve, c) => {
        const cut = this.options.falls && curve.x.length > 5 && !this.view.log;
        const skip = cut ? Math.min(curve.x.at(-1) / 2, this.view.span / 10) : -1;
        curve.x.forEach((x, k) => {
          for (const v of curve.dots ? [curve.mean[k]] : [curve.low[k], curve.high[k], this.smoothed[g][c][k]]) {
            if (!shown(v)) continue;
            low = Math.min(low, v);
            if (x >= skip) high = Math.max(high, v);
          }
        });
      }),
    );
    const marked = this.options.mark?.(this.groups);
    if (shown(marked ?? null)) low = Math.min(low, marked);
    if (low > high) return null;
    if (this.options.floor !== undefined && !this.view.log) low = Math.min(low, this.options.floor);
    if (low === high) return low > 0 ? [low * 0.9, high * 1.1] : [low - 1, high + 1];
    return this.view.log ? [low / 1.03, high * 1.03] : [low - (low === this.options.floor ? 0 : 0.04 * (high - low)), high + 0.04 * (high - low)];
  }

  drawAxes(pen, frame, x, y, [low, high], colours) {
    pen.lineWidth = 1;
    pen.strokeStyle = colours.line;
    pen.fillStyle = colours.soft;
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const tick of valueTicks(low, high, this.view.log)) {
      const at = Math.round(y(tick)) + 0.5;
      pen.beginPath();
      pen.moveTo(frame.left, at);
      pen.lineTo(frame.right, at);
      pen.stroke();
      pen.fillText((this.options.tick ?? String)(tick), frame.left - 8, at);
    }
    pen.textBaseline = "top";
    const room = Math.max(2, Math.floor((frame.right - frame.left) / 80));
    for (const tick of this.view.ticks(this.view.span, room)) {
      const text = this.view.short(tick);
      const half = pen.measureText(text).width / 2;
      pen.textAlign = "center";
      pen.fillText(text, Math.min(x(tick), frame.right + MARGIN.right - half), frame.bottom + 8);
    }
  }

  /** A value of its own, such as the true entropy: a dotted line with its name. */
  drawMark(pen, frame, y, [low, high], colours) {
    const value = this.options.mark?.(this.groups);
    if (value === undefined || value === null || value < low || value > high) return;
    pen.strokeStyle = colours.soft;
    pen.fillStyle = colours.soft;
    pen.setLineDash([2, 4]);
    stroke(pen, [[frame.left, y(value)], [frame.right, y(value)]]);
    pen.setLineDash([]);
    pen.textAlign = "right";
    pen.textBaseline = "bottom";
    pen.fillText(`${this.options.marked} ${this.options.format(value)}`, frame.right - 4, y(value) - 3);
  }

  drawCurve(pen, x, y, curve, smoothed, colour) {
    const good = (v) => v !== null && (!this.view.log || v > 0);
    pen.strokeStyle = pen.fillStyle = colour;
    pen.lineJoin = "round";
    if (curve.dots) {
      const points = curve.x.flatMap((at, k) => (good(curve.mean[k]) ? [[x(at), y(curve.mean[k])]] : []));
      pen.lineWidth = 1.25;
      pen.setLineDash(curve.dashed ? [5, 4] : []);
      stroke(pen, points);
      pen.setLineDash([]);
      for (const [left, top] of points.length > 200 ? points.slice(-1) : points) dot(pen, left, top, 2.75);
      return;
    }
    pen.globalAlpha = 0.22;
    pen.lineWidth = 1;
    for (const part of unbroken(curve, good)) {
      const top = part.map((k) => [x(curve.x[k]), y(curve.high[k])]);
      const back = part.map((k) => [x(curve.x[k]), y(curve.low[k])]).reverse();
      if (part.some((k) => curve.high[k] !== curve.low[k])) {
        pen.beginPath();
        [...top, ...back].forEach(([left, down]) => pen.lineTo(left, down));
        pen.fill();
      }
      stroke(pen, top);
    }
    pen.globalAlpha = 1;
    pen.lineWidth = 1.75;
    for (const part of unbroken(curve, good)) {
      stroke(pen, part.map((k) => [x(curve.x[k]), y(smoothed[k])]));
    }
  }

  /** The curves, and over them the place that is pointed at. */
  drawHover() {
    const pen = this.canvas.getContext("2d");
    const ratio = window.devicePixelRatio || 1;
    pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    pen.drawImage(this.ground, 0, 0, this.ground.width / ratio, this.ground.height / ratio);
    if (this.view.hover === null || !this.scales) return;
    const { frame, x, y } = this.scales;
    pen.strokeStyle = this.colour("--soft");
    const left = Math.round(x(this.view.hover)) + 0.5;
    stroke(pen, [[left, frame.top], [left, frame.bottom]]);
    for (const group of this.groups) {
      pen.fillStyle = this.colour(`--run-${group.colour}`);
      for (const curve of group.curves) {
        const k = nearest(curve, this.view.hover, 0.02 * this.view.span);
        const seen = k !== null && y(curve.mean[k]) > 0; // and not above the chart, or where no logarithm is
        if (seen) dot(pen, x(curve.x[k]), y(curve.mean[k]), 4);
      }
    }
  }
}

/** Places for the rows of a table, and how far from them a value may be: all places, if they are few, else some evenly apart. */
function rowPlaces(curves, span) {
  const all = [...new Set(curves.flatMap((each) => each.x))].sort((a, b) => a - b);
  if (all.length <= 2 * ROWS) return { places: all, reach: 0 };
  const step = span / (ROWS - 1);
  return { places: Array.from({ length: ROWS }, (_, k) => k * step), reach: step / 2 };
}

function stroke(pen, points) {
  pen.beginPath();
  for (const [left, top] of points) pen.lineTo(left, top);
  pen.stroke();
}

function dot(pen, left, top, radius) {
  pen.beginPath();
  pen.arc(left, top, radius, 0, 2 * Math.PI);
  pen.fill();
}

/** The numbers of points that lie side by side with values to draw. */
function unbroken(curve, good) {
  const parts = [[]];
  curve.mean.forEach((_, k) => {
    if ([curve.low[k], curve.high[k], curve.mean[k]].every(good)) parts.at(-1).push(k);
    else if (parts.at(-1).length) parts.push([]);
  });
  return parts.filter((part) => part.length);
}

/**
 * The means, each averaged with those before and behind it, the nearer the more: so a fall stays where it is. `amount`, 0 to 1,
 * is how far that reaches, as a share of the curve, so that long and short runs look alike.
 */
function smooth(curve, amount) {
  const reach = amount * 0.04 * curve.mean.length;
  const memory = reach > 0 ? Math.exp(-1 / reach) : 0;
  const before = running(curve.mean, memory);
  const behind = running(curve.mean.toReversed(), memory).reverse();
  return curve.mean.map((value, k) => {
    if (value === null) return null;
    const [sums, weights] = [before[k][0] + behind[k][0] - value, before[k][1] + behind[k][1] - 1];
    return sums / weights;
  });
}

/** At each value the sum of it and of those before it, fading with their distance, and the sum of their weights. */
function running(values, memory) {
  let [total, weight] = [0, 0];
  return values.map((value) => {
    total = memory * total + (value ?? 0);
    weight = memory * weight + (value === null ? 0 : 1);
    return [total, weight];
  });
}

function last(curve) {
  for (let k = curve.mean.length - 1; k >= 0; k--) if (curve.mean[k] !== null) return k;
  return null;
}

/** The point nearest to a place; null where the curve ends more than `beyond` before it, or has no value. */
function nearest(curve, place, beyond) {
  const xs = curve.x;
  if (!xs.length || place < xs[0] - beyond || place > xs.at(-1) + beyond) return null;
  let [from, to] = [0, xs.length - 1];
  while (to - from > 1) {
    const middle = (from + to) >> 1;
    if (xs[middle] < place) from = middle;
    else to = middle;
  }
  const found = place - xs[from] <= xs[to] - place ? from : to;
  return curve.mean[found] === null ? null : found;
}

/** Round values between two others, about `most` of them. */
export function roundTicks(low, high, most) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((each) => each * power >= rough) * power;
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) ticks.push(Number((k * step).toPrecision(12)));
  return ticks;
}

function valueTicks(low, high, log) {
  if (!log || high / low < 4) return roundTicks(low, high, 5);
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    for (const digit of high / low < 50 ? [1, 2, 5] : [1]) {
      const tick = Number((digit * 10 ** power).toPrecision(12));
      if (tick >= low && tick <= high) ticks.push(tick);
    }
  }
  return ticks;
}
