// The page itself: controls, charts, table, gallery, viewer. One state, one redraw.

const state = {
  floors: [...DATA.floors], mode: DATA.truth ? "match" : "class", level: DATA.level, truth: false,
  sort: DATA.truth ? "ap" : "id", up: true,
};
const START = DATA.truth ? mean(DATA.images.map((image) => examine(image, DATA.floors).ap)) : NaN;
let results = [];
let mays = []; // for each image which of its cells may show, by the consensus
let curves = []; // of the floors that `curvesOf` tells
let curvesOf = "";
const $ = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

const swatch = (colour) => element("span", { class: "swatch", style: `background: rgb(${colour})` });

/** Two decimals, or as many more as the value needs: rules may lie between a slider's steps. */
function hundredths(value) {
  return +value.toFixed(2) === +value.toFixed(4) ? value.toFixed(2) : plain(value);
}

function slider(text, id, called, low, high, step, value, format, change) {
  const told = element("output", { for: id }, format(value));
  const input = element("input", { type: "range", id, min: low, max: high, step, value, "aria-label": called, "aria-valuetext": format(value), oninput: () => {
    told.textContent = format(+input.value);
    input.setAttribute("aria-valuetext", told.textContent);
    change(+input.value);
    refresh();
  } });
  return element("label", { title: called }, ...text, input, told);
}

function buildControls() {
  const box = $("controls");
  box.replaceChildren();
  if (DATA.truth) {
    const choice = (mode, ...text) => element("label", {}, element("input", {
      type: "radio", name: "mode", value: mode, ...(state.mode === mode ? { checked: "" } : {}),
      onchange: () => { state.mode = mode; refresh(); } }), ...text);
    box.append(
      choice("match", swatch(HIT), "hits ", swatch(MISS), "misses (dashed) ", swatch(ALARM), "false alarms"),
      choice("class", "classes"),
      slider(["IoU over"], "level", "IoU over which a found cell is a hit", .5, .95, .05, state.level / 20, (v) => v.toFixed(2), (v) => { state.level = Math.round(v * 20); }),
      element("label", {}, element("input", { type: "checkbox", id: "truth", ...(state.truth ? { checked: "" } : {}), onchange: (e) => { state.truth = e.target.checked; refresh(); } }),
        "all true outlines (white)"));
  }
  DATA.classes.forEach((name, k) => {
    const own = swatch(DATA.colours[k]);
    own.classList.add("of-class");
    const text = [own, name];
    if (!DATA.scored) { box.append(element("label", {}, ...text)); return; }
    box.append(slider(text, `floor-${k + 1}`, `${name}: score threshold`, 0, 1, .01, state.floors[k], hundredths, (v) => { state.floors[k] = v; }));
  });
  if (DATA.scored) box.append(element("button", { type: "button", id: "reset", onclick: () => { state.floors = [...DATA.floors]; buildControls(); refresh(); $("reset").focus(); } }, "thresholds as they were"));
}

function writeSummary() {
  const found = results.reduce((n, r) => n + r.found, 0);
  const line = $("summary");
  line.replaceChildren();
  if (DATA.truth && results.length) {
    const now = mean(results.map((r) => r.ap));
    const moved = Math.abs(now - START) > 5e-5 ? ` (${now > START ? "+" : "−"}${Math.abs(now - START).toFixed(4)} against the thresholds as they were)` : "";
    const cells = results.reduce((n, r) => n + r.cells, 0);
    line.append(element("b", { id: "score" }, now.toFixed(4)), ` mean average precision${moved}; at first `,
      `95 % interval ${DATA.interval[0].toFixed(4)} to ${DATA.interval[1].toFixed(4)} over images. ${cells} true cells, `);
  }
  line.append(element("span", { id: "found" }, String(found)), ` cells found in ${DATA.images.length} images.`);
}

/** For each cell of the image whether its class may show now, whatever its score. */
function candidates(image) {
  const winner = leader(image, state.floors);
  return image.cells.label.map((label) => !winner || label === winner);
}

/** What belongs to each class now: its images and the cells that may show in them. */
function ofClass(label, visit) {
  DATA.images.forEach((image, i) => {
    const may = mays[i];
    image.cells.label.forEach((own, c) => { if (own === label && may[c]) visit(image, i, c); });
  });
}

function scoreChart(name, label, hits) {
  const edges = Array.from({ length: 21 }, (_, i) => i / 20);
  const right = [], wrong = [];
  ofClass(label, (image, i, c) => (hits[i] && hits[i][c] >= 0 ? right : wrong).push(image.cells.score[c]));
  const series = DATA.truth
    ? [{ name: "hits", colour: HIT, counts: histogram(right, edges) }, { name: "false", colour: ALARM, counts: histogram(wrong, edges) }]
    : [{ name, colour: DATA.colours[label - 1], counts: histogram(wrong, edges) }];
  const floor = state.floors[label - 1];
  return bars(`${name}: scores of all candidates`, edges, series, { ticks: [0, .25, .5, .75, 1], format: plain, label: "score" }, [[floor, `threshold ${hundredths(floor)}`]]);
}

