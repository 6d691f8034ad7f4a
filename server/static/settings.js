// The sampling settings: what POST /v1/generate takes, four of them in sight and the others folded away.

import { $, h, remember, remembered } from "./dom.js";

// name, label, the server's default, the slider's range and step, what may be typed beyond that, and a hint.
const SLIDERS = [
  { name: "max_new_tokens", label: "Length", value: 200, min: 1, max: 1000, step: 1, most: 1e9, hint: "tokens to write at most" },
  { name: "temperature", label: "Temperature", value: 0.8, max: 2, step: 0.05, most: 100, hint: "low is safe, high is wild, 0 takes the likeliest" },
  { name: "top_p", label: "Top-p", value: 1, max: 1, step: 0.01, hint: "among the likeliest that hold this share" },
  {
    name: "repetition_penalty", label: "Repetition penalty", value: 1, min: 1, max: 2, step: 0.01, least: 0.01, most: 100,
    hint: "above 1 shuns words that were used",
  },
];
const FOLDED = [
  { name: "top_k", label: "Top-k", value: 0, max: 100, step: 1, most: 1e9, hint: "among the k likeliest tokens; 0 is all" },
  { name: "min_p", label: "Min-p", value: 0, max: 1, step: 0.01, hint: "none below this share of the likeliest" },
  { name: "presence_penalty", label: "Presence penalty", value: 0, min: -2, max: 2, step: 0.1, hint: "against words that were written" },
  { name: "frequency_penalty", label: "Frequency penalty", value: 0, min: -2, max: 2, step: 0.1, hint: "the same, each time they were" },
  { name: "logprobs", label: "Alternatives", value: 8, max: 20, step: 1, hint: "likeliest tokens to show at a word" },
];
const TEXTS = [
  { name: "seed", label: "Seed", read: whole, hint: "the same seed gives the same text; empty draws one" },
  { name: "stop", label: "Stop texts", read: lines, rows: 2, hint: "end before any of these; one a line, \\n is a line end" },
  { name: "stop_ids", label: "Stop tokens", read: wholes, hint: "ids that end the text, such as 13, 198" },
  { name: "logit_bias", label: "Bias", read: biases, hint: "for token ids, such as 42: 5, 7: -100" },
  { name: "system", label: "System message", read: (text) => text || null, rows: 2, hint: "what a conversation begins with" },
];
const SWITCHES = [
  { name: "ignore_eos", label: "Go on behind the end", hint: "where the model ends its text" },
  { name: "deterministic", label: "Deterministic", hint: "the same bits whatever else is running; slower" },
];

/** What was typed is no value. */
class Mistyped extends Error {
  constructor(message, param) {
    super(message);
    this.param = param;
  }
}

function whole(text) {
  if (!text.trim()) return null;
  if (!/^\d{1,15}$/.test(text.trim())) throw new Error("is a whole number of at most 15 digits, or empty");
  return Number(text);
}

function lines(text) {
  const found = text.split("\n").filter(Boolean).map((line) => line.replaceAll("\\n", "\n").replaceAll("\\t", "\t"));
  return found.length ? found : null;
}

function wholes(text) {
  const found = text.split(/[\s,]+/).filter(Boolean);
  if (found.some((part) => !/^\d{1,9}$/.test(part))) throw new Error("holds whole numbers, with commas between them");
  return found.length ? found.map(Number) : null;
}

function biases(text) {
  const pairs = text.split(/[,\n]+/).filter((part) => part.trim()).map((part) => part.split(":").map((side) => side.trim()));
  if (pairs.some((pair) => pair.length !== 2 || !/^\d{1,9}$/.test(pair[0]) || !/^-?\d+(\.\d+)?$/.test(pair[1]))) {
    throw new Error("is written as token id: number, with commas between the pairs");
  }
  return pairs.length ? Object.fromEntries(pairs.map(([id, value]) => [id, Number(value)])) : null;
}

/** The panel. It remembers what was set in this browser. */
export class Settings {
  constructor() {
    this.kept = remembered("settings", {});
    this.inputs = new Map();
    this.reset = [];
    $("settings-compact").append(...SLIDERS.map((each) => this.slider(each)));
    $("settings-rest").append(
      ...FOLDED.map((each) => this.slider(each)),
      ...TEXTS.map((each) => this.text(each)),
      ...SWITCHES.map((each) => this.toggle(each)),
    );
    $("reset").addEventListener("click", () => this.clear());
    this.changed();
  }

