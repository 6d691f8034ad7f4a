// The playground: puts the parts of the page together.

import { Account, sentence } from "./account.js";
import { call, credentials } from "./api.js";
import { $, announce, clip, copy, h, number, remember, remembered } from "./dom.js";
import { Inspector } from "./inspector.js";
import { KINDS, Tray, inWords, listed } from "./media.js";
import { hideNotice, showError, showNotice } from "./notices.js";
import { Readiness } from "./readiness.js";
import { Recorder } from "./recording.js";
import { score } from "./score.js";
import { Settings } from "./settings.js";
import { Sheet } from "./sheet.js";
import { Shelf } from "./shelf.js";
import { Story } from "./story.js";

const MODES = {
  write: {
    action: "Write",
    label: "Your text",
    placeholder: "Once upon a time",
    more: "Go on with words of yours, or leave it to the model",
    lead: $("welcome-lead").textContent,
    text: $("welcome-text").textContent,
  },
  chat: {
    action: "Send",
    label: "Your message",
    placeholder: "Say something",
    lead: "Say something, and the model answers.",
    text: "Point at any word of the answer: you see what else could have been said, and a click says it.",
  },
  score: {
    action: "Score",
    label: "A text to judge",
    placeholder: "A text of yours",
    lead: "How likely is a text to this model?",
    text:
      "Paste one: you get its bits per byte, and see which words the model did not expect. " +
      "A click on what it expected instead writes on from there.",
  },
};
const QUESTIONS = Object.values(KINDS).map(({ question }) => question);
const MOST_ARGUMENT = 100_000; // characters that a shell passes on as one word
const STARTERS = ["Once upon a time", "There was once", "Far away", "One Tuesday in September"];

const settings = new Settings();
const account = new Account(() => {
  for (const each of ["write", "chat"]) delete others[each]; // what was written belongs to somebody else now
  startOver();
  enter();
});
const sheet = new Sheet({
  again: (turn) => write((mine) => mine.again(turn)),
  branch,
  choose: (turn) => story.choose(turn),
  curl: (turn) => copyCurl(turn),
});
const shelf = new Shelf({ with: (work) => account.with(work), open: openText, removed, failed: fail });
const tray = new Tray({ takes, changed: suggest, refused: showNotice });
const recorder = new Recorder({ most: () => model().audio_seconds, heard: (file) => tray.add([file]), refused: showNotice });
const readiness = new Readiness({ ready: enter, waiting });
let models = [];
let mode = "write";
let ready = false;
let story = null; // the text or the conversation that is open
const others = {}; // what is open in the other mode
new Inspector(() => model()?.eot_id);

// ---- the model

function model() {
  return models.find((each) => each.id === $("model-menu").value) ?? models[0];
}

/** What the model takes in beside text: "image", "audio". */
function takes() {
  return (model()?.input_modalities ?? []).filter((each) => each in KINDS);
}

/** The model answers, or somebody else asks: look who answers, and what is kept. */
async function enter(known) {
  ready = true;
  if (known) describe({ provenance: known });
  $("model-dot").className = "dot ready";
  if ($("notice").dataset.of) hideNotice();
  drawComposer();
  try {
    await account.with(async () => {
      models = (await call("/v1/models")).data;
      await shelf.refresh().catch((error) => {
        if (error.status !== 503) throw error; // without a shelf one can write all the same
      });
    });
    drawModels();
    if (!story.path.length && $("keep").checked !== keeps()) {
      $("keep").checked = keeps();
      startOver();
    }
  } catch (error) {
    fail(error, () => enter());
  }
}

/** The model does not answer yet, or no more. */
function waiting(error) {
  const loading = error.message.startsWith("the model is being loaded");
  ready = false;
  $("model-dot").className = "dot waiting";
  $("model").textContent = loading ? "The model is being loaded. This page is ready by itself in a moment." : "No model answers now.";
  drawComposer();
  if ($("notice").dataset.of === error.message) return; // said already
  if (loading) hideNotice();
  else if (error.status === 0) showError(error);
  else showNotice("No model answers now", `${sentence(error.message)} This page looks again by itself.`);
  $("notice").dataset.of = error.message;
}

