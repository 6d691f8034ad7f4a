// The live page of training: asks for what is new, keeps what it got, and shows it.

import { Account } from "./account.js";
import { call } from "./api.js";
import { Card, fillPlans } from "./cards.js";
import { Chart, swatch } from "./chart.js";
import { $, announce, h } from "./dom.js";
import { AXES, PANELS } from "./panels.js";

const COLOURS = 8; // and so many runs at once
const SOON = 200; // milliseconds, while a long log is being read
const OFTEN = 1500; // while a run is in progress
const SELDOM = 30000; // at most, while nothing happens

const runs = new Map(); // what we know of each run that was looked at, by name
const colours = new Map(); // of the chosen runs, by name, in the order of choosing
const cards = new Map();
const rows = new Map();
let list = { columns: [], runs: [] };
let axis = "step";
let groups = []; // of each chart, what it draws
let span = 1; // length of the axis
let hover = null; // the place on the axis that is pointed at
let pause = OFTEN;
let timer = 0;
let polling = false;
let again = false; // asked for while we were asking

const charts = PANELS.map((panel) => new Chart(panel, point));
$("charts").append(...charts.map((chart) => chart.element));
gather();

// ---- asking

/** Asks, shows, and comes back after a while; at once where somebody chose a run meanwhile. Nobody looks: nothing is asked. */
async function poll() {
  clearTimeout(timer);
  again = polling;
  if (polling || document.hidden) return;
  polling = true;
  const answered = await account.with(look).catch(fail);
  polling = false;
  if (answered) show();
  if (again) poll();
  else if (pause !== Infinity) timer = setTimeout(poll, pause);
}

async function look() {
  const before = JSON.stringify(list.runs);
  list = await call("/training/runs");
  choose();
  const news = [...colours.keys()].filter(isNews);
  await Promise.all(news.map(load));
  const quiet = before === JSON.stringify(list.runs) && !news.length;
  pause = waiting() ?? (quiet ? Math.min(SELDOM, 2 * pause) : OFTEN);
  trouble("");
  return true;
}

/** How long to wait while something is going on. */
function waiting() {
  if (list.runs.some((run) => run.read < 1)) return SOON;
  return list.runs.some((run) => run.state === "running") ? OFTEN : null;
}

/** Whether a run has more to tell than we know. */
function isNews(name) {
  const row = list.runs.find((run) => run.name === name);
  const known = runs.get(name);
  return row && (!known || known.read < 1 || row.state === "running" || String(row.cells) !== String(known.cells));
}

async function load(name) {
  const known = runs.get(name);
  const answer = await call(`/training/runs/${encodeURIComponent(name)}?from=${encodeURIComponent(known?.next ?? "")}`);
  const { after } = answer.samples;
  runs.set(name, {
    ...answer,
    steps: joined(known?.steps, answer.steps),
    evaluations: joined(known?.evaluations, answer.evaluations),
    samples: [...(known?.samples ?? []).filter((sample) => after && sample.number <= after), ...answer.samples.new],
  });
}

/** The points that we had up to where the new ones begin, and then those. */
function joined(known, fresh) {
  if (!known || !fresh.from) return fresh;
  const both = (a, b) => (Array.isArray(b) ? [...a.slice(0, fresh.from), ...b] : merged(a, b));
  const merged = (a, b) => Object.fromEntries(Object.keys(b).map((key) => [key, both(a[key], b[key])]));
  const { bucket, from, ...columns } = fresh;
  return { bucket, from, ...merged(known, columns) };
}

function fail(error) {
  pause = Math.min(SELDOM, 2 * Math.max(pause, OFTEN));
  if (error.status === 401) {
    pause = Infinity; // until there is a key
    trouble("This server asks who you are: the button with the key is on top.");
  } else if (error.status === 0) {
    trouble(`The server does not answer; asking again in ${Math.round(pause / 1000)} s.`);
  } else if (error.status) {
    trouble(error.message);
  } else {
    trouble(`This page has a fault: ${error.message}`);
    console.error(error);
  }
}

