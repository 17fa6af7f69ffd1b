"use strict";
// What the page knows and how it is counted: decoding, which cells show, matches, the score.

const DATA = JSON.parse(document.getElementById("content").textContent);
// Scores are float32, as the rules compare them.
for (const image of DATA.images) {
  if (image.cells.score) image.cells.score = image.cells.score.map(Math.fround);
  if (image.votes) image.votes = image.votes.map((scores) => scores.map(Math.fround));
}
const LEVELS = [10, 11, 12, 13, 14, 15, 16, 17, 18, 19]; // IoU thresholds in twentieths
// Of how many of the levels each pair's IoU is over.
for (const image of DATA.images) {
  const { pairs } = image;
  image.over = Uint8Array.from({ length: pairs.length / 4 }, (_, i) =>
    LEVELS.filter((level) => 20 * pairs[4 * i + 2] > level * pairs[4 * i + 3]).length);
}

/** Starts and lengths in turn, of runs packed as base64 of variable-length gaps and lengths. */
function unpack(text) {
  const bytes = atob(text);
  const numbers = [];
  let value = 0, shift = 0;
  for (let i = 0; i < bytes.length; i++) {
    const byte = bytes.charCodeAt(i);
    value += (byte & 127) * 2 ** shift;
    shift += 7;
    if (byte < 128) { numbers.push(value); value = 0; shift = 0; }
  }
  let end = 0;
  for (let i = 0; i < numbers.length; i += 2) {
    numbers[i] += end;
    end = numbers[i] + numbers[i + 1];
  }
  return numbers;
}

/** The label that the image's cells agree on, by the rules' consensus; 0 where there is none. */
function leader(image, floors) {
  if (DATA.consensus === "off" || !image.votes) return 0;
  let best = [-1, -1, 0]; // scores of 0 have a vote, too
  image.votes.forEach((scores, index) => {
    const voters = scores.filter((score) => score >= Math.fround(floors[index]));
    const sum = voters.reduce((a, b) => a + b, 0);
    const cubes = scores.reduce((a, b) => a + b * b * b, 0);
    const rank = { count: voters.length, score_sum: sum, surest: cubes }[DATA.consensus];
    if (voters.length && (rank > best[0] || (rank === best[0] && sum > best[1]))) best = [rank, sum, index + 1];
  });
  return best[2];
}

/** For each cell of the image whether it shows under these score thresholds, one a class. */
function shown(image, floors) {
  if (!DATA.scored) return image.cells.label.map(() => true);
  const winner = leader(image, floors);
  return image.cells.label.map((label, c) =>
    (!winner || label === winner) && (image.cells.fixed[c] === 1 || image.cells.score[c] >= Math.fround(floors[label - 1])));
}

/** The true cell of each found one, or -1: as many pairs as can be made with IoU > level / 20. */
function match(image, visible, level) {
  const truthOf = new Int32Array(visible.length).fill(-1);
  const partners = new Map();
  for (let i = 0; i < image.pairs.length; i += 4) {
    const [t, c, shared, union] = image.pairs.slice(i, i + 4);
    if (visible[c] && 20 * shared > level * union) {
      if (!partners.has(t)) partners.set(t, []);
      partners.get(t).push(c);
    }
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
  const found = visible.filter(Boolean).length;
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
