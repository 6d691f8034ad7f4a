// What the model had in mind at a place: the token, its probability, and what it nearly wrote. By mouse, finger or keyboard.

import { $, announce, h, percent } from "./dom.js";
import { label, probability } from "./tokens.js";

const REST = 40; // milliseconds on a word until its card is shown
const LINGER = 180; // milliseconds on the way from a word to the card
const NARROW = matchMedia("(max-width: 40rem)");

export class Inspector {
  /**
   * @param {() => number} eot the id that ends a text
   * Each TokenView may have `onbranch(at, alternative)`, and `taken(at, id)`: whether that road was gone before. Its `last` is the
   * span that was looked at last.
   */
  constructor(eot) {
    this.eot = eot;
    this.card = $("inspector");
    this.at = null; // {view, index, token}
    this.pinned = false;
    this.timer = 0;
    this.under = null; // what the mouse points at
    document.addEventListener("pointermove", (event) => this.over(event)); // no pointerover: text that moves beneath a resting mouse has it too
    document.addEventListener("pointerout", () => (this.under = null));
    document.addEventListener("click", (event) => this.click(event));
    document.addEventListener("focusin", (event) => this.focus(event));
    document.addEventListener("keydown", (event) => this.key(event));
    addEventListener("scroll", () => this.place(), { passive: true });
    addEventListener("resize", () => this.place());
  }

  over(event) {
    if (event.pointerType !== "mouse" || event.target === this.under) return;
    this.under = event.target;
    const element = spanOf(event.target);
    clearTimeout(this.timer);
    if (element && !this.pinned) this.timer = setTimeout(() => this.show(element, { x: event.clientX, y: event.clientY }), REST);
    else if (this.at && !this.pinned && !this.card.contains(event.target)) this.timer = setTimeout(() => this.hide(), LINGER);
  }

  click(event) {
    clearTimeout(this.timer);
    const element = spanOf(event.target);
    if (element) {
      if (String(getSelection())) return; // somebody marks text
      this.show(element, { x: event.clientX, y: event.clientY });
      this.pinned = true;
    } else if (!event.composedPath().includes(this.card)) {
      this.hide();
    }
  }

  /** The keyboard enters a text at its first token, and walks by the arrows. */
  focus(event) {
    const view = event.target.view;
    if (view?.quiet) return;
    if (view && event.target.matches(":focus-visible")) this.walk(view, Math.min(view.last ?? 0, view.writing.spans.length - 1));
    else if (!view && !this.card.contains(event.target) && !this.pinned) this.hide();
  }

  key(event) {
    if (event.key === "Escape" && this.at) {
      event.stopImmediatePropagation();
      return this.hide(true);
    }
    if (this.card.contains(event.target)) return this.keyInCard(event);
    const view = event.target.view;
    if (!view) return;
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const far = { Home: 0, End: view.writing.spans.length - 1 }[event.key];
    const enters = ["ArrowDown", "Enter", " "].includes(event.key);
    if (far !== undefined) this.walk(view, far);
    else if (this.at?.view !== view && (step || enters)) this.walk(view, view.last ?? 0);
    else if (step) this.step(view, step);
    else if (enters) this.choices()[0]?.focus();
    else return;
    event.preventDefault();
  }

  keyInCard(event) {
    const choices = this.choices();
    const at = choices.indexOf(document.activeElement);
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    if (at + step < 0) this.at.view.element.focus();
    else choices[Math.min(at + step, choices.length - 1)]?.focus();
  }

  choices() {
    return [...this.card.querySelectorAll(".alternative:not([disabled])")];
  }

  /** One token on: within the tokens of a character first. */
  step(view, by) {
    const { index, token } = this.at;
    const span = view.writing.spans[index];
    const next = token + by;
    if (next >= span.first && next <= span.last) return this.draw(view, index, next);
    const to = index + by;
    if (to >= 0 && to < view.writing.spans.length) this.walk(view, to, by < 0);
  }

  walk(view, index, fromEnd = false) {
    if (index < 0) return;
    const element = view.at(index);
    this.show(element, null, fromEnd);
    this.pinned = true;
    element.scrollIntoView({ block: "nearest" });
    announce(spoken(view.writing, index, this.eot()));
  }

  show(element, pointer = null, fromEnd = false) {
    const view = element.parentElement?.view;
    if (!view) return; // it is gone
    this.pinned = false;
    this.pointer = pointer;
    const span = view.writing.spans[element.index];
    this.draw(view, element.index, fromEnd ? span.last : span.first);
  }