function drawModels() {
  const menu = $("model-menu");
  const chosen = remembered("model", null);
  menu.replaceChildren(...models.map(({ id }) => h("option", { value: id, selected: id === chosen }, id)));
  menu.hidden = models.length < 2;
  describe(model());
}

function describe({ provenance, parameters, max_model_len: context, chat_template: chats }) {
  const { run, step, val_loss: loss, id } = provenance;
  const parts = [run ?? id, `step ${number.format(step ?? 0)}`, loss ? `validation loss ${loss.toFixed(3)}` : null];
  if (parameters && takes().length) parts.push(`takes ${listed(takes())}`);
  if (parameters) parts.push(`${millions(parameters)} parameters`, `context ${number.format(context)}`);
  $("model").textContent = parts.filter(Boolean).join(" · ");
  $("model").dataset.chats = String(Boolean(chats));
  drawComposer();
}

function millions(count) {
  return count >= 1e6 ? `${number.format(Number((count / 1e6).toPrecision(3)))} M` : number.format(count);
}

// ---- writing

/** What a request is sent with. */
function requestSettings() {
  return { ...settings.values(), ...(models.length > 1 ? { model: model().id } : {}) };
}

/** Texts are kept if you said so, and else where they are yours alone: on your own machine, or with a key or a login. */
function keeps() {
  const here = /^(localhost|.*\.localhost|127\.[\d.]+|\[::1\])$/.test(location.hostname);
  return remembered("keep", here || credentials.get() !== null);
}

function newStory(of = mode === "chat" ? "chat" : "write", kept = $("keep").checked, name) {
  const changed = () => {
    sheet.changed();
    if (made === story && $("stop").hidden === made.writing) drawComposer();
  };
  const made = new Story(of, kept, { settings: requestSettings, changed, name });
  sheet.open(made);
  return made;
}

/** Has a turn written in the text that is open, and says how it went. What was typed comes back if nothing came of it. */
async function write(work, typed = "", shown = [], mine = story) {
  hideNotice();
  try {
    settings.values();
    announce("Writing.");
    await account.with(() => work(mine));
    announce(mine.last.state === "stopped" ? "Stopped." : `Done. ${clip(mine.last.writing.text, 1000)}`);
  } catch (error) {
    const lost = error.input ?? (error.status === undefined ? typed : "");
    const media = error.media ?? (error.status === undefined ? shown : []);
    const stopped = error.name === "AbortError"; // before anything came
    if (!stopped || mine === story) {
      $("prompt").value ||= lost;
      if (media.length) tray.put(media);
    }
    if (stopped) announce("Stopped.");
    else {
      fail(error, () => {
        if ($("prompt").value === lost) $("prompt").value = "";
        if (tray.media === media) tray.take();
        write(error.again ?? work, typed, shown, mine);
      });
    }
  }
  keepNote(mine);
  drawComposer();
  const by = mine.last.told?.model.id;
  if (by && !models.some(({ id }) => id === by)) enter(); // the server has another model now
}

/** The list on the left learns of a new turn. */
function keepNote(from) {
  const [name] = [...from.last.sessions.keys()].reverse();
  if (!name || !from.last.number) return;
  const [first] = from.path;
  shelf.note(name, from.last.number, { prompt: inWords(first), text: first.writing.text });
  if (from === story) shelf.mark(from.name);
}

function fail(error, again) {
  const blamed = error.param && settings.find(error.param);
  if (blamed) {
    const [, opener] = openers;
    if (opener.checkVisibility()) openPanel(opener);
    settings.blame(blamed, sentence(error.message));
  }
  if (!error.status && error.param) showNotice("A setting does not fit", error.message);
  else showError(error, again);
  if (error.status === 0 && !error.param || error.code === "not_ready") readiness.watch();
}

async function submit() {
  if (!ready || story.writing) return;
  recorder.stop();
  await tray.reading;
  const text = $("prompt").value;
  if (mode === "score") return scoreText(text);
  if (mode === "chat" && !text.trim() && !tray.media.length) return $("prompt").focus();
  const shown = mode === "chat" ? tray.take() : [];
  $("prompt").value = "";
  await write((mine) => mine.go(text, shown), text, shown);
}

