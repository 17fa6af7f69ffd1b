// One image, as large as one likes: wheel, fingers, keys or buttons; what is under the pointer is told.

const view = { number: 0, scale: 1, least: .1, most: 40, x: 0, y: 0, size: [0, 0], fitted: true, read: -1, fingers: new Map() };
const TITLE = document.title;
// While the viewer is open it has the panel, and this has the panel's place.
const gap = element("div");

function open(number) {
  const before = view.number;
  view.number = number;
  view.read = -1;
  forget(before);
  if (!$("viewer").open) {
    const panel = $("panel");
    gap.style.height = `${panel.offsetHeight}px`;
    panel.replaceWith(gap);
    $("viewport").before(panel);
    $("viewer").showModal();
    $("viewport").focus();
  }
  const image = DATA.images[number], made = stage(image);
  made.querySelector("img").setAttribute("src", drawing(image).picture);
  $("viewport").replaceChildren(made);
  document.title = `${image.id} - ${TITLE}`;
  drawViewer();
  fit();
  $("told").textContent = hint();
}

function closed() {
  gap.replaceWith($("panel"));
  $("viewport").replaceChildren();
  document.title = TITLE;
  forget(view.number);
}

/** Give an image's outlines back, unless they are to be seen. */
function forget(number) {
  if ($("viewer").open && number === view.number) return;
  if (!cards.has(number) || !cards.get(number).dataset.near) outlines.delete(DATA.images[number]);
}

function drawViewer() {
  const image = DATA.images[view.number];
  $("viewer-title").textContent = caption(view.number);
  paint($("viewport").querySelector("canvas"), image, state, false);
}

function hint() {
  return matchMedia("(pointer: coarse)").matches
    ? "Pinch to zoom, drag to move, tap a cell to read it."
    : "Wheel, pinch or + and - zoom; drag or Shift and arrows move; arrows change the image; point at a cell to read it, or n and p for the next and the previous.";
}

function place() {
  const image = DATA.images[view.number], shown = $("viewport").querySelector(".stage");
  shown.style.width = `${image.w}px`;
  shown.style.height = `${image.h}px`;
  shown.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
  const ring = $("viewport").querySelector(".ring");
  if (ring) {
    const { left, top, width, height } = view.ringed;
    ring.style.transform = `translate(${view.x + left * view.scale}px, ${view.y + top * view.scale}px)`;
    [ring.style.width, ring.style.height] = [`${width * view.scale}px`, `${height * view.scale}px`];
  }
  view.fitted = false;
}

function fit() {
  const image = DATA.images[view.number], port = $("viewport");
  view.scale = whole();
  [view.least, view.most] = [Math.min(.1, view.scale), Math.max(40, view.scale)];
  view.x = (port.clientWidth - image.w * view.scale) / 2;
  view.y = (port.clientHeight - image.h * view.scale) / 2;
  place();
  view.fitted = true;
}

/** The scale at which the whole image is to be seen. */
function whole() {
  const image = DATA.images[view.number], port = $("viewport");
  return Math.min(port.clientWidth / image.w, port.clientHeight / image.h);
}

/** After the viewport has changed its size: what was in its middle stays there. */
function resized() {
  const port = $("viewport"), [width, height] = view.size;
  view.size = [port.clientWidth, port.clientHeight];
  if (!$("viewer").open) return;
  if (view.fitted) fit();
  else pan((port.clientWidth - width) / 2, (port.clientHeight - height) / 2);
}

/** Zoom so that the point (x, y) of the viewport stays where it is. */
function zoom(factor, x = $("viewport").clientWidth / 2, y = $("viewport").clientHeight / 2) {
  const scale = Math.min(view.most, Math.max(view.least, view.scale * factor));
  view.x = x - (x - view.x) * (scale / view.scale);
  view.y = y - (y - view.y) * (scale / view.scale);
  view.scale = scale;
  place();
}

function step(by) {
  const wanted = order();
  const at = wanted.indexOf(view.number);
  open(wanted[(at + by + wanted.length) % wanted.length]);
}

/** What can be read in turn: the visible found cells, then the missed ones where those are drawn. */
function readable(image) {
  const { visible } = results[view.number];
  const cells = [...visible.keys()].filter((cell) => visible[cell]).map((cell) => ({ cell, truth: -1 }));
  if (!image.truth || state.mode !== "match") return cells;
  const hit = new Set(match(image, visible, state.level));
  return [...cells, ...image.truth.area.flatMap((_, truth) => (hit.has(truth) ? [] : [{ cell: -1, truth }]))];
}

/** The scale at which a box is half of the view, if that is neither too coarse nor less than the whole image. */
function closeUp({ width, height }) {
  const port = $("viewport");
  return Math.max(whole(), Math.min(12, port.clientWidth / width / 2, port.clientHeight / height / 2));
}

