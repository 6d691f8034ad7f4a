// How likely a text is to the model: three figures, and the text itself, tinted by how much each token surprised it.

import { call } from "./api.js";
import { $, h, number } from "./dom.js";
import { TokenView, Writing } from "./tokens.js";

/**
 * Scores a text, and shows what came of it.
 * @param {(text: string, tokens: object[]) => void} onbranch called for another token in one's place: the text before, and the
 *   tokens that go on from there
 */
export async function score(text, settings, onbranch) {
  const told = await ask(text, settings);
  const writing = new Writing(text, told.scored);
  writing.close();
  const said = "The text that was scored; the arrows walk through its tokens";
  const body = h("div", { class: "prose model", tabindex: "0", role: "group", "aria-label": said });
  const view = new TokenView(body);
  view.show(writing);
  view.onbranch = (at, alternative) => {
    const { start, first } = writing.spans[writing.spanOf(at)];
    const { top } = writing.tokens[at];
    onbranch(text.slice(0, start), [...writing.tokens.slice(first, at), { ...alternative, top }]);
  };
  const perplexity = told.perplexity && number.format(Number(told.perplexity.toPrecision(4)));
  $("score-result").replaceChildren(
    h(
      "dl",
      { class: "figures" },
      ...figure("Bits per byte", told.bits_per_byte?.toFixed(3), "8 would be a guess among all bytes; lower is likelier"),
      ...figure("Perplexity", perplexity, "as if it had chosen among so many tokens each time"),
      ...figure("Tokens", number.format(told.tokens), `of ${number.format(told.bytes)} bytes`),
    ),
    body,
  );
}

/** The server's judgement; of a text too long to be told token by token the figures alone. */
async function ask(text, { model, logprobs }) {
  const body = { text, ...(model ? { model } : {}) };
  try {
    return await call("/v1/score", { method: "POST", body: { ...body, logprobs } });
  } catch (error) {
    if (error.param !== "logprobs") throw error;
    return call("/v1/score", { method: "POST", body });
  }
}

function figure(name, value, meaning) {
  return [h("div", {}, h("dt", {}, name), h("dd", {}, value ?? "too large"), h("p", { class: "soft small-print" }, meaning))];
}
