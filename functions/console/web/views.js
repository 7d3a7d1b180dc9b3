// The views: what each asks for, and how it draws the answer.
import { el, table, tiles, count, number, rate, percent, bytes, when, ago, clock, pill, severity, ask, tell, question } from "./dom.js";
import { chart } from "./charts.js";
import { drawGraph } from "./graph.js";

let graph; // does not change while the console runs

const overview = {
  path: "", name: "Overview", every: 2000,
  async load(_, signal) {
    graph ??= await ask("graph", signal);
    return ask("live", signal);
  },
  draw(live) {
    const by = (kind) => new Map((live.deliveries ?? []).filter((d) => d.kind === kind).map((d) => [d.name, d]));
    const [triggers, sources, pings] = [by("Trigger"), by("KafkaSource"), by("PingSource")];
    const processes = new Map((live.processes ?? []).map((p) => [p.name, p]));
    const topics = new Map((live.topics ?? []).map((t) => [t.name, t]));
    const takes = new Map((live.taken ?? []).map((t) => [`${t.function} ${t.type}`, t]));
    const flow = (e) => {
      if (live.taken && e.trigger && e.to.startsWith("Service/")) {
        // Nobody told of Triggers, but functions of what they took.
        const list = (e.types ?? []).map((type) => takes.get(`${e.to.split("/")[1]} ${type}`)).filter(Boolean);
        const sum = (f) => list.reduce((n, t) => n + f(t), 0);
        const d = triggers.get(e.trigger);
        if (!d) return list.length ? { perSecond: sum((t) => t.perSecond), failing: sum((t) => t.failuresPerSecond) > 0 && `${rate(sum((t) => t.failuresPerSecond))} were not done` } : undefined;
      }
      const d = e.trigger ? triggers.get(e.trigger) : e.to.startsWith("KafkaSource/") ? sources.get(e.to.split("/")[1]) : topics.get(e.to.replace("topic/", ""));
      return d && { perSecond: d.perSecond, lag: d.lag, failing: d.failingSince && d.lastError };
    };
    const node = (n) => {
      if (n.kind === "Service") {
        const p = processes.get(n.name);
        if (!p) return { text: "not running here", absent: true };
        if (live.from === "prometheus") return { text: p.state === "running" ? `${rate(p.perSecond ?? 0)} · ${bytes(p.rssBytes)}` : p.state, ill: p.state !== "running" || p.failuresPerSecond > 0 };
        return { text: `${p.state} · ${bytes(p.rssBytes)}`, ill: !["ready", "running"].includes(p.state) };
      }
      if (n.kind === "topic" && topics.has(n.name)) return { text: rate(topics.get(n.name).perSecond) };
      const d = n.kind === "KafkaSource" ? sources.get(n.name) : n.kind === "PingSource" ? pings.get(n.name) : undefined;
      if (d) return { text: n.schedule ?? rate(d.perSecond), ill: Boolean(d.failingSince) };
      return undefined;
    };
    return [
      live.raw && tiles([
        ["raw records", rate(live.raw.perSecond), `${count(live.raw.total)} in all`],
        ["valid", rate(live.validated.perSecond), count(live.validated.total)],
        ["invalid", percent(live.invalidShare), `${count(live.invalid.total)} in all`],
        live.lake && ["lake", `${count(live.lake.objects)} objects`, bytes(live.lake.bytes)],
        live.warehouse && ["gold", count(live.warehouse.facts), "rows"],
        ["dead letters", count(live.deadLettersSinceStart), "since the start"],
        ["memory", bytes(live.rssBytes), "all processes"],
        live.learning && live.learning.state !== "off" && ["learning", live.learning.state, live.learning.detail],
      ]),
      live.stores?.length ? el("p", { class: "row" }, live.stores.map((s) => pill(`${s.name} ${s.up ? "up" : "away"} since ${clock(s.since)}`, s.up ? "good" : "bad"))) : "",
      el("div", { class: "card", tabindex: 0, "aria-label": "Event graph" }, drawGraph(graph, flow, node)),
      el("h2", {}, "Deliveries"),
      table("What each source and Trigger has done since the start.", [
        { head: "name", cell: (d) => `${d.kind === "Trigger" ? "" : `${d.kind} `}${d.name}` },
        { head: "rate", class: "n", cell: (d) => rate(d.perSecond) },
        { head: "delivered", class: "n", cell: (d) => count(d.delivered) },
        { head: "lag", class: "n", cell: (d) => count(d.lag) },
        { head: "retries", class: "n", cell: (d) => count(d.retries) },
        { head: "dead letters", class: "n", cell: (d) => count(d.deadLettered) },
        { head: "state", cell: (d) => (d.failingSince ? el("span", { class: "bad" }, `fails for ${ago(d.failingSince)}: ${d.lastError}`) : "") },
      ], live.deliveries ?? [], "Nobody tells Prometheus of Triggers here: the runner and the relay do. What functions take is on the edges and below."),
      el("h2", {}, "Parts"),
      table("Every process.", [
        { head: "name", cell: (p) => p.name },
        { head: "state", cell: (p) => pill(p.state, ["ready", "running"].includes(p.state) ? "good" : "bad") },
        { head: "since", class: "t", cell: (p) => when(p.since) },
        { head: "memory", class: "n", cell: (p) => bytes(p.rssBytes) },
        { head: "CPU", class: "n", cell: (p) => (p.cpuPercent === undefined ? "" : `${number(Math.round(p.cpuPercent))} %`) },
        { head: "restarts", class: "n", cell: (p) => count(p.restarts ?? 0) },
        { head: "events", class: "n", cell: (p) => (p.perSecond === undefined ? "" : rate(p.perSecond)) },
        { head: "", class: "wide", cell: (p) => p.error },
      ], live.processes ?? [], "None."),
      live.leftOut?.length ? table("What this machine cannot run.", [
        { head: "parts", cell: (l) => l.names.join(", ") }, { head: "why", class: "wide", cell: (l) => l.reason }], live.leftOut, "") : "",
      el("h2", {}, "What happened"),
      table("The latest.", [
        { head: "at", class: "t", cell: (e) => when(e.time) }, { head: "part", cell: (e) => e.part },
        { head: "", class: "wide", cell: (e) => el("span", { class: e.bad ? "bad" : "" }, e.text) },
      ], (live.events ?? []).toReversed().slice(0, 15), "Nothing to tell."),
    ];
  },
};

