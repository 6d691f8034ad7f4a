// The texts that the server keeps for you: each with all its branches, to open and to delete.

import { call } from "./api.js";
import { $, announce, clip, h, number } from "./dom.js";
import { baseOf } from "./story.js";

const SHOWN = 120; // characters of a beginning, as many as the server tells
const MOST_BRANCHES = 12; // of one text that are fetched, the newest

export class Shelf {
  /** @param {object} does with(work): with the credentials that work needs; open(base, sessions), removed(base), failed(error, again) */
  constructor(does) {
    this.does = does;
    this.sessions = [];
    this.next = null;
    this.current = null;
    $("shelf-more").addEventListener("click", () => this.attempt(() => this.fetch(this.next)));
  }

  /** Does what a person wanted; if it failed that is told, and can be tried again. */
  async attempt(work) {
    try {
      await this.does.with(work);
    } catch (error) {
      this.does.failed(error, () => this.attempt(work));
    }
  }

  /** Reads the list anew. */
  async refresh() {
    this.sessions = [];
    await this.fetch();
  }

  async fetch(before = null) {
    const page = await call(`/v1/sessions${before ? `?before=${before}` : ""}`);
    this.sessions.push(...page.sessions.filter((each) => each.turns > 0));
    this.next = page.next;
    this.draw();
  }

  /** Notes that a session grew, without asking the server. */
  note(name, turns, { prompt, text }) {
    this.sessions = this.sessions.filter((each) => each.session_id !== name);
    this.sessions.unshift({ session_id: name, turns, prompt, text, used: Date.now() / 1000 });
    this.draw();
  }

  /** Texts, the one used last first: their sessions are their branches. */
  texts() {
    const found = new Map();
    for (const session of this.sessions) {
      const base = baseOf(session.session_id);
      found.set(base, [...(found.get(base) ?? []), session]);
    }
    return found;
  }

  draw() {
    const items = [...this.texts()].map(([base, sessions]) => this.item(base, sessions));
    $("shelf").replaceChildren(...items);
    $("shelf-empty").hidden = items.length > 0;
    $("shelf-more").hidden = this.next === null;
  }

  item(base, sessions) {
    const [newest] = sessions;
    const begins = base.startsWith("chat-") || newest.prompt.length >= SHOWN ? newest.prompt : newest.prompt + newest.text;
    const title = clip(begins.replace(/\s+/g, " ").trim(), SHOWN) || "Without words";
    const told = [base.startsWith("chat-") ? "chat" : "", ago(newest.used), sessions.length > 1 ? `${sessions.length} branches` : ""];
    const onclick = () => this.attempt(() => this.open(base, sessions));
    const open = h(
      "button",
      { type: "button", class: "text", "aria-current": base === this.current ? "true" : null, onclick },
      h("span", { class: "text-title" }, title),
      h("span", { class: "soft small-print" }, told.filter(Boolean).join(" · ")),
    );
    const remove = h("button", { type: "button", class: "quiet small remove" });
    const show = (sign, told) => {
      remove.textContent = sign;
      remove.setAttribute("aria-label", `${told}: ${title}`);
    };
    show("✕", "Delete");
    remove.addEventListener("click", () => {
      if (remove.textContent === "Delete?") return this.attempt(() => this.remove(base, sessions));
      show("Delete?", "Press again to delete"); // a second press means it
      announce(remove.getAttribute("aria-label"));
      setTimeout(() => show("✕", "Delete"), 3000);
    });
    return h("li", {}, open, remove);
  }

  async open(base, sessions) {
    const newest = sessions.slice(0, MOST_BRANCHES).reverse();
    const read = [];
    for (const { session_id: name } of newest) read.push({ name, turns: await turnsOf(name) });
    this.does.open(base, read);
  }

  async remove(base, sessions) {
    for (const { session_id: name } of sessions) {
      await call(`/v1/sessions/${name}`, { method: "DELETE" }).catch((error) => {
        if (error.status !== 404) throw error; // gone is gone
      });
      this.sessions = this.sessions.filter((each) => each.session_id !== name);
    }
    this.draw();
    this.does.removed(base);
  }

  mark(base) {
    this.current = base;
    this.draw();
  }
}

async function turnsOf(name) {
  const turns = [];
  for (let after = 0; after !== null; ) {
    const page = await call(`/v1/sessions/${name}?limit=200&after=${after}`);
    turns.push(...page.turns);
    after = page.next;
  }
  return turns;
}

function ago(seconds) {
  const minutes = Math.max(0, Date.now() / 1000 - seconds) / 60;
  if (minutes < 1) return "just now";
  if (minutes < 60) return `${Math.floor(minutes)} min ago`;
  if (minutes < 1440) return `${Math.floor(minutes / 60)} h ago`;
  const days = Math.floor(minutes / 1440);
  return `${number.format(days)} ${days === 1 ? "day" : "days"} ago`;
}