function trouble(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

// ---- choosing

/** At first the runs that the address names, or else the newest; later drops those that are gone. */
function choose() {
  const there = new Set(list.runs.map((run) => run.name));
  for (const name of colours.keys()) if (!there.has(name)) drop(name);
  if (!colours.size && !rows.size) {
    const named = decodeURIComponent(location.hash.slice(1)).split(",").filter((name) => there.has(name));
    const newest = list.runs.reduce((a, b) => (a && a.started >= b.started ? a : b), null);
    (named.length ? named.slice(0, COLOURS) : newest ? [newest.name] : []).forEach(add);
  }
}

function add(name) {
  const used = new Set(colours.values());
  colours.set(name, [...Array(COLOURS).keys()].find((colour) => !used.has(colour)));
}

function drop(name) {
  colours.delete(name);
  cards.get(name)?.element.remove();
  cards.delete(name);
}

function toggle(name, chosen) {
  if (chosen) add(name);
  else drop(name);
  history.replaceState(null, "", `#${encodeURIComponent([...colours.keys()].join(","))}`);
  hover = null;
  show();
  soon();
}

// ---- showing

function show() {
  $("to-playground").hidden = !list.playground;
  $("no-runs").hidden = list.runs.length > 0;
  $("chosen").hidden = !colours.size;
  const running = list.runs.filter((run) => run.state === "running").length;
  $("how-many").textContent = list.runs.length ? `${list.runs.length} in all, ${running || "none"} in progress` : "";
  document.title = `${running ? "● " : ""}Training · Your own GPT`;
  showList();
  const known = [...colours.keys()].map((name) => runs.get(name)).filter(Boolean);
  for (const run of known) {
    if (!cards.has(run.name)) {
      cards.set(run.name, new Card(run.name, colours.get(run.name)));
      $("cards").append(cards.get(run.name).element);
    }
    cards.get(run.name).show(run);
  }
  $("plans").hidden = !known.some((run) => Object.keys(run.facts).length);
  fillPlans($("plans").querySelector("table"), known, colours);
  gather();
  draw();
}

function showList() {
  const table = $("runs").querySelector("table");
  table.hidden = !list.runs.length;
  const head = table.tHead.rows[0];
  if (head.cells.length !== list.columns.length) {
    head.replaceChildren(...list.columns.map((column) => h("th", { scope: "col" }, column)));
  }
  const names = list.runs.map((run) => run.name);
  for (const name of rows.keys()) {
    if (names.includes(name)) continue;
    rows.get(name).remove();
    rows.delete(name);
  }
  for (const run of list.runs) {
    if (!rows.has(run.name)) rows.set(run.name, makeRow(run));
    showRow(rows.get(run.name), run);
  }
  const body = table.tBodies[0];
  const placed = [...body.rows].map((row) => row.dataset.name);
  if (String(placed) !== String(names)) body.append(...names.map((name) => rows.get(name)));
}

function makeRow(run) {
  const box = h("input", { type: "checkbox", onchange: () => toggle(run.name, box.checked) });
  const label = h("label", { title: run.name }, box, swatch(0), h("span", {}, run.name));
  const cells = run.cells.slice(1).map(() => h("td"));
  cells.at(-1).className = "state";
  return h("tr", { "data-name": run.name }, h("td", {}, label), ...cells);
}

function showRow(row, run) {
  const chosen = colours.has(run.name);
  const box = row.querySelector("input");
  box.checked = chosen;
  box.disabled = !chosen && colours.size >= COLOURS;
  row.dataset.state = run.state;
  row.querySelector(".swatch").style.setProperty("--colour", chosen ? `var(--run-${colours.get(run.name)})` : "var(--line)");
  run.cells.slice(1).forEach((text, k) => {
    row.cells[k + 1].textContent = text;
  });
}

/** Does something with the next frame, and once, however often it is asked for before. */
function once(work) {
  let waiting = false;
  return () => {
    if (!waiting) requestAnimationFrame(() => ((waiting = false), work()));
    waiting = true;
  };
}

const draw = once(drawCharts);
const read = once(() => charts.forEach((chart) => chart.read(hover)));

/** What each chart is to draw of the chosen runs, over the axis that was chosen. */
function gather() {
  const known = [...colours.keys()].map((name) => runs.get(name)).filter(Boolean);
  groups = charts.map((chart) =>
    known.map((run) => ({
      name: run.name,
      colour: colours.get(run.name),
      entropy: run.entropy,
      curves: chart.options.curves(run, AXES[axis].places(run)),
    })),
  );
  span = Math.max(1, ...groups.flat().flatMap((group) => group.curves.map((curve) => curve.x.at(-1) ?? 0)));
}

function drawCharts() {
  const smoothing = Number($("smoothing").value);
  $("smoothed").textContent = `${Math.round(100 * smoothing)} %`;
  const view = { ...AXES[axis], span, log: $("log").checked, smoothing, numbers: $("as-table").checked, hover };
  charts.forEach((chart, k) => chart.show(groups[k], view));
}

/** Somebody points at a place; with the keys of a chart, which then says its values aloud. */
function point(place, chart) {
  if (place === hover) return;
  hover = place;
  if (!chart) return read();
  charts.forEach((each) => each.read(hover));
  announce(chart.spoken());
}

function turn(button) {
  axis = button.dataset.axis;
  for (const each of $("controls").querySelectorAll("[data-axis]")) each.setAttribute("aria-pressed", String(each === button));
  hover = null;
  gather();
  drawCharts(); // at once: a place that is pointed at means something else on another axis
}

// ---- the person

const soon = () => {
  pause = OFTEN;
  poll();
};
const account = new Account(soon);

$("controls").addEventListener("submit", (event) => event.preventDefault());
$("controls").addEventListener("input", drawCharts);
$("controls").addEventListener("click", (event) => event.target.dataset.axis && turn(event.target));
document.addEventListener("visibilitychange", soon);
new MutationObserver(draw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
poll();