/** The usual question about what is in the tray stands where you type, until you type another. */
function suggest() {
  const kinds = [...new Set(tray.media.map(({ kind }) => kind))];
  const prompt = $("prompt");
  if (matchMedia("(hover: hover)").matches) prompt.focus(); // elsewhere a keyboard would come up
  if (prompt.value && !QUESTIONS.includes(prompt.value)) return;
  prompt.value = kinds.length === 1 ? KINDS[kinds[0]].question : ""; // a sound beside a picture is the question itself
  prompt.setSelectionRange(0, prompt.value.length);
}

/** Takes files that were dropped or pasted: into a conversation, since nothing else can hold them. */
function receive(event, files) {
  event.preventDefault();
  document.body.classList.remove("dropping");
  if (!ready) return;
  if (takes().length) setMode("chat");
  tray.add([...files]);
}

function branch(turn, at, alternative) {
  return write((mine) => mine.branch(turn, at, alternative, model()?.eot_id));
}

async function scoreText(text) {
  if (!text) return $("prompt").focus();
  hideNotice();
  try {
    await account.with(() => score(text, requestSettings(), continueScored));
    announce("Scored.");
    drawComposer();
  } catch (error) {
    fail(error, () => scoreText(text));
  }
}

/** From a text that was scored to one that goes on with another token. */
function continueScored(text, tokens) {
  setMode("write");
  startOver();
  return write((mine) => mine.begin(text, tokens));
}

// ---- curl

/** The request that writes a text, for a shell. The key stays out of it: the shell fills it in. */
function curlOf(path, body) {
  const known = credentials.get();
  const header = { key: `-H "X-API-Key: $LLM_KEY"`, token: `-H "Authorization: Bearer $TOKEN"` }[known?.kind];
  const json = JSON.stringify(body);
  const short = json.length < MOST_ARGUMENT;
  const data = short ? `-d '${json.replaceAll("'", "'\\''")}'` : `-d @- <<'END'\n${json}\nEND`;
  return ["curl", `${location.origin}${path}`, '-H "Content-Type: application/json"', header, data].filter(Boolean).join(" ");
}

function copyCurl(turn) {
  if (mode === "score") return copy(curlOf("/v1/score", { text: $("prompt").value }), "Command copied.");
  try {
    const { logprobs, ...given } = requestSettings();
    if (turn?.told) given.seed = turn.told.seed;
    if (turn?.body?.prefix_ids) given.prefix_ids = turn.body.prefix_ids;
    const asked = turn ?? { parent: story.last, input: $("prompt").value, media: tray.media };
    return copy(curlOf("/v1/generate", story.request(asked, given)), "Command copied.");
  } catch (error) {
    fail(error);
  }
}

// ---- the page

function setMode(next) {
  recorder.stop();
  hideNotice();
  mode = next;
  for (const tab of document.querySelectorAll("[data-mode]")) tab.setAttribute("aria-pressed", String(tab.dataset.mode === mode));
  if (mode !== "score" && story.mode !== mode) {
    others[story.mode] = story;
    story = others[mode] ?? newStory();
    sheet.open(story);
    shelf.mark(story.path.length ? story.name : null);
  }
  drawComposer();
}

function startOver() {
  hideNotice();
  story?.stop();
  story = newStory();
  shelf.mark(null);
  drawComposer();
}

async function openText(base, read) {
  await story.stop();
  setMode(base.startsWith("chat-") ? "chat" : "write");
  story = newStory(mode, true, base);
  for (const { name, turns } of read) story.load(name, turns);
  sheet.open(story);
  shelf.mark(base);
  closePanels();
  drawComposer();
}

/** A text that was deleted is open no more, and what is being written in it is not kept again. */
function removed(base) {
  for (const each of [story, ...Object.values(others)]) {
    if (each.name !== base) continue;
    each.kept = false;
    each.stop();
  }
  for (const each of ["write", "chat"]) if (others[each]?.name === base) delete others[each];
  if (base === story.name) startOver();
}

