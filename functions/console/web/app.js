// The console: one view a hash, asked anew every few seconds while it is looked at.
import { el, ask, clock, span, rate, percent } from "./dom.js";
import { views } from "./views.js";

const main = document.getElementById("main");
const trouble = document.getElementById("trouble");
const state = document.getElementById("state");

let current = new AbortController();

// show asks for a view's data and draws it, again and again until another is shown. A
// view that is being used, as one with a field that has the focus, is left alone.
async function show() {
  current.abort();
  const mine = (current = new AbortController());
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const view = views.find((v) => v.path === path) ?? views[0];
  const parameters = new URLSearchParams(query);
  document.title = `${view.name} · Millrace`;
  for (const a of document.querySelectorAll("nav a")) a.toggleAttribute("aria-current", a.hash === `#/${view.path}`);
  let drawn = false;
  while (!mine.signal.aborted) {
    if (!document.hidden && !(drawn && busy())) {
      try {
        const data = await view.load(parameters, mine.signal);
        if (mine.signal.aborted) return;
        redraw(el("h1", {}, view.name), ...[view.draw(data, parameters, show)].flat());
        drawn = true;
      } catch (err) {
        if (err.name === "AbortError") return;
        if (err.status === undefined) throw err;
        // What was shown stays, with the news that it is old.
        if (!drawn || err.status === 200) redraw(el("h1", {}, view.name), explain(err));
        drawn = true;
      }
      await health(mine.signal);
    }
    await new Promise((go) => { setTimeout(go, view.every ?? 3000); mine.signal.addEventListener("abort", go); });
  }
}

// busy tells whether somebody types, chooses, or reads what was unfolded.
const busy = () => document.activeElement?.closest("main input, main select") || main.querySelector("details[open]") || document.getElementById("dialog").open;

function redraw(...children) {
  const focus = document.activeElement?.id;
  main.replaceChildren(...children);
  if (focus) document.getElementById(focus)?.focus();
}

function explain(err) {
  if (err.status === 200) return el("p", { class: "quiet" }, `Nothing here: ${err.message} (${err.source}).`);
  return el("p", { class: "bad" }, `${err.source}: ${err.message}.`);
}

// Names of stores, as people write them.
const names = { kafka: "Kafka", s3: "S3", redis: "Redis", postgres: "PostgreSQL" };

// newsFor is for how many seconds it is told that something is well again.
const newsFor = 120;

// condition tells of something that is away, or was until just now; nothing of the rest.
function condition(name, up, { since, awaySeconds, error }, now) {
  if (!up) return { bad: true, text: `${name} is away since ${clock(since)}${error ? `: ${error}` : ""}.` };
  if (awaySeconds > 0 && (new Date(now) - new Date(since)) / 1000 < newsFor) {
    return { text: `${name} is well again since ${clock(since)}, away for ${span(awaySeconds)}.` };
  }
  return null;
}

// health says on every view what is not as it should be, since when, and what is well
// again.
async function health(signal) {
  let lines;
  try {
    const { sources, live, time } = await ask("health", signal);
    const stores = live?.stores ?? [];
    lines = stores.map((s) => condition(names[s.name] ?? s.name, s.up, s, time));
    const told = new Set(stores.map((s) => names[s.name]));
    // MLflow is made ready behind the rest, which the overview tells.
    if (live?.learning && live.learning.state !== "up") told.add("MLflow");
    lines.push(...Object.entries(sources).filter(([name]) => !told.has(name)).map(([name, h]) => condition(name, h.well, h, time)));
    for (const p of live?.processes ?? []) {
      if (!stores.some((s) => s.name === p.name)) lines.push({ bad: true, text: `${p.name} is ${p.state}${p.since ? ` since ${clock(p.since)}` : ""}${p.error ? `: ${p.error}` : ""}.` });
    }
    for (const d of live?.deliveries ?? []) lines.push({ bad: true, text: `${d.kind} ${d.name} fails since ${clock(d.failingSince)}: ${d.lastError}.` });
    state.textContent = live?.raw ? `${live.state} · ${rate(live.raw.perSecond)} raw · ${percent(live.invalidShare)} invalid` : "";
  } catch (err) {
    if (err.name === "AbortError") return;
    state.textContent = "";
    lines = [{ bad: true, text: "The console does not answer. What is shown is what was known before." }];
  }
  lines = lines.filter(Boolean);
  const text = JSON.stringify(lines);
  if (trouble.dataset.text === text) return; // said again, it would be read aloud again
  trouble.dataset.text = text;
  trouble.className = lines.some((l) => l.bad) ? "" : "over";
  trouble.replaceChildren(...lines.map((l) => el("p", { class: l.bad ? "" : "good" }, l.text)));
}

const theme = document.getElementById("theme");
document.documentElement.dataset.theme = localStorage.getItem("theme") ?? "";
theme.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  localStorage.setItem("theme", (root.dataset.theme = dark ? "light" : "dark"));
});

document.getElementById("nav").append(...views.map((v) => el("a", { href: `#/${v.path}` }, v.name)));
addEventListener("hashchange", () => { show(); main.focus(); });
show();
