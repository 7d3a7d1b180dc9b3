// What views are made of: elements, tables, texts and questions to the server.

const SVG = "http://www.w3.org/2000/svg";

// el makes an element: el("td", {class: "n"}, "text", child). Text is never markup.
export function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(e, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) e.addEventListener(key.slice(2), value);
    else e.setAttribute(key, value === true ? "" : value);
  }
  e.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== ""));
  return e;
}

// table makes one of columns [{head, cell, class}] and rows; empty says what it means
// that there are none.
export function table(caption, columns, rows, empty) {
  if (!rows.length) return el("p", { class: "quiet" }, empty);
  return el("div", { class: "card" }, el("table", {},
    el("caption", {}, caption),
    el("thead", {}, el("tr", {}, columns.map((c) => el("th", { scope: "col", class: c.class }, c.head)))),
    el("tbody", {}, rows.map((r) => el("tr", {}, columns.map((c) => el("td", { class: c.class }, c.cell(r) ?? "")))))));
}

// tiles are named numbers.
export function tiles(list) {
  return el("dl", { class: "tiles" }, list.filter(Boolean).map(([name, value, more]) =>
    el("div", { class: "tile" }, el("dt", {}, name), el("dd", {}, value), more && el("div", { class: "more" }, more))));
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenth = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });

export const count = (n) => (n === null || n === undefined ? "–" : whole.format(n));
export const number = (n) => (typeof n === "number" ? short.format(n) : n ?? "–");
export const rate = (n) => (n === undefined || n === null ? "–" : `${n >= 10 ? whole.format(n) : tenth.format(n)}/s`);
export const percent = (n) => (typeof n === "number" ? `${(100 * n).toFixed(1)} %` : "–");

export function bytes(n) {
  if (typeof n !== "number") return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let i = 0;
  for (; n >= 1000 && i < units.length - 1; i++) n /= 1000;
  return `${i ? short.format(Number(n.toPrecision(3))) : n} ${units[i]}`;
}

// when is a moment as a time element: today's by its clock, others with the date.
export function when(text) {
  if (!text) return "–";
  const at = new Date(text);
  if (Number.isNaN(at.getTime())) return String(text);
  const today = at.toDateString() === new Date().toDateString();
  return el("time", { datetime: at.toISOString(), title: at.toISOString() },
    today ? at.toLocaleTimeString("en-GB") : `${at.toLocaleDateString("en-CA")} ${at.toLocaleTimeString("en-GB")}`);
}

// clock is a moment as text, for sentences.
export function clock(text) {
  const at = new Date(text);
  return at.toDateString() === new Date().toDateString() ? at.toLocaleTimeString("en-GB") : `${at.toLocaleDateString("en-CA")} ${at.toLocaleTimeString("en-GB")}`;
}

// ago is how long something has been so.
export const ago = (text) => span(Math.max(0, (Date.now() - new Date(text).getTime()) / 1000));

// span is how long something took.
export function span(s) {
  if (s < 90) return `${Math.round(s)} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  if (s < 129600) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} d`;
}

export const pill = (text, kind) => el("span", { class: `pill ${kind ?? ""}` }, text);

const severities = { critical: "bad", high: "bad", medium: "warn", low: "", CRITICAL: "bad", HIGH: "bad", MEDIUM: "warn", LOW: "" };
export const severity = (text) => pill(text, severities[text]);

// ServerError is an answer that is none. Its status is 200 where what was asked for is
// not there, and is not meant to be, and 0 where nobody answered.
export class ServerError extends Error {
  constructor(status, source, message) {
    super(message);
    this.status = status;
    this.source = source;
  }
}

// ask gets a view's data.
export async function ask(path, signal) {
  const patience = AbortSignal.timeout(45000); // longer than the console's own with its sources
  return answer(await fetch(`api/${path}`, { signal: AbortSignal.any([signal, patience]), headers: { accept: "application/json" } }).catch(unreachable));
}

// tell asks for a change. The token, where one is needed, is asked for once.
export async function tell(path, body) {
  for (;;) {
    const token = sessionStorage.getItem("token");
    const response = await fetch(`api/${path}`, {
      method: "POST",
      headers: { "content-type": "application/json", ...(token && { authorization: `Bearer ${token}` }) },
      body: JSON.stringify(body ?? {}),
    }).catch(unreachable);
    if (response.status !== 401) return answer(response);
    const given = await question("The console's token", "Changing something needs the token that CONSOLE_TOKEN names.", "Go on", true);
    if (given === null) throw new ServerError(401, "console", "not changed: no token was given");
    sessionStorage.setItem("token", given);
  }
}

function unreachable(err) {
  if (err.name === "AbortError") throw err;
  throw new ServerError(0, "console", "the console itself does not answer");
}

async function answer(response) {
  const body = await response.json().catch(() => null);
  if (response.ok && body?.absent) throw new ServerError(200, body.absent.source, body.absent.message);
  if (response.ok) return body;
  throw new ServerError(response.status, body?.error?.source ?? "console", body?.error?.message ?? `it answered ${response.status}`);
}

// question asks a person before something happens: the text that was typed where some
// is wanted, else true; null when the answer was no.
export function question(title, text, yes, secret = false) {
  const dialog = document.getElementById("dialog");
  const field = secret && el("input", { type: "password", "aria-label": title, autocomplete: "off" });
  return new Promise((resolve) => {
    const end = (value) => { dialog.close(); resolve(value); };
    dialog.replaceChildren(el("form", { method: "dialog", onsubmit: (e) => { e.preventDefault(); end(field ? field.value : true); } },
      el("h2", {}, title), el("p", {}, text), field ? el("p", {}, field) : "",
      el("div", { class: "row" }, el("button", { type: "submit" }, yes), el("button", { type: "button", onclick: () => end(null) }, "Cancel"))));
    dialog.oncancel = () => end(null);
    dialog.showModal();
  });
}
