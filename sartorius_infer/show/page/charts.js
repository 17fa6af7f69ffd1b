// Small charts as SVG: labelled axes with units, values written where they are.

const BOX = { w: 340, h: 190, left: 44, right: 20, top: 14, bottom: 36 };

function node(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/** An empty chart: {figure, svg, x, y} with scales from values to pixels, axes drawn. */
function chart(title, xs, ys) {
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  caption.textContent = title;
  const svg = node("svg", { viewBox: `0 0 ${BOX.w} ${BOX.h}`, role: "img", "aria-label": title });
  const bottom = BOX.h - BOX.bottom, right = BOX.w - BOX.right;
  const x = (v) => BOX.left + ((v - xs.low) / (xs.high - xs.low || 1)) * (right - BOX.left);
  const y = (v) => bottom - ((v - ys.low) / (ys.high - ys.low || 1)) * (bottom - BOX.top);
  for (const v of ys.ticks) {
    svg.append(node("line", { class: "grid", x1: BOX.left, x2: right, y1: y(v), y2: y(v) }));
    svg.append(node("text", { x: BOX.left - 5, y: y(v) + 4, "text-anchor": "end" }, ys.format(v)));
  }
  for (const v of xs.ticks) svg.append(node("text", { x: x(v), y: bottom + 13, "text-anchor": "middle" }, xs.format(v)));
  svg.append(node("path", { class: "axis", d: `M${BOX.left} ${BOX.top}V${bottom}H${right}` }));
  svg.append(node("text", { x: (BOX.left + right) / 2, y: BOX.h - 6, "text-anchor": "middle" }, xs.label));
  svg.append(node("text", { x: 11, y: (BOX.top + bottom) / 2, "text-anchor": "middle",
    transform: `rotate(-90 11 ${(BOX.top + bottom) / 2})` }, ys.label));
  figure.append(caption, svg);
  return { figure, svg, x, y, bottom };
}

/** Round steps of at least `least` from 0 to at least `high`, about `count` of them. */
function ticksTo(high, least = 0, count = 4) {
  if (!(high > 0)) return [0, 1];
  const raw = high / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= Math.max(raw, least));
  return Array.from({ length: Math.ceil(high / step - 1e-9) + 1 }, (_, i) => i * step);
}

const plain = (v) => String(+v.toFixed(4));

/** Counts in bins as stacked bars; series: {name, colour, counts}; `marks`: [value, text] upright lines. */
function bars(title, edges, series, xs, marks = []) {
  const totals = edges.slice(1).map((_, i) => series.reduce((sum, s) => sum + s.counts[i], 0));
  const ticks = ticksTo(Math.max(...totals), 1);
  const made = chart(title, { low: edges[0], high: edges[edges.length - 1], ...xs },
    { low: 0, high: ticks[ticks.length - 1], ticks, format: plain, label: "cells" });
  const base = totals.map(() => 0);
  const legend = document.createElement("p");
  legend.className = "hint";
  series.forEach((s) => {
    s.counts.forEach((count, i) => {
      if (!count) return;
      const top = made.y(base[i] + count), height = made.y(base[i]) - top;
      const bar = node("rect", { x: made.x(edges[i]) + .5, width: Math.max(1, made.x(edges[i + 1]) - made.x(edges[i]) - 1),
        y: top, height, fill: `rgb(${s.colour})`, stroke: "var(--ink)", "stroke-width": .5 });
      bar.append(node("title", {}, `${s.name}: ${count}`));
      made.svg.append(bar);
      base[i] += count;
    });
    const square = document.createElement("span");
    square.className = "swatch";
    square.style.background = `rgb(${s.colour})`;
    legend.append(square, ` ${s.name} ${s.counts.reduce((a, b) => a + b, 0)} `);
  });
  made.svg.before(legend);
  for (const [value, text] of marks) {
    made.svg.append(node("line", { class: "mark", x1: made.x(value), x2: made.x(value), y1: BOX.top, y2: made.bottom }));
    const left = made.x(value) > BOX.w * .65;
    made.svg.append(node("text", { x: made.x(value) + (left ? -3 : 3), y: BOX.top - 3, "text-anchor": left ? "end" : "start" }, text));
  }
  return made.figure;
}

/** Lines through points; series: {name, colour, points, named}; `named` points [x, y, text] are written out. */
function lines(title, series, xs, label) {
  const all = series.flatMap((s) => s.points.map((p) => p[1]));
  const ticks = ticksTo(Math.max(...all, .01));
  const made = chart(title, xs, { low: 0, high: ticks[ticks.length - 1], ticks, format: plain, label });
  const dashes = ["", "7 3", "2 3", "8 3 2 3"];
  const below = series.length > 5 ? document.createElement("p") : null; // so many names would cover the lines
  if (below) {
    below.className = "hint";
    made.figure.append(below);
  }
  series.forEach((s, n) => {
    const look = { stroke: `rgb(${s.colour})`, "stroke-width": 2.5, "stroke-dasharray": dashes[n % 4], fill: "none" };
    // A dark rim, since a light colour alone is lost on white paper, and a dark one on a dark screen.
    const stroke = (d) => {
      made.svg.append(node("path", { ...look, stroke: "var(--ink)", "stroke-width": 4, d }), node("path", { ...look, d }));
    };
    stroke(s.points.map(([a, b], i) => `${i ? "L" : "M"}${made.x(a)} ${made.y(b)}`).join(""));
    for (const [a, b, text] of s.named) {
      made.svg.append(node("circle", { cx: made.x(a), cy: made.y(b), r: 3.5, fill: `rgb(${s.colour})`, stroke: "var(--ink)" }));
      const left = made.x(a) > BOX.w * .65;
      made.svg.append(node("text", { x: made.x(a) + (left ? -6 : 6), y: made.y(b) - 6, "text-anchor": left ? "end" : "start" }, text));
    }
    if (!s.name) return;
    if (below) {
      const square = document.createElement("span");
      square.className = "swatch";
      square.style.background = `rgb(${s.colour})`;
      below.append(square, ` ${s.name} `);
      return;
    }
    const y = made.bottom - 8 - 15 * (series.length - 1 - n);
    stroke(`M${BOX.left + 8} ${y - 4}h26`);
    made.svg.append(node("text", { x: BOX.left + 40, y }, s.name));
  });
  return made.figure;
}

/** How many values fall into each bin; what lies outside joins the outermost. */
function histogram(values, edges) {
  const counts = new Array(edges.length - 1).fill(0);
  for (const v of values) {
    let bin = 0;
    while (bin < counts.length - 1 && v >= edges[bin + 1]) bin++;
    counts[bin]++;
  }
  return counts;
}