const invalid = {
  path: "invalid", name: "Invalid",
  load: (_, signal) => ask("invalid", signal),
  draw({ verdicts, reasons }) {
    const all = verdicts ?? [];
    return [
      table("Verdicts since validate was started.", [
        { head: "contract", cell: (v) => v.contract },
        { head: "verdict", cell: (v) => pill(v.verdict, v.verdict === "INVALID" ? "bad" : v.verdict === "VALID" ? "good" : "") },
        { head: "class", cell: (v) => v.error },
        { head: "records", class: "n", cell: (v) => count(v.records) },
        { head: "share", class: "n", cell: (v) => percent(v.records / all.filter((w) => w.contract === v.contract).reduce((s, w) => s + w.records, 0)) },
      ], all.toSorted((a, b) => b.records - a.records), "Nothing was validated yet."),
      el("h2", {}, "Reasons"),
      table("Alerts of invalid events, one a group.", [
        { head: "severity", cell: (a) => severity(a.severity) },
        { head: "reason", class: "wide", cell: (a) => a.summary },
        { head: "events", class: "n", cell: (a) => count(a.events) },
        { head: "first", class: "t", cell: (a) => when(a.first_event_at) },
        { head: "last", class: "t", cell: (a) => when(a.last_event_at) },
        { head: "state", cell: (a) => a.state },
      ], reasons ?? [], "No alert about invalid events."),
    ];
  },
};

