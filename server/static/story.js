// A text, or a conversation, with all its branches, and how it is written.
//
// It is a tree of turns. A turn is what you gave and what the model wrote after it; its children are what came next. Turns with
// one parent are branches of each other: another token was taken somewhere, or the model was asked again.
//
// On the server each branch that goes its own way is a session of its own. A session is copied when a branch leaves it
// (POST /v1/sessions/NAME/fork), so no branch ever overwrites another.
//
// Sessions hold text. Where pictures or sounds were shown, the page sends the whole conversation itself, so that the model goes on
// seeing them, and has the turn kept afterwards, `[picture]` in a picture's place.

import { call, stream } from "./api.js";
import { inWords } from "./media.js";
import { Writing } from "./tokens.js";

const NOTHING = []; // was shown
const MOST_CUTS = 8; // times that a text too long for the context is halved

/** One thing given and one thing written. */
export class Turn {
  constructor(parent, input, writing = new Writing(), media = NOTHING) {
    this.parent = parent;
    this.input = input;
    this.media = media; // pictures and sounds, which come before the input
    this.writing = writing;
    this.children = [];
    this.chosen = null; // the child that is shown
    this.sessions = new Map(); // names of the sessions that hold this turn
    this.number = parent ? parent.number + 1 : 0; // within each of them
    this.state = "done"; // or "writing", "stopped"
    this.told = null; // what the server said at the end
    if (parent) {
      parent.children.push(this);
      parent.chosen = this;
    }
  }

  get siblings() {
    return this.parent.children;
  }

  /** The first token in which this branch differs from another, or -1 for one that has no tokens. */
  departs(other) {
    const [mine, theirs] = [this.writing.tokens, other.writing.tokens];
    const most = Math.min(mine.length, theirs.length);
    for (let n = 0; n < most; n++) if (mine[n].id !== theirs[n].id) return n;
    return most ? most : -1;
  }
}

/** A session's name: what it is, a random word, and the number of the branch. */
export function newName(mode) {
  const random = crypto.getRandomValues(new Uint32Array(2));
  return `${mode}-${[...random].map((part) => part.toString(36)).join("")}`;
}

/** The name without the branch: that of the text. */
export const baseOf = (name) => name.replace(/\.\d+$/, "");

export class Story {
  /**
   * @param {"write"|"chat"} mode
   * @param {boolean} kept whether the server keeps it as sessions
   * @param {object} told settings(): the sampling settings of a request; changed(turn): called as a text grows; name: a session's
   */
  constructor(mode, kept, { settings, changed, name = newName(mode) }) {
    Object.assign(this, { mode, kept, settings, changed, name });
    this.root = new Turn(null, "");
    this.lasts = new Map(); // of each session, the number of its last turn
    this.branches = 0; // sessions made so far
    this.writer = null; // stops the turn that is being written
  }

  /** The turns that are shown, from the first. */
  get path() {
    const turns = [];
    for (let turn = this.root.chosen; turn; turn = turn.chosen) turns.push(turn);
    return turns;
  }

  get last() {
    return this.path.at(-1) ?? this.root;
  }

  get writing() {
    return this.writer !== null;
  }

  /** Shows another branch. */
  choose(turn) {
    turn.parent.chosen = turn;
    this.changed(turn);
  }

  /** The model goes on after what is given; nothing given goes on where the text ends. */
  async go(input, media = NOTHING) {
    await this.stop();
    return this.write(new Turn(this.last, input, undefined, media));
  }

  /** A new text that begins with tokens in the model's part. */
  begin(input, tokens) {
    const turn = new Turn(this.root, input);
    turn.writing.tokens.push(...tokens.map((token) => ({ top: [], ...token, offset: 0 })));
    return this.write(turn);
  }

  /** The same once more. */
  async again(turn) {
    await this.stop();
    return this.write(new Turn(turn.parent, turn.input, undefined, turn.media));
  }

