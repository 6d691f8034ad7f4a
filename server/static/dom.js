// Small helpers around the page's elements. Text only ever goes in as text: nothing here reads HTML.

export const $ = (id) => document.getElementById(id);

/** A new element: h("a", {href: "/", onclick: go}, "text", child). False, null and undefined leave an attribute or a child out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null && child !== false));
  return element;
}

/** Says something to those who listen to the page rather than look at it. */
export function announce(text) {
  $("announce").textContent = text;
}

let toastTimer = 0;

/** A word that goes away by itself. */
export function toast(text) {
  $("toast").textContent = text;
  $("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => ($("toast").hidden = true), 2500);
}

/** Copies text; where the browser keeps its clipboard from pages without TLS, the old way. */
export async function copy(text, said = "Copied.") {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = h("textarea", { class: "hidden" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  toast(said);
}

/** Something kept in localStorage, or the fallback; a broken or forbidden store is no trouble. */
export function remembered(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? fallback;
  } catch {
    return fallback;
  }
}

export function remember(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
  } catch {
    // private windows: it is forgotten with the page
  }
}

/** The beginning of a text, without half a character at its end. */
export const clip = (text, most) => text.slice(0, most).replace(/[\ud800-\udbff]$/, "");

export const number = new Intl.NumberFormat("en-US");

/** 0.4312 as "43.1 %", with as many digits as tell something. */
export function percent(probability) {
  const value = 100 * probability;
  if (value >= 99.95) return "100 %";
  if (value < 0.01) return "< 0.01 %";
  return `${value.toFixed(value < 0.1 ? 2 : 1)} %`;
}