const predictions = {
  path: "predictions", name: "Predictions",
  load: (_, signal) => ask("predictions", signal),
  draw({ rows }) {
    const versions = Map.groupBy(rows, (p) => `${p.model} ${p.model_version}`);
    return [
      tiles([...versions].map(([name, list]) => [name, count(list.length), "of the latest"])),
      table("The latest predictions.", [
        { head: "at", class: "t", cell: (p) => when(p.timestamp) },
        { head: "model", cell: (p) => p.model },
        { head: "version", cell: (p) => p.model_version },
        { head: "for", cell: (p) => el("a", { href: `#/story?q=${encodeURIComponent(p.entity)}` }, p.entity) },
        { head: "predicted", class: "n", cell: (p) => number(p.prediction) },
        { head: "actual", class: "n", cell: (p) => number(p.actual) },
        { head: "error", class: "n", cell: (p) => (p.prediction_error_percent === null ? "" : `${number(p.prediction_error_percent)} %`) },
        { head: "confidence", class: "n", cell: (p) => percent(p.confidence_score) },
      ], rows, "Nothing was predicted yet."),
    ];
  },
};

const anomalies = {
  path: "anomalies", name: "Anomalies",
  async load(parameters, signal) {
    const { rows } = await ask("anomalies", signal);
    let [entity, metric] = [parameters.get("entity"), parameters.get("metric")];
    const first = rows.find((a) => a.entity_type === "server" && a.details?.metric_name);
    if (!entity && first) [entity, metric] = [first.entity_id, first.details.metric_name];
    const series = entity && metric ? await ask(`series?${new URLSearchParams({ entity, metric })}`, signal) : null;
    return { rows, entity, metric, series };
  },
  draw({ rows, entity, metric, series }) {
    const open = rows.filter((a) => !a.resolved);
    return [
      tiles([["open", count(open.length)], ...["critical", "high", "medium", "low"].map((s) => [s, count(rows.filter((a) => a.severity === s).length), `of the latest ${rows.length}`])]),
      series ? chart(`${metric} of ${entity}`, [{ points: series.points }], {
        marks: series.anomalies.filter((a) => Number.isFinite(a.details.actual_value)).map((a) => ({ t: a.timestamp, v: a.details.actual_value, name: `${a.severity}, expected ${number(a.details.expected_value)}` })),
      }) : "",
      table("The latest anomalies.", [
        { head: "at", class: "t", cell: (a) => when(a.timestamp) },
        { head: "severity", cell: (a) => severity(a.severity) },
        { head: "of", cell: (a) => (a.entity_type === "server" && a.details?.metric_name
          ? el("a", { href: `#/anomalies?${new URLSearchParams({ entity: a.entity_id, metric: a.details.metric_name })}` }, a.entity_id) : a.entity_id) },
        { head: "what", cell: (a) => a.anomaly_type },
        { head: "actual", class: "n", cell: (a) => number(a.details?.actual_value) },
        { head: "expected", class: "n", cell: (a) => number(a.details?.expected_value) },
        { head: "z", class: "n", cell: (a) => number(a.details?.z_score) },
        { head: "score", class: "n", cell: (a) => number(a.anomaly_score) },
        { head: "state", cell: (a) => (a.resolved ? "over" : pill("open", "warn")) },
      ], rows, "No anomaly yet. Detectors say so until they have seen enough."),
    ];
  },
};

