// Line charts as SVG, readable without colours: each says in words what it shows.
import { el, svg, number } from "./dom.js";

const W = 900, H = 220, LEFT = 56, BOTTOM = 22, TOP = 10;

// chart draws lines of points {t, v, low, high}, dashed thresholds {v, name}, and marks
// {t, v, name}.
export function chart(title, lines, { thresholds = [], marks = [], unit = "" } = {}) {
  const points = lines.flatMap((l) => l.points);
  if (!points.length) return el("p", { class: "quiet" }, `${title}: nothing yet.`);
  const times = [...points, ...marks].map((p) => new Date(p.t).getTime());
  const values = [...points.flatMap((p) => [p.low ?? p.v, p.high ?? p.v]), ...marks.map((m) => m.v), ...thresholds.map((t) => t.v)].filter(Number.isFinite);
  const [t0, t1] = [Math.min(...times), Math.max(...times)];
  let [v0, v1] = [Math.min(...values), Math.max(...values)];
  if (v0 === v1) [v0, v1] = [v0 - 1, v1 + 1];
  const x = (t) => LEFT + ((new Date(t).getTime() - t0) / Math.max(1, t1 - t0)) * (W - LEFT - 10);
  const y = (v) => TOP + (1 - (v - v0) / (v1 - v0)) * (H - TOP - BOTTOM);
  const clock = (t) => new Date(t).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
  const label = `${title}: ${points.length} points, ${number(v0)} to ${number(v1)} ${unit}, ${clock(t0)} to ${clock(t1)}` +
    (marks.length ? `, ${marks.length} marked` : "");
  const s = svg("svg", { viewBox: `0 0 ${W} ${H}`, width: "100%", role: "img", "aria-label": label });
  for (const share of [0, 0.5, 1]) {
    const v = v0 + share * (v1 - v0);
    s.append(svg("line", { class: "axis", x1: LEFT, x2: W - 10, y1: y(v), y2: y(v) }),
      svg("text", { class: "quiet", x: LEFT - 6, y: y(v) + 4, "text-anchor": "end" }, number(Number(v.toPrecision(3)))));
  }
  s.append(svg("text", { class: "quiet", x: LEFT, y: H - 5 }, clock(t0)), svg("text", { class: "quiet", x: W - 10, y: H - 5, "text-anchor": "end" }, clock(t1)));
  for (const { points: list } of lines) {
    if (list.some((p) => p.low !== undefined)) {
      s.append(svg("path", { class: "band", d: `M${list.map((p) => `${x(p.t)} ${y(p.high)}`).join("L")}L${list.toReversed().map((p) => `${x(p.t)} ${y(p.low)}`).join("L")}Z` }));
    }
    s.append(svg("path", { class: "series", d: `M${list.map((p) => `${x(p.t).toFixed(1)} ${y(p.v).toFixed(1)}`).join("L")}` }));
  }
  for (const t of thresholds) {
    s.append(svg("line", { class: "threshold", x1: LEFT, x2: W - 10, y1: y(t.v), y2: y(t.v) }),
      svg("text", { class: "quiet", x: W - 12, y: y(t.v) - 4, "text-anchor": "end" }, t.name));
  }
  for (const m of marks) s.append(svg("circle", { class: "point", cx: x(m.t), cy: y(m.v), r: 4 }, svg("title", {}, m.name)));
  return el("figure", { class: "card" }, el("figcaption", {}, title), s);
}
