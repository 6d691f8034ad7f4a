// The cards of the chosen runs: progress, how it ended, files, what a person should know, samples. And the table of their plans.

import { swatch } from "./chart.js";
import { h } from "./dom.js";
import { clock, decimals, duration, whole } from "./units.js";

/** The card of one run. */
export class Card {
  constructor(name, colour) {
    this.state = h("span", { class: "state" });
    this.progress = h("progress", { max: 1, value: 0, "aria-label": `progress of ${name}` });
    this.progress.style.setProperty("--colour", `var(--run-${colour})`);
    this.told = h("p", { class: "soft told" });
    this.files = h("dl");
    this.notes = h("ul", { class: "notes" });
    this.samples = h("ol", { class: "samples", tabindex: 0, "aria-label": `samples of ${name}, newest first` });
    this.none = h("p", { class: "soft" }, "None yet.");
    const head = h("div", { class: "line" }, swatch(colour), h("h2", { title: name }, name), this.state);
    const parts = [head, this.progress, this.told, this.files, this.notes, h("h3", {}, "Samples"), this.none, this.samples];
    this.element = h("article", { class: "card run" }, ...parts);
    this.newest = 0; // number of the newest sample that is shown
  }

  show(run) {
    this.element.dataset.state = run.state;
    this.state.textContent = run.cells.at(-1);
    this.progress.value = run.end.stop_reason === "done" ? 1 : run.progress;
    this.told.textContent = progressOf(run);
    fill(this.files, fileRows(run), ([name, text]) => [h("dt", {}, name), h("dd", {}, text)]);
    fill(this.notes, notesOf(run), (text) => [h("li", {}, text)]);
    this.addSamples(run.samples);
  }

  addSamples(samples) {
    const first = samples[0]?.number ?? Infinity;
    if (first > this.newest + 1 || samples.at(-1).number < this.newest) {
      this.samples.replaceChildren(); // we missed some, or another log stands in this one's place
      this.newest = 0;
    }
    for (const { number, step, time, text } of samples.filter((each) => each.number > this.newest)) {
      const when = h("div", { class: "when" }, `step ${whole(step)} · ${clock(time)}`);
      this.samples.prepend(h("li", {}, when, h("div", { class: "text" }, text.trim())));
      this.newest = number;
    }
    this.none.hidden = samples.length > 0;
  }
}

/** Makes the children of an element, where they say something else than before: what a person has marked stays marked. */
function fill(parent, values, make) {
  const key = JSON.stringify(values);
  if (parent.dataset.key === key) return;
  parent.dataset.key = key;
  parent.replaceChildren(...values.flatMap(make));
  parent.hidden = !values.length;
}

function progressOf(run) {
  const share = `${Math.floor(100 * run.progress)} %`;
  const done = `${whole(run.done)} steps in ${duration(run.seconds)}`;
  if (run.read < 1) return `reading its log, ${Math.floor(100 * run.read)} % so far`;
  if (run.state === "ended") return run.end.stop_reason === "done" ? done : `${share} · ${done}`;
  if (run.state === "silent") {
    return `${share} · ${done} · no line for ${duration(run.quiet)}: it was killed, or scores a long text. A killed one goes on with --resume`;
  }
  return [share, run.left === null ? "" : `about ${duration(run.left)} left`, `${done} so far`].filter(Boolean).join(" · ");
}

function fileRows(run) {
  return run.checkpoints.map(({ file, step, val_loss, time }) => {
    const loss = val_loss === null ? "" : `, validation loss ${decimals(val_loss)}`;
    return [file, `step ${whole(step)}${loss}, ${clock(time)}`];
  });
}

function notesOf(run) {
  const events = run.notes.map((note) => {
    const at = `${clock(note.time)}, step ${whole(note.step)}`;
    if (note.event === "resume") return `${at}: resumed`;
    if (note.event === "rewind") return `${at}: gone back here from step ${whole(note.from_step)}, with ${note.rate} of the rate`;
    return `${at}: memory ran out, the micro-batch is now ${note.micro_batch}`;
  });
  const skipped = run.end.skipped_steps ? [`skipped steps, for a loss or a gradient that was not sane: ${run.end.skipped_steps}`] : [];
  return [...run.warnings, ...events, ...skipped];
}

/** Plans side by side; what differs is bold. */
export function fillPlans(table, runs, colours) {
  const told = runs.map((run) => [run.name, colours.get(run.name), run.facts]);
  const labels = [...new Set(runs.flatMap((run) => Object.keys(run.facts)))];
  fill(table, told.length ? [told] : [], () => {
    const head = runs.map((run) => h("th", { scope: "col" }, swatch(colours.get(run.name)), run.name));
    const rows = labels.map((label) => {
      const texts = runs.map((run) => run.facts[label] ?? "");
      const cells = texts.map((text) => h("td", {}, text));
      return h("tr", { class: new Set(texts).size > 1 && "differs" }, h("th", { scope: "row" }, label), ...cells);
    });
    return [h("thead", {}, h("tr", {}, h("td"), ...head)), h("tbody", {}, ...rows)];
  });
}