const drift = {
  path: "drift", name: "Drift", every: 10000,
  async load(parameters, signal) {
    const { rows } = await ask("drift?limit=200", signal);
    const model = parameters.get("model") ?? rows[0]?.model;
    const { rows: measured } = model ? await ask(`drift/measurements?model=${encodeURIComponent(model)}`, signal) : { rows: [] };
    return { rows, model, measured };
  },
  draw({ rows, model, measured }) {
    const latest = [...new Map(rows.toReversed().map((w) => [w.model, w])).values()];
    const columns = Map.groupBy(measured, (m) => `${m.kind} ${m.name} (${m.statistic})`);
    return [
      table("The latest window of each model.", [
        { head: "model", cell: (w) => el("a", { href: `#/drift?model=${encodeURIComponent(w.model)}` }, w.model) },
        { head: "version", cell: (w) => w.model_version },
        { head: "until", class: "t", cell: (w) => when(w.window_end) },
        { head: "rows", class: "n", cell: (w) => count(w.rows) },
        { head: "columns that drifted", class: "n", cell: (w) => `${w.drifted_columns} of ${w.columns}` },
        { head: "state", cell: (w) => pill(w.state, w.state === "stable" || w.state === "resolved" ? "good" : "bad") },
        { head: "why", class: "wide", cell: (w) => (w.reasons ?? []).join("; ") },
        { head: "report", cell: (w) => el("a", { href: `api/drift/reports/${encodeURIComponent(w.model)}/${new Date(w.window_end).toISOString().replace(/[-:]|\.\d+/g, "")}`, target: "_blank", rel: "noopener" }, "open") },
      ], latest, "No drift was measured yet: a model and a window of rows are needed."),
      ...[...columns].map(([name, list]) => {
        const points = list.toReversed().map((m) => ({ t: m.window_end, v: m.value }));
        return chart(`${model}: ${name}`, [{ points }], { thresholds: [{ v: list[0].threshold, name: "limit" }] });
      }),
    ];
  },
};

const models = {
  path: "models", name: "Models", every: 5000,
  load: async (_, signal) => ({ ...(await ask("models", signal)), health: await ask("health", signal) }),
  draw({ models: list, unknown, decisions, runs, health }, _, again) {
    const act = (path, title, text, body) => async () => {
      if ((await question(title, text, "Do it")) === null) return;
      try {
        await tell(path, body);
      } catch (err) {
        await question("It was not done", `${err.source}: ${err.message}`, "Good");
      }
      again();
    };
    const metrics = (v) => Object.entries(v.tags ?? {}).filter(([k]) => k === "metrics" || k === "training_date").map(([, t]) => t).join(" ");
    return [
      ...(list ?? []).map((m) => [
        el("h2", {}, m.name),
        el("div", { class: "row" },
          el("button", { disabled: !health.changes, onclick: act("models/train", `Train ${m.name}?`, "A run is asked for now, whatever the policy says.", { model: m.name }) }, "Train"),
          el("button", { class: "danger", disabled: !health.changes || !m.aliases?.current, onclick: act("models/rollback", `Roll ${m.name} back?`, `Version ${m.aliases?.current} serves now. The one that served before it will serve instead.`, { model: m.name }) }, "Roll back")),
        table("Versions, the newest first.", [
          { head: "version", cell: (v) => v.version },
          { head: "", cell: (v) => Object.entries(m.aliases ?? {}).filter(([, at]) => at === v.version).map(([alias]) => pill(alias, "good")) },
          { head: "made", class: "t", cell: (v) => when(v.createdAt) },
          { head: "measured", class: "wide", cell: metrics },
          { head: "", cell: (v) => (m.aliases?.current === v.version ? "" : el("button", { disabled: !health.changes || !m.aliases?.current, onclick: act("models/rollback", `Serve version ${v.version}?`, `${m.name} is served in version ${m.aliases?.current} now. Version ${v.version} will take its place, past the gate.`, { model: m.name, from: m.aliases?.current, to: v.version }) }, "Serve this")) },
        ], m.versions.slice(0, 12), "No version yet."),
      ]).flat(),
      unknown ? el("p", { class: "quiet" }, `The registry's versions are not known: ${unknown}.`) : list?.length ? "" : el("p", { class: "quiet" }, "No model is registered yet. What serves until then is the starter model."),
      el("h2", {}, "Decisions"),
      table("What was decided about models, and why.", [
        { head: "at", class: "t", cell: (d) => when(d.decided_at) }, { head: "model", cell: (d) => d.model },
        { head: "decision", cell: (d) => pill(d.decision, d.decision === "promote" ? "good" : d.decision === "keep" || d.decision === "train" ? "" : "warn") },
        { head: "version", cell: (d) => d.version }, { head: "before", cell: (d) => d.former },
        { head: "why", class: "wide", cell: (d) => d.reason },
      ], decisions ?? [], "None yet."),
      el("h2", {}, "Runs"),
      table("Runs of the trainer.", [
        { head: "asked", class: "t", cell: (r) => when(r.requested_at) }, { head: "model", cell: (r) => r.model }, { head: "for", cell: (r) => r.asked_for },
        { head: "state", cell: (r) => pill(r.state, r.state === "completed" ? "good" : r.state === "failed" ? "bad" : "") },
        { head: "took", class: "n", cell: (r) => (r.ended_at ? `${Math.round((new Date(r.ended_at) - new Date(r.requested_at)) / 1000)} s` : "") },
        { head: "version", cell: (r) => r.version }, { head: "", class: "wide", cell: (r) => [r.reason, r.message].filter(Boolean).join(": ") },
      ], runs ?? [], "None yet."),
    ];
  },
};

