// Runs beside the page, on the thread of the sound: hands on what the microphone hears, the mean of its channels.

registerProcessor(
  "listener",
  class extends AudioWorkletProcessor {
    process([channels]) {
      if (channels.length) this.port.postMessage(channels[0].map((_, n) => channels.reduce((sum, each) => sum + each[n], 0) / channels.length));
      return true;
    }
  },
);
