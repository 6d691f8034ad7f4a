// Pictures and sounds that a person shows the model: dropped, pasted, chosen or recorded, and kept in a tray until they are sent.

import { $, announce, h } from "./dom.js";

// By modality: the word for one, and what is asked where nothing is typed, as multimodal/embedded.py teaches it.
export const KINDS = {
  image: { word: "picture", question: "describe" },
  audio: { word: "sound", question: "transcribe" },
};
const LARGE = 2 ** 20; // bytes; larger pictures are made smaller before they are sent
const SIDE = 1024; // pixels: twice what any of our models looks at

/** Which of both a file is, or null. Some systems know no type for the rarer sounds. */
function kindOf({ type, name }) {
  if (type.startsWith("image/")) return "image";
  return type.startsWith("audio/") || /\.(wav|mp3|flac|ogg|oga|opus)$/i.test(name) ? "audio" : null;
}

/** A file as the page keeps it: what shows it here, and the part of a message that holds it. */
async function mediumOf(kind, file) {
  const kept = kind === "image" ? await smaller(file) : file;
  const url = await dataUrl(kept);
  const form = `${file.type} ${file.name}`.match(/flac|ogg|opus|mpeg|mp3|$/i)[0].toLowerCase();
  const format = { flac: "flac", ogg: "ogg", opus: "ogg", mpeg: "mp3", mp3: "mp3" }[form] ?? "wav"; // the bytes decide
  const part =
    kind === "image"
      ? { type: "image_url", image_url: { url } }
      : { type: "input_audio", input_audio: { data: url.slice(url.indexOf(",") + 1), format } };
  return { kind, name: file.name, url: URL.createObjectURL(kept), part };
}

/** A photograph in the size that a model can use; what this browser cannot read goes as it is, since the server may. */
async function smaller(file) {
  if (file.size <= LARGE) return file;
  try {
    const whole = await createImageBitmap(file);
    const scale = Math.min(1, SIDE / Math.max(whole.width, whole.height));
    const canvas = new OffscreenCanvas(Math.ceil(scale * whole.width), Math.ceil(scale * whole.height));
    const pen = canvas.getContext("2d");
    pen.fillStyle = "white"; // under what is transparent, as the server does
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.imageSmoothingQuality = "high";
    pen.drawImage(whole, 0, 0, canvas.width, canvas.height);
    return await canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
  } catch {
    return file;
  }
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** The element that shows a picture, or plays a sound. */
export function shown({ kind, name, url }) {
  if (kind === "image") return h("img", { src: url, alt: `Picture: ${name}` });
  return h("audio", { src: url, controls: true, preload: "metadata", "aria-label": `Sound: ${name}` });
}

/** What a turn gave, as text: what the server keeps of it. */
export const inWords = ({ media, input }) => [...media.map(({ kind }) => `[${KINDS[kind].word}]`), input].filter(Boolean).join(" ");

/** What a model takes in, in words. */
export const listed = (kinds) => new Intl.ListFormat("en-GB").format(["text", ...kinds.map((kind) => `${KINDS[kind].word}s`)]);

/** What is to be sent with the next message. */
export class Tray {
  /** @param {object} does takes(): the modalities of the model; changed(); refused(title, text) */
  constructor(does) {
    this.does = does;
    this.media = [];
    this.reading = Promise.resolve();
    $("attach").addEventListener("click", () => $("files").click());
    $("files").addEventListener("change", () => {
      this.add([...$("files").files]);
      $("files").value = ""; // the same file may be chosen again
    });
  }

  /** Puts files in, in their order; why one cannot be taken is said. */
  add(files) {
    this.reading = this.reading.then(async () => {
      for (const file of files) await this.read(file);
    });
    return this.reading;
  }

  async read(file) {
    const kind = kindOf(file);
    const takes = this.does.takes();
    if (!kind) return this.does.refused("Neither a picture nor a sound", `${file.name} cannot be shown to a model.`);
    if (!takes.includes(kind)) {
      const others = "Models that were trained with --modalities image,audio see and hear.";
      return this.does.refused(`This model takes no ${KINDS[kind].word}s`, `It takes ${listed(takes)}. ${others}`);
    }
    try {
      this.put([...this.media, await mediumOf(kind, file)]);
      announce(`Added: ${file.name}`);
    } catch (error) {
      this.does.refused("That file cannot be read", `${file.name}: ${error.message}`);
    }
  }

  put(media) {
    this.media = media;
    this.draw();
    this.does.changed();
  }

  /** Empties the tray into a message. */
  take() {
    const { media } = this;
    this.put([]);
    return media;
  }

  draw() {
    $("tray").replaceChildren(...this.media.map((medium) => this.item(medium)));
    $("tray").hidden = !this.media.length;
  }

  item(medium) {
    const remove = h("button", { type: "button", class: "remove", "aria-label": `Remove ${medium.name}` }, "✕");
    remove.addEventListener("click", () => {
      $("attach").focus(); // this button goes away
      this.put(this.media.filter((each) => each !== medium));
      URL.revokeObjectURL(medium.url);
      announce(`Removed: ${medium.name}`);
    });
    return h("li", {}, shown(medium), remove);
  }
}