const warehouse = {
  path: "warehouse", name: "Warehouse", every: 5000,
  load: async (_, signal) => ({ quality: (await ask("quality", signal)).rows, runs: (await ask("runs", signal)).rows }),
  draw: ({ quality, runs }) => [
    table("Quality reports, the newest first.", [
      { head: "at", class: "t", cell: (q) => when(q.made_at) }, { head: "load", class: "n", cell: (q) => q.load_id }, { head: "layer", cell: (q) => q.layer },
      { head: "", cell: (q) => pill(q.success ? "passed" : q.blocked ? "stopped the load" : "warned", q.success ? "good" : q.blocked ? "bad" : "warn") },
      { head: "checks", class: "n", cell: (q) => count(q.checks) },
      { head: "failed", class: "wide", cell: (q) => (q.failed ?? []).map((f) => f.expectation_config?.type ?? f.expectation_config?.expectation_type).join(", ") },
    ], quality, "No load was checked yet."),
    el("h2", {}, "Steps"),
    table("Runs of the warehouse's steps.", [
      { head: "at", class: "t", cell: (r) => when(r.started_at) }, { head: "step", cell: (r) => r.step },
      { head: "state", cell: (r) => pill(r.state, r.state === "succeeded" ? "good" : r.state === "running" ? "" : "bad") },
      { head: "rows", class: "n", cell: (r) => count(r.rows) }, { head: "took", class: "n", cell: (r) => (r.seconds === null ? "" : `${number(r.seconds)} s`) },
      { head: "object", class: "wide", cell: (r) => r.key }, { head: "", class: "wide", cell: (r) => r.error },
    ], runs, "No step ran yet."),
  ],
};

const alerts = {
  path: "alerts", name: "Alerts",
  load: (_, signal) => ask("alerts", signal),
  draw: ({ rows }) => table("Alerts, open ones first.", [
    { head: "state", cell: (a) => pill(a.state, a.state === "open" ? "warn" : "good") }, { head: "severity", cell: (a) => severity(a.severity) },
    { head: "rule", cell: (a) => a.rule }, { head: "what", class: "wide", cell: (a) => a.summary }, { head: "events", class: "n", cell: (a) => count(a.events) },
    { head: "raised", class: "t", cell: (a) => when(a.raised_at) }, { head: "resolved", class: "t", cell: (a) => when(a.resolved_at) },
  ], rows, "No alert was raised."),
};