function areaChart(name, label) {
  const edges = Array.from({ length: 25 }, (_, i) => 1 + i / 8); // tenfold from 10 to 10,000 square pixels
  const log = (area) => Math.log10(Math.max(area, 1));
  const found = [], truth = [];
  ofClass(label, (image, i, c) => { if (results[i].visible[c]) found.push(log(image.cells.area[c])); });
  for (const { truth: known, type } of DATA.images) {
    if (known) known.area.forEach((area, t) => { if ((known.types ? known.types[t] : type) === name) truth.push(log(area)); });
  }
  const series = [{ name: "found", colour: DATA.colours[label - 1], counts: histogram(found, edges) }];
  const figure = bars(`${name}: areas of cells`, edges, series, { ticks: [1, 2, 3, 4], format: (v) => String(10 ** v), label: "area (pixels, log scale)" });
  const outside = found.filter((v) => v < 1 || v >= 4).length;
  if (outside) figure.append(element("p", { class: "hint" }, `outermost bars: with ${outside} below 10 or from 10,000 pixels on`));
  if (truth.length) figure.append(element("p", { class: "hint" }, `middle area: found ${middle(found)}, true ${middle(truth)} pixels`));
  return figure;
}

function middle(logs) {
  const sorted = [...logs].sort((a, b) => a - b);
  return sorted.length ? Math.round(10 ** sorted[sorted.length >> 1]) : "none,";
}

function precisionChart() {
  const points = LEVELS.map((level, k) => [level / 20, mean(results.map((r) => r.precision[k]))]);
  const named = points.map(([a, b]) => [a, b, a === state.level / 20 || a === .5 || a === .75 ? b.toFixed(3) : ""]).filter((p) => p[2]);
  return lines("Precision, TP / (TP + FP + FN), by IoU threshold", [{ colour: [0, 114, 178], points, named }],
    { low: .5, high: .95, ticks: [.5, .6, .7, .8, .9], format: plain, label: "IoU threshold" }, "mean precision");
}

function curveChart(title, series, xs) {
  const drawn = series.map((s) => ({ name: `${DATA.classes[s.label - 1]} ${plain(s.chosen)}: ${s.at.toFixed(4)}`,
    colour: DATA.colours[s.label - 1], points: s.points, named: [[s.chosen, s.at, ""]] }));
  return lines(title, drawn, xs, "score");
}

function writeCharts() {
  const charts = $("charts");
  const made = [];
  const hits = DATA.scored ? DATA.images.map((image, i) => (image.truth ? match(image, mays[i], state.level) : null)) : [];
  const labels = DATA.classes.map((_, k) => k + 1).filter((label) => DATA.images.some((image) => image.cells.label.includes(label)));
  if (DATA.truth && results.length) made.push(precisionChart());
  if (curvesOf === String(state.floors) && curves.length) made.push(curveChart("Score if one class's threshold moved", curves,
    { low: 0, high: 1, ticks: [0, .25, .5, .75, 1], format: plain, label: "score threshold" }));
  const areas = DATA.area_curves.map((c) => ({ ...c, at: c.points.find((p) => p[0] === c.chosen)[1] }));
  if (areas.length) {
    const high = Math.max(...areas.flatMap((c) => c.points.map((p) => p[0]))); // a chosen one may lie beyond the others'
    made.push(curveChart("Score if one class's minimum area moved", areas,
      { low: 0, high, ticks: ticksTo(high).filter((v) => v <= high), format: plain, label: "minimum area (pixels)" }));
  }
  for (const label of labels) {
    if (DATA.scored) made.push(scoreChart(DATA.classes[label - 1], label, hits));
    made.push(areaChart(DATA.classes[label - 1], label));
  }
  made.push(countTable(labels));
  charts.replaceChildren(...made);
}

function countTable(labels) {
  const rows = labels.map((label) => {
    let found = 0;
    const images = new Set();
    ofClass(label, (image, i, c) => { if (results[i].visible[c]) { found++; images.add(i); } });
    const each = images.size ? (found / images.size).toFixed(1) : "0";
    return element("tr", { "data-class": DATA.classes[label - 1] }, ...[DATA.classes[label - 1], found, images.size, each].map((v) => element("td", {}, String(v))));
  });
  const head = element("tr", {}, ...["class", "cells", "images", "an image"].map((v) => element("th", {}, v)));
  return element("figure", {}, element("figcaption", {}, "Cells found"), element("table", { id: "counts" }, head, ...rows));
}

