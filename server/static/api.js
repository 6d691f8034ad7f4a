// What the page asks of its server. Every failure is an ApiError that knows the status, the field and when to come back.

export class ApiError extends Error {
  constructor(status, message, { code = null, param = null, retryAfter = 0, requestId = "" } = {}) {
    super(message);
    Object.assign(this, { status, code, param, retryAfter, requestId });
  }
}

const store = storeOfTab();

/** Key or token. It lives in this tab's sessionStorage and nowhere else, and goes into headers only. */
export const credentials = {
  get: () => JSON.parse(store.getItem("credentials") ?? "null"),
  set: (kind, secret, name = "") => store.setItem("credentials", JSON.stringify({ kind, secret, name })),
  clear: () => store.removeItem("credentials"),
};

/** The tab's sessionStorage; where the browser forbids it, something that holds as long as the page is open. */
function storeOfTab() {
  try {
    return sessionStorage;
  } catch {
    const kept = new Map();
    return { getItem: (name) => kept.get(name), setItem: (name, value) => kept.set(name, value), removeItem: (name) => kept.delete(name) };
  }
}

function headers(body) {
  const known = credentials.get();
  return {
    ...(body === undefined ? {} : { "Content-Type": "application/json" }),
    ...(known?.kind === "key" ? { "X-API-Key": known.secret } : {}),
    ...(known?.kind === "token" ? { Authorization: `Bearer ${known.secret}` } : {}),
  };
}

async function send(path, { method = "GET", body, signal } = {}) {
  const request = { method, signal, headers: headers(body), body: body === undefined ? undefined : JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, request);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "the server does not answer.");
  }
  if (!response.ok) throw await failure(response);
  return response;
}

async function failure(response) {
  const told = (await response.json().catch(() => null))?.error;
  const milliseconds = Number(response.headers.get("retry-after-ms")) || 1000 * Number(response.headers.get("retry-after"));
  return new ApiError(response.status, told?.message ?? `the server answered ${response.status}.`, {
    code: told?.code,
    param: told?.param,
    retryAfter: milliseconds / 1000 || 0,
    requestId: response.headers.get("x-request-id") ?? "",
  });
}

/** Asks, and gives the answer's JSON. */
export async function call(path, options) {
  return (await send(path, options)).json();
}

/** Asks for a stream, and gives its events one by one. */
export async function* stream(path, body, signal) {
  const response = await send(path, { method: "POST", body, signal });
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, "the connection broke off.");
    });
    if (done) throw new ApiError(0, "the connection broke off before the text was done.");
    const parts = (rest + decoder.decode(value, { stream: true })).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.slice("data: ".length);
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ApiError(event.error.code ? 503 : 500, event.error.message, event.error);
      yield event;
    }
  }
}

/** Trades a name and a password for a token, and keeps that. */
export async function login(username, password) {
  const response = await fetch("/oauth/token", { method: "POST", body: new URLSearchParams({ username, password }) }).catch(() => {
    throw new ApiError(0, "the server does not answer.");
  });
  const told = await response.json().catch(() => ({}));
  if (!response.ok) throw new ApiError(response.status, told.error_description ?? "the login was refused.", { code: told.error });
  credentials.set("token", told.access_token, username);
}
