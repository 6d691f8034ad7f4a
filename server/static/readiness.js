// Is the model there? Asked when the page opens and when the server said no, less and less often until it answers; then now and
// then whether another one does by now.

import { ApiError, call } from "./api.js";

const FIRST = 1000; // milliseconds until the second question
const LONGEST = 15000;

export class Readiness {
  /** @param {object} told ready(model) once it answers, waiting(message) each time that it does not */
  constructor(told) {
    this.told = told;
    this.asking = false;
    this.known = null; // the id of the model that answered last
    document.addEventListener("visibilitychange", () => this.wake?.());
  }

  /** Asks until the model answers. */
  async watch() {
    if (this.asking) return;
    this.asking = true;
    for (let wait = FIRST; ; wait = Math.min(LONGEST, 1.5 * wait)) {
      try {
        const { model } = await call("/readyz");
        this.asking = false;
        this.known = model.id;
        return this.told.ready(model);
      } catch (error) {
        if (error.code === "sessions_failed") break; // one can write all the same
        this.told.waiting(error instanceof ApiError ? error : new ApiError(0, String(error)));
      }
      await this.pause(wait);
    }
    this.asking = false;
    return this.told.ready();
  }

  /** Tells of each other model that answers from now on. Whoever has a question finds out by himself that none does. */
  async follow() {
    for (;;) {
      await this.pause(LONGEST);
      const model = this.asking ? null : await call("/readyz").then((told) => told.model, () => null);
      if (!model || model.id === this.known) continue;
      this.known = model.id;
      this.told.ready(model);
    }
  }

  /** Waits, and as long as nobody looks at the page. */
  async pause(milliseconds) {
    await new Promise((resolve) => setTimeout(resolve, milliseconds));
    while (document.hidden) await new Promise((resolve) => (this.wake = resolve));
  }
}
