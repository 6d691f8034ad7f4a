// Numbers as a person reads them, in the same words as training/units.py.

import { number } from "./dom.js";

const significant = (n, digits) => Number(n.toPrecision(digits));

export const whole = (n) => number.format(Math.round(n));

export function count(n) {
  for (const [unit, scale] of [["B", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (n >= scale) return `${significant(n / scale, 3)} ${unit}`;
  }
  return n.toFixed(0);
}

export function duration(s) {
  if (s < 120) return `${s.toFixed(0)} s`;
  if (s < 7200) return `${(s / 60).toFixed(0)} min`;
  return s < 172800 ? `${(s / 3600).toFixed(1)} h` : `${(s / 86400).toFixed(1)} days`;
}

export const decimals = (n) => n.toFixed(4);

/** Three digits, as 0.00125 or 6.2e-5. */
export const small = (n) => (n && n < 1e-3 ? significant(n, 3).toExponential() : String(significant(n, 3)));

/** A share as per cent. */
export const share = (n) => `${significant(100 * n, 3)} %`;

/** Clock time of an instant in seconds since 1970; with the day where it is not today. */
export function clock(t) {
  const at = new Date(1000 * t);
  const time = at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
  return at.toDateString() === new Date().toDateString() ? time : `${at.toLocaleDateString()} ${time}`;
}
