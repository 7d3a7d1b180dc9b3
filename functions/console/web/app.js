// The console: one view a hash, asked anew every few seconds while it is looked at.
import { el, ask, ago, rate, percent } from "./dom.js";
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

// health says on every view which sources do not answer, and since when.
async function health(signal) {
  let lines = [];
  try {
    const { sources } = await ask("health", signal);
    lines = Object.entries(sources).filter(([, h]) => !h.well)
      .map(([name, h]) => `${name} has not answered for ${ago(h.since)}: ${h.error}.`);
    try {
      const live = await ask("live", signal);
      // MLflow is made ready behind the rest, which the live view tells.
      if (live.learning && live.learning.state !== "up") lines = lines.filter((l) => !l.startsWith("MLflow "));
      state.textContent = live.raw ? `${live.state} · ${rate(live.raw.perSecond)} raw · ${percent(live.invalidShare)} invalid` : live.from;
      for (const p of live.processes ?? []) {
        if (!["ready", "running", "disabled"].includes(p.state)) lines.push(`${p.name} is ${p.state}${p.since ? ` for ${ago(p.since)}` : ""}${p.error ? `: ${p.error}` : ""}.`);
      }
      for (const d of live.deliveries ?? []) {
        if (d.failingSince) lines.push(`${d.kind} ${d.name} has failed for ${ago(d.failingSince)}: ${d.lastError}.`);
      }
    } catch (err) {
      if (err.name === "AbortError") return;
      state.textContent = "";
    }
  } catch (err) {
    if (err.name === "AbortError") return;
    state.textContent = "";
    lines = ["The console does not answer. What is shown is what was known before."];
  }
  const text = lines.join("\n");
  if (trouble.dataset.text === text) return; // said again, it would be read aloud again
  trouble.dataset.text = text;
  trouble.replaceChildren(...lines.map((l) => el("p", {}, l)));
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