  /** What differs from the server's defaults, ready to be sent. `logprobs` is always there: the page lives on it. */
  values() {
    const values = {};
    for (const { name, value } of [...SLIDERS, ...FOLDED]) {
      const typed = this.inputs.get(name).valueAsNumber;
      if (Number.isNaN(typed)) throw new Mistyped(`${this.label(name)} is empty: type a number.`, name);
      if (typed !== value || name === "logprobs") values[name] = typed;
    }
    for (const { name, label, read } of TEXTS) {
      try {
        const typed = read(this.inputs.get(name).value);
        if (typed !== null) values[name] = typed;
      } catch (error) {
        throw new Mistyped(`${label} ${error.message}.`, name);
      }
    }
    for (const { name } of SWITCHES) if (this.inputs.get(name).checked) values[name] = true;
    return values;
  }

  label(name) {
    return [...SLIDERS, ...FOLDED, ...TEXTS, ...SWITCHES].find((each) => each.name === name)?.label;
  }

  /** The input of a field of the API, such as `stop.0`. */
  find(field) {
    return this.inputs.get(field.split(".")[0]);
  }

  /** Shows the input that is to blame, with what is wrong in place of its hint. */
  blame(input, message) {
    if ($("settings-rest").contains(input)) $("settings-more").open = true;
    input.setAttribute("aria-invalid", "true");
    $(`${input.id}-hint`).textContent = message;
    input.focus();
  }

  slider({ name, label, value, min = 0, max, step, least = min, most = max, hint }) {
    const id = `set-${name}`;
    const box = h("input", { type: "number", id, min: least, max: most, step, "aria-describedby": `${id}-hint`, inputmode: "decimal" });
    const range = h("input", { type: "range", min, max, step, "aria-label": `${label}, slider`, tabindex: -1 });
    const show = (typed) => {
      box.value = typed;
      range.value = typed;
    };
    show(this.kept[name] ?? value);
    range.addEventListener("input", () => this.changed(name, (box.value = range.value), value));
    box.addEventListener("input", () => this.changed(name, (range.value = box.value), value));
    this.reset.push(() => show(value));
    this.inputs.set(name, box);
    return h("div", { class: "setting" }, h("label", { for: id }, label), box, range, this.hint(id, hint));
  }

  text({ name, label, rows, hint }) {
    const id = `set-${name}`;
    const input = h(rows ? "textarea" : "input", { id, rows, "aria-describedby": `${id}-hint`, spellcheck: "false", autocomplete: "off" });
    input.value = this.kept[name] ?? "";
    input.addEventListener("input", () => this.changed(name, input.value, ""));
    this.reset.push(() => (input.value = ""));
    this.inputs.set(name, input);
    return h("div", { class: "setting wide" }, h("label", { for: id }, label), input, this.hint(id, hint));
  }

  toggle({ name, label, hint }) {
    const id = `set-${name}`;
    const input = h("input", { type: "checkbox", id, "aria-describedby": `${id}-hint` });
    input.checked = this.kept[name] ?? false;
    input.addEventListener("change", () => this.changed(name, input.checked, false));
    this.reset.push(() => (input.checked = false));
    this.inputs.set(name, input);
    return h("div", { class: "setting wide" }, h("label", { class: "check", for: id }, input, label), this.hint(id, hint));
  }

  hint(id, text) {
    return h("p", { class: "hint small-print", id: `${id}-hint`, "data-text": text }, text);
  }

  changed(name, typed, fallback) {
    if (name) {
      const input = this.inputs.get(name);
      if (input.ariaInvalid) {
        input.removeAttribute("aria-invalid");
        $(`${input.id}-hint`).textContent = $(`${input.id}-hint`).dataset.text;
      }
      if (String(typed) === String(fallback)) delete this.kept[name];
      else this.kept[name] = typed;
      remember("settings", this.kept);
    }
    $("reset").hidden = Object.keys(this.kept).length === 0;
  }

  clear() {
    this.kept = {};
    remember("settings", {});
    for (const reset of this.reset) reset();
    this.changed();
  }
}
