// The event graph in layers from left to right: who emits stands before who takes.
import { svg, rate, count } from "./dom.js";

const WIDTH = 176, HEIGHT = 40, GAP_X = 92, GAP_Y = 12;

// layers gives each node its column: the longest way to it that no event takes twice.
function layers(nodes, edges) {
  const column = new Map(nodes.map((n) => [n.key, 0]));
  const out = Map.groupBy(edges, (e) => e.from);
  const open = new Set();
  const seen = new Set();
  const walk = (key, depth) => {
    if (open.has(key) || (seen.has(key) && depth <= column.get(key))) return;
    seen.add(key);
    column.set(key, depth);
    open.add(key);
    for (const e of out.get(key) ?? []) if (e.to !== key) walk(e.to, depth + 1);
    open.delete(key);
  };
  const entered = new Set(edges.filter((e) => e.from !== e.to).map((e) => e.to));
  for (const n of nodes) if (!entered.has(n.key)) walk(n.key, 0);
  return column;
}

// place orders the nodes of each column by where their neighbours stand.
function place(nodes, edges) {
  const column = layers(nodes, edges);
  // A source stands right before the first that it feeds, a sink's topic right behind.
  for (const n of nodes) {
    const next = edges.filter((e) => e.from === n.key && e.to !== n.key).map((e) => column.get(e.to));
    if (next.length && !edges.some((e) => e.to === n.key)) column.set(n.key, Math.max(0, Math.min(...next) - 1));
  }
  for (const n of nodes) {
    if (n.kind === "topic" && edges.some((e) => e.from === n.key)) {
      const next = edges.filter((e) => e.from === n.key).map((e) => column.get(e.to));
      column.set(n.key, Math.max(0, Math.min(...next) - 1));
    }
  }
  const columns = [];
  for (const n of nodes) (columns[column.get(n.key)] ??= []).push(n.key);
  const all = columns.filter(Boolean);
  const at = new Map();
  const settle = () => all.forEach((c) => c.forEach((key, i) => at.set(key, i - c.length / 2)));
  settle();
  for (let round = 0; round < 8; round++) {
    for (const c of all) {
      const mean = (key) => {
        const near = edges.flatMap((e) => (e.from === key ? [e.to] : e.to === key ? [e.from] : [])).filter((k) => k !== key).map((k) => at.get(k));
        return near.length ? near.reduce((a, b) => a + b, 0) / near.length : at.get(key);
      };
      const means = new Map(c.map((key) => [key, mean(key)]));
      c.sort((a, b) => means.get(a) - means.get(b) || (a < b ? -1 : 1));
      settle();
    }
  }
  const tallest = Math.max(...all.map((c) => c.length));
  const xy = new Map();
  all.forEach((c, i) => c.forEach((key, j) => xy.set(key, {
    x: 10 + i * (WIDTH + GAP_X),
    y: 10 + ((tallest - c.length) / 2 + j) * (HEIGHT + GAP_Y),
  })));
  return { xy, width: 20 + all.length * (WIDTH + GAP_X) - GAP_X, height: 20 + tallest * (HEIGHT + GAP_Y) };
}

const short = new Intl.NumberFormat("en", { notation: "compact" });

// room finds where on a curve lines of text can stand without covering what stands
// already, and takes it; undefined where there is none.
function room(curve, lines, taken) {
  const half = 3 * Math.max(...lines.map((l) => l.length)) + 3;
  const high = 5.5 * lines.length + 2;
  for (const t of [0.5, 0.4, 0.6, 0.3, 0.7, 0.22, 0.78, 0.15, 0.85]) {
    const [x, y] = [0, 1].map((i) => (1 - t) ** 3 * curve[0][i] + 3 * (1 - t) ** 2 * t * curve[1][i] + 3 * (1 - t) * t ** 2 * curve[2][i] + t ** 3 * curve[3][i]);
    const box = { x0: x - half, x1: x + half, y0: y - high, y1: y + high };
    if (taken.some((b) => b.x0 < box.x1 && box.x0 < b.x1 && b.y0 < box.y1 && box.y0 < b.y1)) continue;
    taken.push(box);
    return box;
  }
  return undefined;
}