/** Tell the next cell, or the previous one, with it ringed, large and in the middle of the view. */
function read(by) {
  const image = DATA.images[view.number], some = readable(image);
  if (!some.length) { $("told").textContent = "no cells"; return; }
  view.read = view.read < 0 && by < 0 ? some.length - 1 : (view.read + by + some.length) % some.length;
  const { cell, truth } = some[view.read];
  const { runs } = cell >= 0 ? shapes(image).cells[cell] : shapes(image).truth[truth];
  const words = [`${view.read + 1} of ${some.length}`, ...wordsOf(image, cell, truth)];
  const port = $("viewport");
  port.querySelectorAll(".ring").forEach((ring) => ring.remove());
  if (runs.length) {
    view.ringed = boxOf(runs, image.w);
    const [x, y] = [view.ringed.left + view.ringed.width / 2, view.ringed.top + view.ringed.height / 2];
    words.push(`middle x ${Math.floor(x) * image.step}, y ${Math.floor(y) * image.step}`);
    port.append(element("span", { class: "ring" }));
    view.scale = closeUp(view.ringed);
    [view.x, view.y] = [port.clientWidth / 2 - x * view.scale, port.clientHeight / 2 - y * view.scale];
    place();
  }
  $("told").textContent = words.join("; ");
}

function boxOf(runs, across) {
  let left = across, right = 0, top = Infinity, bottom = 0;
  for (let i = 0; i < runs.length; i += 2) {
    const first = runs[i], last = first + runs[i + 1] - 1;
    const up = Math.floor(first / across), down = Math.floor(last / across);
    left = Math.min(left, up < down ? 0 : first % across);
    right = Math.max(right, up < down ? across : last % across + 1);
    top = Math.min(top, up);
    bottom = Math.max(bottom, down + 1);
  }
  return { left, top, width: right - left, height: bottom - top };
}

function pan(x, y) { view.x += x; view.y += y; place(); }

const ACTIONS = {
  previous: () => step(-1), next: () => step(1), in: () => zoom(1.4), out: () => zoom(1 / 1.4), fit, nextCell: () => read(1), previousCell: () => read(-1), close: () => $("viewer").close(),
};
const KEYS = { ArrowLeft: "previous", ArrowRight: "next", "+": "in", "=": "in", "-": "out", 0: "fit", n: "nextCell", p: "previousCell" };
const PANS = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };

function tell(event) {
  const image = DATA.images[view.number], port = $("viewport").getBoundingClientRect();
  const x = Math.floor((event.clientX - port.left - view.x) / view.scale);
  const y = Math.floor((event.clientY - port.top - view.y) / view.scale);
  if (x < 0 || y < 0 || x >= image.w || y >= image.h) return;
  const { cell, truth } = cellAt(image, results[view.number].visible, x, y);
  $("told").textContent = [`x ${x * image.step}, y ${y * image.step}`, ...wordsOf(image, cell, truth)].join("; ");
}

/** What there is to say of a found cell and of a true one; -1 for none. */
function wordsOf(image, cell, truth) {
  const { visible } = results[view.number];
  const words = [];
  if (cell >= 0) {
    words.push(`found ${DATA.classes[image.cells.label[cell] - 1]}, ${image.cells.area[cell]} pixels`);
    if (DATA.scored) words.push(`score ${image.cells.score[cell].toFixed(3)}`);
    const best = bestIou(image, (t, c) => c === cell);
    if (image.truth) words.push(best ? `IoU ${best.toFixed(3)} with the nearest true cell` : "no true cell with an IoU over 0.5");
  }
  if (truth >= 0) {
    const best = bestIou(image, (t, c) => t === truth && visible[c]);
    words.push(`true cell, ${image.truth.area[truth]} pixels, ${best ? `found with IoU ${best.toFixed(3)}` : "not found with an IoU over 0.5"}`);
  }
  return words;
}

function bestIou(image, wanted) {
  let best = 0;
  for (let i = 0; i < image.pairs.length; i += 4) {
    const [t, c, shared, union] = image.pairs.slice(i, i + 4);
    if (wanted(t, c)) best = Math.max(best, shared / union);
  }
  return best;
}

function drag(event) {
  const before = view.fingers.get(event.pointerId);
  if (!before) { tell(event); return; }
  const others = [...view.fingers].filter(([id]) => id !== event.pointerId).map(([, p]) => p);
  const port = $("viewport").getBoundingClientRect();
  if (others.length === 0) pan(event.clientX - before[0], event.clientY - before[1]);
  else {
    const [ox, oy] = others[0];
    const far = (px, py) => Math.hypot(px - ox, py - oy) || 1;
    zoom(far(event.clientX, event.clientY) / far(...before), (event.clientX + ox) / 2 - port.left, (event.clientY + oy) / 2 - port.top);
  }
  view.fingers.set(event.pointerId, [event.clientX, event.clientY]);
}

function buildViewer() {
  const port = $("viewport");
  $("viewer").addEventListener("click", (event) => { const act = ACTIONS[event.target.dataset.do]; if (act) act(); });
  $("viewer").addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return; // the browser's own
    if (event.target.matches("input, textarea") && !"np".includes(event.key)) return; // a slider's arrows move it
    if (event.shiftKey && PANS[event.key]) pan(...PANS[event.key]);
    else if (KEYS[event.key]) ACTIONS[KEYS[event.key]]();
    else return;
    event.preventDefault();
  });
  port.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = port.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY / 400), event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });
  port.addEventListener("pointerdown", (event) => {
    port.setPointerCapture(event.pointerId);
    view.fingers.set(event.pointerId, [event.clientX, event.clientY]);
    tell(event);
  });
  port.addEventListener("pointermove", drag);
  for (const end of ["pointerup", "pointercancel"]) port.addEventListener(end, (event) => view.fingers.delete(event.pointerId));
  new ResizeObserver(resized).observe(port);
  $("viewer").addEventListener("close", closed);
}

resume();
buildControls();
buildPage();
buildViewer();
refresh();
writeAbout();