/** Curves take longer than a slider's step: they are made once it rests. */
function writeCurves() {
  const key = String(state.floors);
  if (!DATA.truth || !DATA.scored || key === curvesOf) return;
  const values = Array.from({ length: 21 }, (_, i) => i / 20);
  curves = DATA.classes.map((_, k) => k + 1).filter((label) => DATA.images.some((image) => image.cells.label.includes(label))).map((label) => {
    const chosen = state.floors[label - 1];
    const every = [...new Set([...values, chosen])].sort((a, b) => a - b);
    const points = curve(state.floors, label, every).map((score, i) => [every[i], score]);
    return { label, points, chosen, at: points.find((p) => p[0] === chosen)[1] };
  });
  curvesOf = key;
  writeCharts();
}

const COLUMNS = [
  ["id", "image", (r, image) => image.id],
  ["type", "cell type", (r, image) => image.type],
  ["ap", "score", (r) => r.ap, (v) => v.toFixed(4)],
  ["cells", "true", (r) => r.cells],
  ["found", "found", (r) => r.found],
  ["tp", "hits", (r) => r.tp[state.level - 10]],
  ["fp", "false alarms", (r) => r.found - r.tp[state.level - 10]],
  ["fn", "misses", (r) => r.cells - r.tp[state.level - 10]],
].filter(([key]) => DATA.truth || key === "id" || key === "found");
const NAMES = new Set(["id", "type"]); // the columns of words, not of numbers

function order() {
  const [, , value] = COLUMNS.find(([key]) => key === state.sort);
  const keys = DATA.images.map((image, i) => value(results[i], image));
  const sign = state.up ? 1 : -1;
  return keys.map((_, i) => i).sort((a, b) => (keys[a] < keys[b] ? -sign : keys[a] > keys[b] ? sign : a - b));
}

function writeTable() {
  const head = element("tr", {}, ...COLUMNS.map(([key, text]) => element("th",
    { scope: "col", class: NAMES.has(key) ? "name" : "", ...(state.sort === key ? { "aria-sort": state.up ? "ascending" : "descending" } : {}) },
    element("button", { type: "button", "data-sort": key, onclick: () => {
      state.up = state.sort === key ? !state.up : true;
      state.sort = key;
      refresh();
      document.querySelector(`[data-sort=${key}]`).focus();
    } }, text))));
  const rows = order().map((i) => element("tr", {}, ...COLUMNS.map(([key, , value, format]) => {
    const told = value(results[i], DATA.images[i]);
    const text = format ? format(told) : String(told);
    return element("td", { class: NAMES.has(key) ? "name" : "" },
      key === "id" ? element("button", { type: "button", onclick: () => open(i) }, text) : text);
  })));
  $("images").replaceChildren(head, ...rows);
}

const near = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const canvas = target.querySelector("canvas"), image = DATA.images[+target.dataset.image];
    target.dataset.near = isIntersecting ? "yes" : "";
    if (isIntersecting) paint(canvas, image, state, true);
    else canvas.width = canvas.height = 0; // gives its memory back
  }
}, { rootMargin: "300px" });

// On paper there is no scrolling near: every picture has its cells.
const afar = (act) => cards.forEach((card, i) => { if (!card.dataset.near) act(card.querySelector("canvas"), DATA.images[i]); });
window.addEventListener("beforeprint", () => afar((canvas, image) => paint(canvas, image, state, true)));
window.addEventListener("afterprint", () => afar((canvas) => { canvas.width = canvas.height = 0; }));

function stage(image) {
  const picture = element("img", { src: image.picture, alt: "", decoding: "async" });
  return element("span", { class: "stage", style: `aspect-ratio: ${image.w} / ${image.h}` }, picture, element("canvas"));
}

const cards = DATA.images.map((image, i) => {
  const made = element("button", { type: "button", class: "card", "data-image": i, onclick: () => open(i) }, stage(image), element("span", { class: "text" }));
  near.observe(made);
  return made;
});

function caption(i) {
  const r = results[i], image = DATA.images[i];
  const counts = image.truth
    ? `score ${r.ap.toFixed(3)}: ${r.tp[state.level - 10]} hits, ${r.found - r.tp[state.level - 10]} false alarms, ${r.cells - r.tp[state.level - 10]} misses`
    : `${r.found} cells`;
  return `${image.id}${image.type ? ` (${image.type})` : ""}: ${counts}`;
}

function writeGallery() {
  const gallery = $("gallery"), wanted = order();
  cards.forEach((card, i) => {
    card.querySelector(".text").textContent = caption(i);
    if (card.dataset.near) paint(card.querySelector("canvas"), DATA.images[i], state, true);
  });
  if ([...gallery.children].some((card, place) => card !== cards[wanted[place]]) || !gallery.children.length) {
    gallery.replaceChildren(...wanted.map((i) => cards[i]));
  }
}

function refresh() {
  document.body.dataset.mode = state.mode;
  results = DATA.images.map((image) => examine(image, state.floors));
  mays = DATA.images.map(candidates);
  writeSummary();
  writeCharts();
  writeTable();
  writeGallery();
  if ($("viewer").open) drawViewer();
  clearTimeout(refresh.later);
  refresh.later = setTimeout(writeCurves, 250);
}
