// Who is asking: a key, or a name and a password. Shown where the server wants to know (401), or by the button on top.

import { credentials, login } from "./api.js";
import { $, announce } from "./dom.js";

export class Account {
  /** @param {() => void} changed called when there are other credentials than before */
  constructor(changed) {
    this.changed = changed;
    this.waiting = null; // those who wait for an answer
    this.dialog = $("account");
    $("account-button").addEventListener("click", () => this.open());
    $("account-close").addEventListener("click", () => this.dialog.close());
    $("sign-out").addEventListener("click", () => this.signOut());
    $("key-form").addEventListener("submit", (event) => this.useKey(event));
    $("login-form").addEventListener("submit", (event) => this.logIn(event));
    this.dialog.addEventListener("close", () => this.answer(false));
    this.show();
  }

  /** Does something that needs credentials; asks for them, and does it again, as often as the server refuses them. */
  async with(work) {
    for (;;) {
      try {
        return await work();
      } catch (error) {
        if (error.status !== 401) throw error;
        const tried = credentials.get();
        credentials.clear();
        this.show();
        if (!(await this.ask(tried))) throw error;
      }
    }
  }

  /** Asks for credentials; whether there are some now. */
  ask(tried) {
    const was = { key: "That key is not known here.", token: "Your login has ended." }[tried?.kind];
    this.open(was ?? "", "It answers those who have a key, or a name and a password.");
    this.waiting ??= {};
    this.waiting.answered ??= new Promise((resolve) => (this.waiting.resolve = resolve));
    return this.waiting.answered;
  }

  answer(given) {
    this.waiting?.resolve(given);
    this.waiting = null;
  }

  open(error = "", message = null) {
    const known = credentials.get();
    const who = known?.kind === "token" ? `You are logged in as ${known.name}.` : known ? "You use a key." : "";
    $("account-title").textContent = message ? "This server asks who you are" : "Key or login";
    $("account-message").textContent = message ?? (who || "A server with keys or users asks for them. This one has not asked yet.");
    $("account-error").textContent = error;
    $("sign-out").hidden = !known;
    if (!this.dialog.open) this.dialog.showModal();
    $("key").focus();
  }

  useKey(event) {
    event.preventDefault();
    const key = $("key").value.trim();
    if (!/^[!-~]+$/.test(key)) return this.refuse("A key has letters, digits and signs, and no spaces.");
    credentials.set("key", key);
    this.done("Key taken.");
  }

  async logIn(event) {
    event.preventDefault();
    const [user, password] = [$("user").value, $("password").value];
    if (!user || !password) return this.refuse("Type both a name and a password.");
    try {
      await login(user, password);
      this.done(`Logged in as ${user}.`);
    } catch (error) {
      this.refuse(error.code === "unsupported_grant_type" ? "This server has no users: it wants a key." : sentence(error.message));
    }
  }

  refuse(message) {
    $("account-error").textContent = message;
  }

  done(said) {
    for (const id of ["key", "user", "password"]) $(id).value = "";
    const asked = this.waiting !== null;
    this.answer(true);
    this.dialog.close();
    this.show();
    announce(said);
    if (!asked) this.changed();
  }

  signOut() {
    credentials.clear();
    this.show();
    this.dialog.close();
    this.changed();
  }

  show() {
    const known = credentials.get();
    $("account-name").textContent = !known ? "Key" : known.kind === "token" ? known.name : "Key in use";
  }
}

/** A message of the server, begun as a sentence; the name of a field stays as it is. */
export const sentence = (text) => (/^[a-z]+\W/.test(text) && !/^\w+:/.test(text) ? text.charAt(0).toUpperCase() + text.slice(1) : text);