// drawGraph draws the nodes and edges with what flows: flow(edge) gives {perSecond,
// lag, failing}, node(n) gives {ill, text}.
export function drawGraph(graph, flow, node) {
  const { xy, width, height } = place(graph.nodes, graph.edges);
  // As wide as there is room, and to be scrolled where that is too little to read.
  const s = svg("svg", { viewBox: `0 0 ${width} ${height}`, width: "100%", role: "img", "aria-label": "The event graph; the table below says the same in words." });
  s.style.minWidth = `${Math.round(width * 0.66)}px`;
  const taken = [...xy.values()].map(({ x, y }) => ({ x0: x, x1: x + WIDTH, y0: y, y1: y + HEIGHT }));
  const labels = [];
  const labelled = new Set();
  for (const e of graph.edges) {
    const [a, b] = [xy.get(e.from), xy.get(e.to)];
    const f = flow(e) ?? {};
    const kind = f.failing ? "fails" : f.lag > 5000 ? "late" : f.perSecond > 0 ? "flows" : "";
    const [x1, y1, x2, y2] = [a.x + WIDTH, a.y + HEIGHT / 2, b.x, b.y + HEIGHT / 2];
    const bend = Math.max(30, Math.abs(x2 - x1) / 2);
    const curve = x2 > x1 ? [[x1, y1], [x1 + bend, y1], [x2 - bend, y2], [x2, y2]] : [[x1, y1], [x1 + 60, y1 + 50], [x2 - 60, y2 + 50], [x2, y2]];
    const d = e.from === e.to ? `M${a.x + WIDTH - 30} ${a.y}c10 -16 30 -16 30 ${HEIGHT / 2}` : `M${curve[0]}C${curve.slice(1).join(" ")}`;
    s.append(svg("path", { class: `edge ${kind}`, d, "stroke-width": 1.2 + Math.min(5, Math.log10(1 + (f.perSecond ?? 0))) },
      svg("title", {}, `${e.trigger ?? "topic"}: ${rate(f.perSecond)}${f.lag ? `, lag ${count(f.lag)}` : ""}${f.failing ? `, ${f.failing}` : ""}`)));
    // What several emitters give to one Trigger is told once.
    const said = [f.failing ? "fails" : f.perSecond > 0 || f.lag > 0 ? rate(f.perSecond) : "", f.lag >= 100 ? `lag ${short.format(f.lag)}` : ""].filter(Boolean);
    if (!said.length || e.from === e.to || labelled.has(e.trigger ?? `${e.from} ${e.to}`)) continue;
    const at = room(curve, said, taken);
    if (!at) continue;
    labelled.add(e.trigger ?? `${e.from} ${e.to}`);
    labels.push(svg("rect", { class: "behind", x: at.x0 + 2, y: at.y0 + 1, width: at.x1 - at.x0 - 4, height: at.y1 - at.y0 - 2, rx: 3 }),
      svg("text", { class: `label ${kind}`, "text-anchor": "middle" }, said.map((text, i) => svg("tspan", { x: (at.x0 + at.x1) / 2, y: at.y0 + 10 + 11 * i }, text))));
  }
  s.append(...labels);
  for (const n of graph.nodes) {
    const { x, y } = xy.get(n.key);
    const is = node(n) ?? {};
    const name = n.name.length > 24 ? `…${n.name.slice(-23)}` : n.name;
    s.append(svg("g", { class: `node ${n.kind}${is.ill ? " ill" : ""}${is.absent ? " absent" : ""}`, transform: `translate(${x} ${y})` },
      svg("rect", { width: WIDTH, height: HEIGHT, rx: n.kind === "Service" ? 8 : 2 }),
      svg("text", { x: 10, y: 17 }, name),
      svg("text", { x: 10, y: 32, class: "quiet" }, is.text ?? n.schedule ?? { KafkaSource: "source", KafkaSink: "sink", topic: "topic", Client: "over HTTP", JobSink: "job" }[n.kind] ?? ""),
      svg("title", {}, `${n.kind} ${n.name}`)));
  }
  return s;
}