function drawComposer() {
  const { action, label, placeholder, more, lead, text } = MODES[mode];
  const writing = story.writing;
  const begun = story.path.length > 0;
  const shows = mode === "chat" ? takes() : [];
  $("write").textContent = mode === "write" && begun ? "Go on" : action;
  $("write").disabled = !ready;
  $("write").hidden = writing;
  $("stop").hidden = !writing;
  $("prompt-label").textContent = label;
  $("prompt").placeholder = begun && more ? more : placeholder;
  $("hint").replaceChildren(...(mode === "chat" ? [h("kbd", {}, "Enter")] : [h("kbd", {}, "Ctrl"), " ", h("kbd", {}, "Enter")]));
  const scored = mode === "score" && $("score-result").firstChild !== null;
  $("score-result").hidden = !scored;
  $("sheet").hidden = scored;
  $("turns").hidden = mode === "score";
  $("welcome").hidden = begun && mode !== "score";
  $("welcome-lead").textContent = lead;
  $("welcome-text").textContent = shows.length ? `It takes ${listed(shows)}: drop a file here, or add one below. ${text}` : text;
  $("starters").hidden = mode !== "write";
  $("chat-note").hidden = mode !== "chat" || $("model").dataset.chats !== "false" || shows.length > 0;
  $("attach").hidden = !shows.length;
  $("attach").setAttribute("aria-label", `Add ${shows.map((kind) => `a ${KINDS[kind].word}`).join(" or ")}`);
  $("files").accept = shows.map((kind) => `${kind}/*`).join();
  $("record").hidden = !shows.includes("audio");
  $("tray").hidden = mode !== "chat" || !tray.media.length;
}

const openers = document.querySelectorAll(".panel-open"); // in sight only where the window has no room for their panels

function openPanel(opener) {
  $(opener.dataset.panel).classList.add("drawn");
  opener.setAttribute("aria-expanded", "true");
  $(opener.dataset.panel).querySelector(".panel-close").focus();
}

function closePanels() {
  for (const opener of openers) {
    if (!$(opener.dataset.panel).classList.contains("drawn")) continue;
    $(opener.dataset.panel).classList.remove("drawn");
    opener.setAttribute("aria-expanded", "false");
    opener.focus();
  }
}

function wire() {
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  $("stop").addEventListener("click", () => story.stop());
  $("curl").addEventListener("click", () => copyCurl());
  $("new-text").addEventListener("click", () => {
    startOver();
    closePanels();
    $("prompt").focus();
  });
  for (const tab of document.querySelectorAll("[data-mode]")) tab.addEventListener("click", () => setMode(tab.dataset.mode));
  for (const opener of openers) opener.addEventListener("click", () => openPanel(opener));
  for (const button of document.querySelectorAll(".panel-close")) button.addEventListener("click", closePanels);
  $("backdrop").addEventListener("click", closePanels);
  document.addEventListener("keydown", (event) => {
    const sends = event.ctrlKey || event.metaKey || (mode === "chat" && !event.shiftKey && !event.isComposing);
    if (event.key === "Enter" && sends && event.target === $("prompt")) {
      event.preventDefault();
      submit();
    }
    if (event.key !== "Escape") return;
    if (document.querySelector(".drawn")) closePanels();
    else if (recorder.running) recorder.stop();
    else if (story.writing) story.stop();
  });
  document.addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dropping"));
  document.addEventListener("drop", (event) => event.dataTransfer.files.length && receive(event, event.dataTransfer.files));
  $("prompt").addEventListener("paste", (event) => {
    const { files, types } = event.clipboardData;
    if (files.length && !types.includes("text/plain")) receive(event, files);
  });
  for (const id of ["tint", "keep"]) $(id).addEventListener("change", () => remember(id, $(id).checked));
  $("tint").checked = remembered("tint", true);
  $("keep").checked = keeps();
  const tint = () => document.body.classList.toggle("tinted", $("tint").checked);
  $("tint").addEventListener("change", tint);
  tint();
  $("keep").addEventListener("change", () => story.path.length || startOver());
  $("model-menu").addEventListener("change", () => {
    remember("model", $("model-menu").value);
    describe(model());
  });
  for (const text of STARTERS) {
    $("starters").append(h("button", { type: "button", class: "chip", onclick: () => ready && write((mine) => mine.go(text)) }, text));
  }
}

wire();
startOver();
readiness.watch();
readiness.follow();
if (matchMedia("(hover: hover)").matches) $("prompt").focus();
