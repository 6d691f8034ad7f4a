// Records from the microphone: what the Web Audio API hears, as a WAV file of 16 bits and one channel.

import { $, announce } from "./dom.js";

const PAUSE = 800; // milliseconds
const REASONS = {
  NotAllowedError: "The browser did not lend its microphone to this page: allow it beside the address.",
  NotFoundError: "The browser finds no microphone.",
};

export class Recorder {
  /** @param {object} does most(): seconds that the model hears; heard(file) at the end; refused(title, text) */
  constructor(does) {
    this.does = does;
    this.running = null; // what is being recorded, from the moment in which the microphone is asked for
    $("record").addEventListener("click", () => (this.running ? this.stop() : this.start()));
  }

  async start() {
    if (!navigator.mediaDevices) {
      return this.does.refused("No microphone here", "Browsers lend it to pages of this machine, and to those with https.");
    }
    $("record").disabled = true; // until the person has answered the browser
    const mine = { pieces: [], length: 0 };
    this.running = mine;
    try {
      mine.stream = await navigator.mediaDevices.getUserMedia({ audio: true });
      if (this.running !== mine) return release(mine); // it was stopped meanwhile
      mine.context = new AudioContext();
      await mine.context.audioWorklet.addModule("/static/listener.js");
      if (this.running !== mine) return;
      const listener = new AudioWorkletNode(mine.context, "listener", { numberOfOutputs: 0 });
      listener.port.onmessage = ({ data }) => this.hear(mine, data);
      mine.context.createMediaStreamSource(mine.stream).connect(listener);
      announce("Recording.");
    } catch (error) {
      if (this.running !== mine) return; // nobody waits for it any more
      this.end();
      this.does.refused("Nothing was recorded", REASONS[error.name] ?? error.message);
    }
    this.draw();
  }

  hear(running, samples) {
    if (this.running !== running) return; // it was stopped while this was on its way
    running.pieces.push(samples);
    running.length += samples.length;
    this.draw();
    if (running.length < this.does.most() * running.context.sampleRate) return;
    this.stop();
    $("record").disabled = true; // whoever was about to stop it does not begin another
    setTimeout(() => this.draw(), PAUSE);
  }

  /** Ends the recording, and hands it on. */
  stop() {
    const { running } = this;
    if (!running) return;
    this.end();
    this.draw();
    if (!running.length) return;
    const { sampleRate } = running.context;
    const samples = new Float32Array(running.length);
    let at = 0;
    for (const piece of running.pieces) {
      samples.set(piece, at);
      at += piece.length;
    }
    const file = wav(samples.subarray(0, Math.floor(this.does.most() * sampleRate)), sampleRate);
    this.does.heard(new File([file], "recording.wav", { type: "audio/wav" }));
  }

  /** Gives the microphone back. */
  end() {
    release(this.running);
    this.running = null;
  }

  draw() {
    const { running } = this;
    $("record").disabled = false;
    $("record").setAttribute("aria-pressed", String(running !== null));
    $("record").setAttribute("aria-label", running ? "Stop recording" : "Record a sound");
    $("recorded").textContent = running ? `${(running.length / running.context.sampleRate).toFixed(1)} s` : "";
  }
}

/** Gives back what a recording has taken by now. */
function release({ stream, context }) {
  for (const track of stream?.getTracks() ?? []) track.stop();
  context?.close();
}

/** Samples within -1 to 1 as a WAV file. */
function wav(samples, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, letters) => [...letters].forEach((letter, n) => view.setUint8(at + n, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); // plain numbers
  view.setUint16(22, 1, true); // one channel
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((sample, n) => view.setInt16(44 + 2 * n, 32767 * Math.max(-1, Math.min(1, sample)), true));
  return view.buffer;
}