  /** Another token in a token's place, and the text goes on from there. Where that was done before, its branch is shown again. */
  async branch(turn, at, alternative, eot) {
    await this.stop();
    const same = turn.siblings.find((other) => other !== turn && gives(other, turn) && leads(other, turn, at, alternative.id));
    if (same) return this.choose(same);
    const made = new Turn(turn.parent, turn.input, turn.writing.branch(at, alternative), turn.media);
    if (alternative.id !== eot) return this.write(made);
    made.writing.tokens.pop(); // the model would have ended here
    made.writing.close();
    made.state = "stopped";
    this.changed(made);
    return this.save(made);
  }

  /** Stops the turn that is being written; what is there stays. */
  async stop() {
    const writer = this.writer;
    writer?.abort();
    await writer?.ended.catch(() => {}); // who asked for that text is told
  }

  /** Writes a turn. Its tokens so far are what it begins with. */
  write(turn) {
    const writer = new AbortController();
    this.writer = writer;
    writer.ended = this.run(turn, writer.signal).finally(() => {
      if (this.writer === writer) this.writer = null;
      this.changed(turn);
    });
    return writer.ended;
  }

  async run(turn, signal) {
    turn.state = "writing";
    turn.began = performance.now();
    this.changed(turn);
    try {
      await this.receive(turn, signal);
      turn.state = "done";
    } catch (error) {
      turn.state = "stopped";
      if (error.name !== "AbortError") throw this.failed(turn, error);
      if (!turn.writing.text && !(await this.remembered(turn))) throw this.failed(turn, error);
    } finally {
      turn.writing.close();
    }
    if (!turn.sessions.size) await this.save(turn); // a session holds by itself what was written in it to the end
  }

  async receive(turn, signal) {
    const prefix = turn.writing.ids();
    const session = this.shows(turn) ? null : await this.session(turn.parent);
    turn.body = this.body(turn, prefix, session);
    let fresh = prefix.length > 0;
    for await (const event of this.events(turn, signal)) {
      if (fresh) turn.writing.restart();
      fresh = false;
      turn.first ??= performance.now();
      turn.writing.add(event.text, event.tokens);
      if (event.finish_reason) {
        turn.told = event;
        this.hold(turn, session);
      }
      this.changed(turn);
    }
    turn.ended = performance.now();
  }

  /** The events of a turn. Without a session the text is cut here where the context has no room for it. */
  async *events(turn, signal) {
    for (let cuts = 0; ; cuts++) {
      try {
        yield* stream("/v1/generate", { ...turn.body, stream: true }, signal);
        return;
      } catch (error) {
        const before = turn.body.prompt?.length - turn.input.length;
        if (error.code !== "context_length_exceeded" || turn.body.session_id || !(before > 0) || cuts === MOST_CUTS) throw error;
        turn.body.prompt = turn.body.prompt.slice(Math.ceil(before / 2)).replace(/^[\udc00-\udfff]/, "");
      }
    }
  }

  /** Whether the model is to see or hear something, in this turn or from before it. */
  shows(turn) {
    return [...this.before(turn), turn].some(({ media }) => media.length);
  }

  /** What is sent for a turn, but for `stream`. */
  body(turn, prefix, session) {
    const more = { ...(prefix.length ? { prefix_ids: prefix } : {}), ...(session ? { session_id: session } : {}) };
    const request = session ? this.request(turn, this.settings(), [], inWords) : this.request(turn, this.settings());
    return { ...request, ...more };
  }

  /** A request that needs no session: it holds the turns before. `content` is what one side gave in a turn of a conversation. */
  request(turn, { system, ...settings }, before = this.before(turn), content = contentOf) {
    if (this.mode === "write") {
      return { prompt: before.map((each) => each.input + each.writing.text).join("") + turn.input, ...settings };
    }
    const said = (role, content) => ({ role, content });
    const talk = before.flatMap((each) => [said("user", content(each)), said("assistant", each.writing.text)]);
    return { messages: [...(system ? [said("system", system)] : []), ...talk, said("user", content(turn))], ...settings };
  }

  /** The turns before one. */
  before(turn) {
    const turns = [];
    for (let each = turn.parent; each.parent; each = each.parent) turns.unshift(each);
    return turns;
  }

