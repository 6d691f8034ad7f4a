// The sheet of paper: shows the path through a story's tree, its branches, and how the last text came about.

import { $, clip, copy, h, number } from "./dom.js";
import { shown } from "./media.js";
import { TokenView } from "./tokens.js";

const ENDS = {
  stop: (told) => (told.stop === null ? "ended by the model" : `ended at “${told.stop}”`),
  length: () => "as long as you asked for",
  deadline: () => "the server's time was over",
};
const LABEL = 22; // characters of a branch that its button shows

export class Sheet {
  /** @param {object} does what its buttons do: again(turn), branch(turn, at, alternative), choose(turn), curl(turn) */
  constructor(does) {
    this.does = does;
    this.story = null;
    this.shown = new WeakMap(); // the elements of each turn
    this.following = true;
    addEventListener("scroll", () => (this.following = innerHeight + scrollY > document.documentElement.scrollHeight - 100), { passive: true });
  }

  open(story) {
    this.story = story;
    this.drawn = [];
    this.render();
  }

  /** Called for every piece that comes; draws at most once a frame. */
  changed() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.update();
    });
  }

  update() {
    const { path } = this.story;
    const state = path.map((turn) => `${turn.state}${turn.siblings.length}`).join();
    if (path.some((turn, n) => turn !== this.drawn[n]) || path.length !== this.drawn.length || state !== this.state) {
      this.state = state;
      return this.render();
    }
    const last = path.at(-1);
    if (!last) return;
    this.shown.get(last).view.update();
    this.tellProgress(last);
    this.follow();
  }

  follow() {
    if (this.following && this.story.writing) scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });
  }

  render() {
    const { story } = this;
    const { path } = story;
    this.drawn = path;
    for (const turn of path) this.element(turn).view.update();
    const blocks = story.mode === "chat" ? path.flatMap((turn) => [this.element(turn).root, this.foot(turn)]) : this.prose(path);
    const focused = document.activeElement?.view; // a branch takes the place of the text that was walked through
    $("turns").className = story.mode;
    $("turns").replaceChildren(...blocks.filter(Boolean));
    $("sheet").setAttribute("aria-busy", String(story.writing));
    if (focused && !focused.element.isConnected && path.length) this.element(path.at(-1)).view.focus();
    for (const turn of path) this.markForks(turn);
    this.follow();
  }

  prose(path) {
    const text = h("div", { class: "prose" }, ...path.map((turn) => this.element(turn).root));
    return [text, ...path.slice(0, -1).map((turn) => this.branches(turn)), path.length ? this.foot(path.at(-1)) : null];
  }

  element(turn) {
    const known = this.shown.get(turn);
    if (known) return known;
    const inline = this.story.mode === "write";
    const said = "Text of the model; the arrows walk through its tokens";
    const text = h(inline ? "span" : "div", { class: "model", tabindex: "0", role: "group", "aria-label": said });
    const view = new TokenView(text);
    view.show(turn.writing);
    view.onbranch = (at, alternative) => this.does.branch(turn, at, alternative);
    view.taken = (at, id) => turn.siblings.some((other) => other !== turn && other.writing.tokens[at]?.id === id && other.departs(turn) >= at);
    const yours = h(inline ? "span" : "div", { class: "yours" }, ...turn.media.map(shown), turn.input);
    const made = { root: h(inline ? "span" : "div", { class: "turn" }, yours, text), view };
    this.shown.set(turn, made);
    return made;
  }

  /** Dots the tokens at which other branches leave this one. */
  markForks(turn) {
    const { root, view } = this.element(turn);
    for (const marked of root.querySelectorAll(".fork")) marked.classList.remove("fork");
    for (const other of turn.siblings) {
      const at = other === turn ? -1 : turn.departs(other);
      if (at >= 0 && at < turn.writing.tokens.length) view.at(turn.writing.spanOf(at))?.classList.add("fork");
    }
  }

  foot(turn) {
    const meta = h("p", { class: "soft small-print meta" });
    this.element(turn).meta = meta;
    const actions = h(
      "div",
      { class: "actions" },
      h("button", { type: "button", class: "quiet small", onclick: () => this.does.again(turn) }, "Try again"),
      h("button", { type: "button", class: "quiet small", onclick: () => copy(turn.input + turn.writing.text, "Text copied.") }, "Copy text"),
      h("button", { type: "button", class: "quiet small", onclick: () => this.does.curl(turn) }, "Copy as curl"),
    );
    const writing = turn.state === "writing";
    const foot = h("div", { class: "foot" }, this.branches(turn), h("div", { class: "foot-line" }, meta, writing ? null : actions));
    this.tellProgress(turn);
    return foot;
  }

  branches(turn) {
    const { siblings } = turn;
    if (siblings.length < 2) return null;
    const chips = siblings.map((each, n) => {
      const name = h("span", {}, branchLabel(each, siblings));
      const pressed = { "aria-pressed": String(each === turn), onclick: () => this.does.choose(each) };
      return h("button", { type: "button", class: "chip", ...pressed }, h("b", {}, n + 1), name);
    });
    return h("div", { class: "branches", role: "group", "aria-label": "Branches" }, h("span", { class: "soft small-print" }, "Branches"), ...chips);
  }

  /** What is known of a text so far, in a line. */
  tellProgress(turn) {
    const { meta } = this.element(turn);
    if (!meta) return;
    const told = turn.told;
    const tokens = turn.writing.tokens.length;
    const fresh = told?.usage.completion_tokens; // without those that a branch began with
    const parts = [tokens ? `${number.format(tokens)} ${tokens === 1 ? "token" : "tokens"}` : turn.state === "writing" ? "reading" : ""];
    const seconds = ((turn.ended ?? performance.now()) - turn.first) / 1000;
    if (fresh > 1 && seconds > 0.01) parts.push(`${number.format(Math.round((fresh - 1) / seconds))} a second`);
    if (told) parts.push(`seed ${told.seed}`, ENDS[told.finish_reason]?.(told) ?? told.finish_reason, told.model.id);
    else if (turn.state === "stopped") parts.push("stopped");
    else if (turn.state === "writing") parts.push("writing …");
    else parts.push("from this server's memory, without probabilities");
    const text = parts.filter(Boolean).join(" · ");
    if (meta.textContent !== text) meta.textContent = text;
  }
}

/** The words with which a branch begins to differ. */
function branchLabel(turn, siblings) {
  const others = siblings.filter((each) => each !== turn);
  const places = others.map((other) => turn.departs(other)).filter((at) => at >= 0);
  const { writing } = turn;
  const at = places.length ? Math.max(0, ...(turn === siblings[0] ? [Math.min(...places)] : [Math.max(...places)])) : 0;
  const start = writing.spans.length ? writing.spans[writing.spanOf(at)].start : 0;
  const text = clip(writing.text.slice(start), LABEL).replace(/\s+/g, " ").trim();
  return text ? `${text}${start + LABEL < writing.text.length ? "…" : ""}` : "…";
}