const deadletters = {
  path: "deadletters", name: "Dead letters", every: 5000,
  load: async (parameters, signal) => ({ ...(await ask(`deadletters?${parameters}`, signal)), health: await ask("health", signal) }),
  draw({ deadletters: list, next, health }, _, again) {
    const replay = (l) => async () => {
      if ((await question("Send it again?", `Event ${l.id} goes to the Broker once more.`, "Send")) === null) return;
      try {
        await tell(`deadletters/${encodeURIComponent(l.key)}/replay`);
      } catch (err) {
        await question("It was not sent", `${err.source}: ${err.message}`, "Good");
      }
      again();
    };
    return [
      table("Events that could not be delivered or were refused.", [
        { head: "at", class: "t", cell: (l) => when(l.time) }, { head: "type", cell: (l) => l.type?.replace("dev.millrace.", "") }, { head: "status", class: "n", cell: (l) => l.code },
        { head: "why", class: "wide", cell: (l) => l.reason }, { head: "id", class: "wide", cell: (l) => l.id },
        { head: "", cell: (l) => el("button", { disabled: !health.changes, onclick: replay(l) }, l.replayed ? `Sent ${l.replayed.count} times, send again` : "Send again") },
      ], list, "None. Everything was delivered."),
      next ? el("p", {}, el("a", { href: `#/deadletters?after=${encodeURIComponent(next)}` }, "More")) : "",
    ];
  },
};

// brief is what one reads first of a hop.
function brief(data) {
  if (data?.event?.id) {
    const more = brief(data.data ?? {});
    return `${data.event.source} ${data.event.id}${more ? ` · ${more}` : ""}`;
  }
  const said = ["event", "event_type", "product_id", "price", "activity_count", "object", "server_id", "entity_id", "severity", "summary", "error_message", "model", "model_name", "model_version", "prediction", "actual_value", "cpu_usage_percent"];
  return said.filter((k) => ["string", "number"].includes(typeof data?.[k])).map((k) => (k.startsWith("event") ? data[k] : `${k.replaceAll("_", " ")} ${typeof data[k] === "number" && !k.endsWith("id") ? number(data[k]) : data[k]}`)).join(", ");
}

// later is how long after the first hop another was.
function later(ms) {
  if (ms < 10000) return `+${Math.round(ms)} ms`;
  return ms < 7200000 ? `+${Math.round(ms / 1000)} s` : `+${Math.round(ms / 3600000)} h`;
}

const story = {
  path: "story", name: "Story", every: 10000,
  load: (parameters, signal) => (parameters.get("q") ? ask(`story?${new URLSearchParams({ q: parameters.get("q") })}`, signal) : Promise.resolve({})),
  draw({ asked, hops, unknown, searchedBack }, parameters) {
    const what = "event id, trace id, record hash, session or server";
    const field = el("input", { id: "q", name: "q", value: parameters.get("q") ?? "", "aria-label": what, placeholder: what });
    return [
      el("form", { class: "line", onsubmit: (e) => { e.preventDefault(); field.blur(); location.hash = `#/story?${new URLSearchParams({ q: field.value.trim() })}`; } }, field, el("button", {}, "Tell")),
      unknown ? el("p", { class: "bad" }, `Not told by ${unknown}.`) : "",
      !asked ? el("p", { class: "quiet" }, "What did one event become? Name it, its trace, its session or its server.")
        : !hops.length ? el("p", { class: "quiet" }, `Nothing is known of ${asked}${searchedBack ? `; Kafka was searched back to ${clock(searchedBack)}` : ""}. One that was not delivered is among the dead letters.`)
          : el("ol", { class: "story" }, hops.map((h) => el("li", {},
            el("span", { class: "t" }, when(h.at)), " ", el("span", { class: "quiet later" }, later(new Date(h.at) - new Date(hops[0].at))), " ", el("strong", {}, h.what), " ", pill(h.where),
            el("div", { class: "brief" }, brief(h.data)),
            el("details", {}, el("summary", {}, "all of it"), el("pre", {}, JSON.stringify(h.data, null, 1)))))),
    ];
  },
};

export const views = [overview, invalid, predictions, anomalies, drift, models, warehouse, alerts, deadletters, story];
