// The page's own charts: precision, scores and areas by class, and the score against a threshold.

let mays = []; // for each image which of its cells may show, by the consensus
let curves = []; // of the floors that `curvesOf` tells
let curvesOf = "";

/** For each cell of the image whether its class may show now, whatever its score; 1 or 0. */
function candidates(image) {
  const winner = leader(image, state.floors);
  return Uint8Array.from(image.cells.label, (label) => (!winner || label === winner ? 1 : 0));
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
  const labels = labelsThere();
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
  charts.replaceChildren(...made, countTable(labels));
}

/** The numbers follow a slider at once; the charts do when it rests. */
function writeCounts() {
  $("counts").closest("figure").replaceWith(countTable(labelsThere()));
}

/** The labels that some image's candidates have. */
function labelsThere() {
  return DATA.classes.map((_, k) => k + 1).filter((label) => DATA.images.some((image) => image.cells.label.includes(label)));
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

/** How the score would go, if any, and all charts: longer than a slider's step, so they come once it rests. */
function writeFigures() {
  const key = String(state.floors);
  if (DATA.truth && DATA.scored && key !== curvesOf) {
    curves = labelsThere().map(thresholdCurve);
    curvesOf = key;
  }
  writeCharts();
}

function thresholdCurve(label) {
  const chosen = state.floors[label - 1];
  const every = [...new Set([...Array.from({ length: 21 }, (_, i) => i / 20), chosen])].sort((a, b) => a - b);
  const points = curve(state.floors, label, every).map((score, i) => [every[i], score]);
  return { label, points, chosen, at: points.find((p) => p[0] === chosen)[1] };
}
