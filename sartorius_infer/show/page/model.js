"use strict";
// What the page knows and how it is counted: decoding, which cells show, matches, the score.

const parsed = (node) => JSON.parse(node.textContent);
const DATA = parsed(document.getElementById("content"));
DATA.images = [...document.querySelectorAll("script.image")].map(parsed);
const drawings = [...document.querySelectorAll("script.drawing")];
DATA.images.forEach((image, number) => {
  image.number = number;
  // Scores are float32, as the rules compare them.
  if (image.cells.score) image.cells.score = Float32Array.from(image.cells.score);
  if (image.votes) image.votes = image.votes.map((scores) => Float32Array.from(scores));
});

/** The picture of an image and the runs of its cells, which are most of the page: read when they are shown. */
function drawing(image) { return parsed(drawings[image.number]); }

const LEVELS = [10, 11, 12, 13, 14, 15, 16, 17, 18, 19]; // IoU thresholds in twentieths
// Of how many of the levels each pair's IoU is over.
for (const image of DATA.images) {
  const { pairs } = image;
  image.over = new Uint8Array(pairs.length / 4);
  for (let i = 0; i < image.over.length; i++) {
    while (20 * pairs[4 * i + 2] > LEVELS[image.over[i]] * pairs[4 * i + 3]) image.over[i]++;
  }
}

// All of what follows is asked of every image at each step of a slider: plain loops, nothing made in them.

/** Starts and lengths in turn, of a mask's runs as `entries.packed` of the Python package writes them. */
function unpack(text, width) {
  const bytes = atob(text);
  const runs = [];
  let at = 0, start = 0, length = 0;
  const number = () => {
    let value = 0, shift = 0, byte;
    do {
      byte = bytes.charCodeAt(at++);
      value += (byte & 127) * 2 ** shift;
      shift += 7;
    } while (byte > 127);
    return value;
  };
  while (at < bytes.length) {
    const byte = bytes.charCodeAt(at++);
    if (byte) {
      start += width + (byte >> 4) - 8;
      length += (byte & 15) - 8;
    } else {
      start += length + number();
      length = number();
    }
    runs.push(start, length);
  }
  return runs;
}

/** The label that the image's cells agree on, by the rules' consensus; 0 where there is none. */
function leader(image, floors) {
  if (DATA.consensus === "off" || !image.votes) return 0;
  let winner = 0, most = -1, highest = -1; // scores of 0 have a vote, too
  image.votes.forEach((scores, index) => {
    const floor = Math.fround(floors[index]);
    let voters = 0, sum = 0, cubes = 0;
    for (const score of scores) {
      if (score >= floor) { voters++; sum += score; }
      cubes += score * score * score;
    }
    const rank = DATA.consensus === "count" ? voters : DATA.consensus === "surest" ? cubes : sum;
    if (voters && (rank > most || (rank === most && sum > highest))) [winner, most, highest] = [index + 1, rank, sum];
  });
  return winner;
}

/** For each cell of the image whether it shows under these score thresholds, one a class; 1 or 0. */
function shown(image, floors) {
  const { label, score, fixed } = image.cells, visible = new Uint8Array(label.length);
  if (!DATA.scored) return visible.fill(1);
  const winner = leader(image, floors), least = Float32Array.from(floors);
  for (let c = 0; c < label.length; c++) {
    if (!winner || label[c] === winner) visible[c] = fixed[c] || score[c] >= least[label[c] - 1] ? 1 : 0;
  }
  return visible;
}

/** The true cell of each found one, or -1: as many pairs as can be made with IoU > level / 20. */
function match(image, visible, level) {
  const truthOf = new Int32Array(visible.length).fill(-1), taken = new Uint8Array(image.truth.area.length);
  for (let i = 0; i < image.over.length; i++) {
    const t = image.pairs[4 * i], c = image.pairs[4 * i + 1];
    if (!visible[c] || image.over[i] <= level - LEVELS[0]) continue;
    if (taken[t] || truthOf[c] >= 0) return untangled(image, visible, level);
    taken[t] = 1;
    truthOf[c] = t;
  }
  return truthOf;
}

/** As `match`, where pairs have a cell in common, by augmenting paths. */
function untangled(image, visible, level) {
  const truthOf = new Int32Array(visible.length).fill(-1);
  const partners = new Map();
  for (let i = 0; i < image.over.length; i++) {
    const t = image.pairs[4 * i], c = image.pairs[4 * i + 1];
    if (!visible[c] || image.over[i] <= level - LEVELS[0]) continue;
    if (!partners.has(t)) partners.set(t, []);
    partners.get(t).push(c);
  }
  const place = (t, tried) => {
    for (const c of partners.get(t)) {
      if (tried.has(c)) continue;
      tried.add(c);
      if (truthOf[c] < 0 || place(truthOf[c], tried)) { truthOf[c] = t; return true; }
    }
    return false;
  };
  for (const t of partners.keys()) place(t, new Set());
  return truthOf;
}

/** The most pairs at each level; where those at the lowest are one to one, all are, and counting will do. */
function hits(image, visible) {
  const reached = new Array(LEVELS.length + 1).fill(0);
  const ofTruth = new Uint8Array(image.truth.area.length), ofCell = new Uint8Array(visible.length);
  for (let i = 0; i < image.over.length; i++) {
    const t = image.pairs[4 * i], c = image.pairs[4 * i + 1];
    if (!visible[c]) continue;
    if (ofTruth[t]++ || ofCell[c]++) {
      return LEVELS.map((level) => match(image, visible, level).reduce((n, partner) => n + (partner >= 0), 0));
    }
    reached[image.over[i]]++;
  }
  for (let k = LEVELS.length - 1; k >= 0; k--) reached[k] += reached[k + 1];
  return reached.slice(1);
}

/** How one image fares: visible cells, and with truth TP at each level, precisions and their mean. */
function examine(image, floors) {
  const visible = shown(image, floors);
  const found = visible.reduce((n, shows) => n + shows, 0);
  if (!image.truth) return { visible, found };
  const tp = hits(image, visible);
  const cells = image.truth.area.length;
  const precision = tp.map((n) => (cells + found - n ? n / (cells + found - n) : 1));
  return { visible, found, tp, cells, precision, ap: mean(precision) };
}

function mean(values) {
  return values.length ? values.reduce((a, b) => a + b, 0) / values.length : NaN;
}

/** The score of all images with one class's score threshold at each of the values. */
function curve(floors, label, values) {
  const rest = DATA.images.map((image) => examine(image, floors).ap);
  return values.map((value) => mean(DATA.images.map((image, i) => {
    if (!image.cells.label.includes(label)) return rest[i];
    return examine(image, floors.map((floor, k) => (k === label - 1 ? value : floor))).ap;
  })));
}