  hide(back = false) {
    clearTimeout(this.timer);
    const view = this.at?.view;
    const inside = this.card.contains(document.activeElement);
    this.mark(null);
    this.card.hidden = true;
    this.at = null;
    this.pinned = false;
    if (back && inside) view?.focus();
  }

  mark(element) {
    document.querySelector(".t.looked-at")?.classList.remove("looked-at");
    element?.classList.add("looked-at");
  }

  draw(view, index, n) {
    this.at = { view, index, token: n };
    view.last = index;
    const span = view.writing.spans[index];
    const token = view.writing.tokens[n];
    this.mark(view.at(index));
    this.card.replaceChildren(
      h(
        "div",
        { class: "looked" },
        h("span", { class: "token" }, ...this.shown(token)),
        h("strong", {}, percent(Math.exp(token.logprob))),
      ),
      ...(span.last > span.first ? [this.parts(view, index, n)] : []),
      this.list(view, n),
    );
    this.card.hidden = false;
    this.place();
  }

  /** The tokens that make up one character, to choose among. */
  parts(view, index, n) {
    const { first, last } = view.writing.spans[index];
    const buttons = [];
    for (let each = first; each <= last; each++) {
      const name = label(view.writing.tokens[each], this.eot());
      const pressed = { "aria-pressed": String(each === n), onclick: () => this.draw(view, index, each) };
      buttons.push(h("button", { type: "button", class: "part", ...pressed }, name));
    }
    return h("div", { class: "parts", role: "group", "aria-label": "Tokens of this character" }, ...buttons);
  }

  /** A token's label, its signs for spaces and line ends paler than the rest. */
  shown(token) {
    const parts = label(token, this.eot()).split(/([␣⏎⇥␍]+)/);
    return parts.map((part, n) => (n % 2 ? h("span", { class: "sign" }, part) : part));
  }

  list(view, n) {
    const token = view.writing.tokens[n];
    const among = token.top.some((each) => each.id === token.id);
    const rows = token.top.map((each) => this.row(view, n, each));
    if (!among) rows.push(h("li", { class: "gap", "aria-hidden": "true" }, "…"), this.row(view, n, token));
    const none = token.top.length === 0 && h("p", { class: "soft small-print" }, "Settings, Alternatives: how many are shown.");
    return h("div", {}, h("ul", { class: "alternatives", "aria-label": "Likeliest tokens here" }, ...rows), none);
  }

  row(view, n, token) {
    const chosen = view.writing.tokens[n].id === token.id;
    const taken = !chosen && view.taken?.(n, token.id);
    const share = Math.exp(token.logprob);
    const name = label(token, this.eot());
    const bar = h("i");
    bar.style.setProperty("--share", share);
    const said = `${name}, ${percent(share)}${chosen ? ", in the text" : taken ? ", a branch that is there" : ""}`;
    const button = h(
      "button",
      { type: "button", class: "alternative", "aria-label": said, "aria-current": chosen ? "true" : null, disabled: chosen || !view.onbranch },
      h("span", { class: "name" }, ...this.shown(token), taken ? h("span", { class: "taken", title: "this branch is there" }, "⑂") : null),
      h("span", { class: "bar-track", "aria-hidden": "true" }, bar),
      h("span", { class: "share" }, percent(share)),
    );
    button.addEventListener("click", (event) => {
      event.stopPropagation();
      this.hide(true);
      view.onbranch(n, { id: token.id, text: token.text, logprob: token.logprob, ...(token.bytes ? { bytes: token.bytes } : {}) });
    });
    return h("li", {}, button);
  }

  /** Puts the card beside its token; on a phone the style sheet puts it to the bottom. */
  place() {
    if (!this.at) return;
    const { card } = this;
    card.style.left = card.style.top = "";
    if (NARROW.matches) return;
    const boxes = [...(this.at.view.at(this.at.index)?.getClientRects() ?? [])];
    const box = boxes.find((each) => this.pointer && each.top <= this.pointer.y && this.pointer.y <= each.bottom) ?? boxes[0];
    if (!box) return this.hide();
    const { offsetWidth: width, offsetHeight: height } = card;
    const left = Math.max(12, Math.min(box.left - 16, innerWidth - width - 12));
    const below = box.bottom + 6;
    const top = below + height < innerHeight - 8 ? below : Math.max(8, box.top - height - 6);
    card.style.left = `${left}px`;
    card.style.top = `${top}px`;
  }
}

function spanOf(target) {
  return target instanceof Element ? target.closest(".t") : null;
}

/** A span as screen readers are told it. */
function spoken(writing, index, eot) {
  const span = writing.spans[index];
  return `${label(writing.tokens[span.last], eot)}, ${percent(probability(writing, span))}`;
}
