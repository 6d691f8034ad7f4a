// What went wrong, in plain words, and the next step.

import { $, h } from "./dom.js";
import { sentence } from "./account.js";

let countdown = 0;

export function hideNotice() {
  clearInterval(countdown);
  delete $("notice").dataset.of;
  $("notice").hidden = true;
  $("notice-text").replaceChildren();
  $("notice").replaceChildren($("notice-text"));
}

/**
 * Shows an error.
 * @param {Error} error
 * @param {() => void} [again] what the button "Try again" does; without it there is none
 */
export function showError(error, again) {
  const { title, text, wait = 0, retry = false } = explain(error);
  showNotice(title, text, again && (retry || wait) ? { label: "Try again", act: again, wait } : null);
}

/** Shows a title, a text, and a button that can be pressed after so many seconds: it counts them beside what is read aloud. */
export function showNotice(title, text, button = null) {
  hideNotice();
  if (button) $("notice").append(waitingButton(button));
  $("notice").append(h("button", { type: "button", class: "quiet", "aria-label": "Dismiss", onclick: hideNotice }, "✕"));
  $("notice").hidden = false;
  $("notice-text").replaceChildren(h("strong", {}, title), h("p", {}, text));
}

function waitingButton({ label, act, wait = 0 }) {
  const button = h("button", { type: "button", class: "small" }, label);
  button.addEventListener("click", () => {
    hideNotice();
    act();
  });
  const end = performance.now() + 1000 * wait;
  const tick = () => {
    const left = Math.ceil((end - performance.now()) / 1000);
    button.disabled = left > 0;
    const text = left > 0 ? `${label} in ${left} s` : label;
    if (button.textContent !== text) button.textContent = text;
    if (left <= 0) clearInterval(countdown);
  };
  countdown = setInterval(tick, 250);
  tick();
  return button;
}

/** An error as a title and what to do; `wait` seconds before trying again makes sense. */
export function explain(error) {
  const text = sentence(error.message);
  switch (error.status) {
    case 0:
      return { title: "No answer from the server", text: `${text} Is it still running? The command “make serve” starts it.`, retry: true };
    case 401:
      return { title: "Not without a key", text: "This server answers those who have a key or a login: the button on top takes it.", retry: true };
    case 403:
      return { title: "Not for this page", text };
    case 404:
      return { title: "Not there", text };
    case 408:
    case 413:
      return { title: "Too much text", text: `${text} Shorten it, or whoever runs the server raises LLM_MAX_BODY_BYTES.` };
    case 422:
      if (error.code === "context_length_exceeded") return { title: "Longer than the model can read", text: `${text}` };
      if (error.param === "messages") return { title: "The model cannot take that", text };
      return { title: "A setting does not fit", text };
    case 429:
      return { title: "Too many requests just now", text, wait: error.retryAfter || 1 };
    case 500:
      return { title: "The server failed", text: `${text} Its log says more${error.requestId ? ` under ${error.requestId}` : ""}.`, retry: true };
    case 503:
      if (error.code === "sessions_failed") {
        return { title: "Texts cannot be kept now", text: `${text} Uncheck “Keep new texts on this server”, and begin a new one.` };
      }
      return { title: "Not now", text, wait: error.retryAfter || 1 };
    default:
      return { title: "That did not work", text, retry: true };
  }
}
