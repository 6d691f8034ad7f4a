// A text that is being written, and the tokens that it is made of.
//
// The text that the server streams is what counts. Tokens only say where they begin in it (`offset`, in characters), because a
// token alone may be half a character: an emoji takes four tokens of a byte tokenizer, and only the last one brings something
// to see. So a span on the page is a stretch of the text with the one token, or the few, that it came from.

import { h } from "./dom.js";

const SURE = [0.6, 0.3, 0.1, 0.03, 0.01]; // probabilities below which a token is tinted more and more

/** The text of one answer as it grows, and its spans: {start, end} in the text, {first, last} in the tokens. */
export class Writing {
  constructor(text = "", tokens = []) {
    this.text = "";
    this.tokens = [];
    this.spans = [];
    this.closed = false;
    this.next = 0; // the first token that belongs to no span yet
    this.start = 0; // where its span begins in the text
    this.characters = 0; // that place in characters: JavaScript counts an emoji as two, the server as one
    this.add(text, tokens);
  }

  /** The server tells a text from its beginning, that of a branch as well: what is there comes again. */
  restart() {
    this.text = "";
  }

  /** Takes in what came. */
  add(text, tokens = []) {
    this.text += text;
    this.tokens.push(...tokens);
    this.cut();
  }

  /** Nothing follows. What never came to be seen, such as a stop text, is no part of it. */
  close() {
    this.closed = true;
    this.cut();
    this.tokens.length = this.spans.length ? this.spans.at(-1).last + 1 : 0;
  }

  /** Makes spans of the tokens whose end is known: where the next one begins. */
  cut() {
    let last = this.next;
    for (; last < this.tokens.length; last++) {
      const following = this.tokens[last + 1];
      if (!following && !this.closed) return;
      const end = this.place(following ? following.offset : Infinity);
      if (end < 0) return; // the server still holds that text back
      if (end === this.start) continue; // the beginning of a character: it is seen with a later token
      this.spans.push({ start: this.start, end, first: this.next, last });
      this.next = last + 1;
      this.start = end;
    }
  }

  /** Where a place that is told in characters is in the text, or -1 if the text does not go that far. */
  place(characters) {
    let at = this.start;
    let passed = this.characters;
    for (; passed < characters && at < this.text.length; passed++) at += this.text.codePointAt(at) > 0xffff ? 2 : 1;
    if (passed < characters && !this.closed) return -1;
    this.characters = passed;
    return at;
  }

  textOf(span) {
    return this.text.slice(span.start, span.end);
  }

  /** The span that a token is seen in; the last one for a token that is not seen yet. */
  spanOf(token) {
    let low = 0;
    let high = this.spans.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.spans[middle].last < token) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** A new text out of the first tokens of this one, and another token in the next one's place. */
  branch(token, alternative) {
    const made = new Writing();
    const span = this.spans[this.spanOf(token)];
    made.text = this.text.slice(0, span.start);
    made.tokens = this.tokens.slice(0, token);
    made.spans = this.spans.filter((each) => each.last < span.first);
    const { offset, top } = this.tokens[token];
    made.tokens.push({ ...alternative, offset, top });
    made.next = span.first;
    made.start = span.start;
    made.characters = this.tokens[span.first].offset;
    return made;
  }

  ids() {
    return this.tokens.map((token) => token.id);
  }
}

/** How likely a stretch was: the probability of all its tokens. */
export function probability(writing, span) {
  let sum = 0;
  for (let n = span.first; n <= span.last; n++) sum += writing.tokens[n].logprob;
  return Math.exp(sum);
}

/** 0 for a token that was to be expected, up to 5 for one that was not. */
export function surprise(probability) {
  const level = SURE.findIndex((limit) => probability >= limit);
  return level < 0 ? SURE.length : level;
}

/** A token as it can be read: spaces and line ends are shown, bytes that are no character are spelt out. */
export function label(token, eot) {
  if (token.id === eot) return "end of text";
  if (token.bytes) return token.bytes.map((byte) => byte.toString(16).toUpperCase().padStart(2, "0")).join(" ");
  if (token.text === "") return "part of a character";
  return token.text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll("\r", "␍");
}

/** Shows a Writing in an element. `update` adds what is new, so that a long text costs no more per token than a short one. */
export class TokenView {
  constructor(element) {
    this.element = element;
    this.tail = h("span", { class: "tail" }); // text whose tokens are not known yet
    element.replaceChildren(this.tail);
    element.view = this;
    this.shown = 0;
    this.writing = null;
  }

  show(writing) {
    this.writing = writing;
    this.shown = 0;
    this.element.replaceChildren(this.tail);
    this.update();
  }

  update() {
    const { writing } = this;
    const fresh = document.createDocumentFragment();
    for (; this.shown < writing.spans.length; this.shown++) fresh.append(...this.span(this.shown));
    this.tail.before(fresh);
    const rest = writing.text.slice(writing.start);
    if (this.tail.textContent !== rest) this.tail.textContent = rest;
  }

  /** The nodes of a span: the space before a word stands outside, so that the tint is the word's. */
  span(index) {
    const span = this.writing.spans[index];
    const [, space, word] = this.writing.textOf(span).match(/^(\s*(?=\S)|)(.*)$/s);
    const element = h("span", { class: `t p${surprise(probability(this.writing, span))}` }, word);
    element.index = index;
    return space ? [space, element] : [element];
  }

  /** Gives the text the keyboard's focus, without anything opening. */
  focus() {
    this.quiet = true;
    this.element.focus({ preventScroll: true });
    this.quiet = false;
  }

  /** The element of a span. */
  at(index) {
    return this.element.children[index];
  }
}