  /**
   * A turn that failed: what came of it stays; if nothing came it was never there. The error holds what was given, unless a
   * branch shows it, and what trying again means where that is not the same as before.
   */
  failed(turn, error) {
    if (turn.first !== undefined && turn.writing.text) return Object.assign(error, { again: () => this.again(turn) });
    const { parent, input, media } = turn;
    parent.children.splice(parent.children.indexOf(turn), 1);
    parent.chosen = parent.children.at(-1) ?? null;
    const given = parent.children.some((other) => gives(other, turn));
    return Object.assign(error, given ? {} : { input, media }, { again: null });
  }

  // ---- sessions

  /** The session in which the next turn after this one can be kept: one that ends here, or a copy of one up to here. */
  async session(parent) {
    if (!this.kept) return null;
    if (parent.number && !parent.sessions.size) await this.save(parent); // its connection broke off, or the server was away then
    for (const name of parent.sessions.keys()) if (this.lasts.get(name) === parent.number) return name;
    const name = this.branches ? `${this.name}.${this.branches + 1}` : this.name;
    if (parent.number) {
      const [from] = parent.sessions.keys();
      await call(`/v1/sessions/${from}/fork`, { method: "POST", body: { session_id: name, last: parent.number } });
      for (let turn = parent; turn.parent; turn = turn.parent) turn.sessions.set(name, turn.number);
    }
    this.branches++;
    this.lasts.set(name, parent.number);
    parent.sessions.set(name, parent.number);
    return name;
  }

  /** Notes that a session holds a turn. */
  hold(turn, session) {
    if (!session) return;
    turn.sessions.set(session, turn.number);
    this.lasts.set(session, turn.number);
  }

  /** Has the server keep a turn that it did not keep itself; once, though the text may go on from it meanwhile. */
  save(turn) {
    turn.saving ??= this.store(turn).finally(() => (turn.saving = null));
    return turn.saving;
  }

  /** The server writes nothing more, and takes the tokens as they are. */
  async store(turn) {
    if (!this.kept) return;
    try {
      if (await this.remembered(turn)) return;
      const session = await this.session(turn.parent);
      await call("/v1/generate", { method: "POST", body: { ...this.body(turn, turn.writing.ids(), session), max_new_tokens: 0 } });
      this.hold(turn, session);
    } catch (error) {
      throw Object.assign(error, { again: () => this.save(turn) });
    }
  }

  /** Whether the server ended a turn, and kept it, in the moment in which it was stopped or broke off: then that text counts. */
  async remembered(turn) {
    const session = turn.body?.session_id;
    const { number } = turn.parent;
    if (!session || this.lasts.get(session) !== number) return false; // the server was not to keep it, or we know what came there
    const page = await call(`/v1/sessions/${session}?after=${number}&limit=1`).catch(() => null); // none begun, or none answers
    const same = page?.turns.find(({ prompt, text }) => prompt === turn.input && text.startsWith(turn.writing.text));
    if (!same) return false;
    turn.writing.close();
    turn.writing.add(same.text.slice(turn.writing.text.length));
    this.hold(turn, session);
    return true;
  }

  /** Puts the turns of a session into the tree; those that two sessions share are there once. */
  load(name, turns) {
    let parent = this.root;
    for (const { number, created, prompt, text } of turns) {
      const same = parent.children.find((each) => each.created === created && each.number === number && each.writing.text === text);
      const turn = same ?? new Turn(parent, prompt, new Writing(text));
      Object.assign(turn, { number, created });
      turn.sessions.set(name, number);
      turn.writing.close();
      parent.chosen = turn;
      parent = turn;
    }
    this.lasts.set(name, parent.number);
    this.branches = Math.max(this.branches, Number(name.match(/\.(\d+)$/)?.[1] ?? 1));
  }
}

/** What was given in a turn, as a message holds it. */
function contentOf({ media, input }) {
  if (!media.length) return input;
  return [...media.map(({ part }) => part), ...(input ? [{ type: "text", text: input }] : [])];
}

/** Whether the same was given in two turns. */
function gives(one, other) {
  return one.input === other.input && one.media === other.media;
}

/** Whether a branch has the same tokens as another up to a place, and this one there. */
function leads(other, turn, at, id) {
  const tokens = other.writing.tokens;
  return tokens[at]?.id === id && other.departs(turn) >= at;
}
