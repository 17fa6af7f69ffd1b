// One image, as large as one likes: wheel, fingers, keys or buttons; what is under the pointer is told.

const view = { number: 0, scale: 1, x: 0, y: 0, fingers: new Map() };

function open(number) {
  view.number = number;
  if (!$("viewer").open) $("viewer").showModal();
  $("viewport").replaceChildren(stage(DATA.images[number]));
  drawViewer();
  fit();
  $("viewport").focus();
}

function drawViewer() {
  const image = DATA.images[view.number];
  $("viewer-title").textContent = caption(view.number);
  paint($("viewport").querySelector("canvas"), image, state, false);
}

function place() {
  const image = DATA.images[view.number], shown = $("viewport").querySelector(".stage");
  shown.style.width = `${image.w}px`;
  shown.style.height = `${image.h}px`;
  shown.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
}

function fit() {
  const image = DATA.images[view.number], port = $("viewport");
  view.scale = Math.min(port.clientWidth / image.w, port.clientHeight / image.h);
  view.x = (port.clientWidth - image.w * view.scale) / 2;
  view.y = (port.clientHeight - image.h * view.scale) / 2;
  $("told").textContent = "Wheel, pinch or + and - zoom; drag or Shift and arrows move; arrows change the image; point at a cell to read it.";
  place();
}

/** Zoom so that the point (x, y) of the viewport stays where it is. */
function zoom(factor, x = $("viewport").clientWidth / 2, y = $("viewport").clientHeight / 2) {
  const scale = Math.min(40, Math.max(.1, view.scale * factor));
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

function pan(x, y) { view.x += x; view.y += y; place(); }

const ACTIONS = {
  previous: () => step(-1), next: () => step(1), in: () => zoom(1.4), out: () => zoom(1 / 1.4), fit, close: () => $("viewer").close(),
};
const KEYS = { ArrowLeft: "previous", ArrowRight: "next", "+": "in", "=": "in", "-": "out", 0: "fit" };
const PANS = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };

function tell(event) {
  const image = DATA.images[view.number], port = $("viewport").getBoundingClientRect();
  const x = Math.floor((event.clientX - port.left - view.x) / view.scale);
  const y = Math.floor((event.clientY - port.top - view.y) / view.scale);
  if (x < 0 || y < 0 || x >= image.w || y >= image.h) return;
  const { visible } = results[view.number];
  const { cell, truth } = cellAt(image, visible, x, y);
  const words = [`x ${x * image.step}, y ${y * image.step}`];
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
  $("told").textContent = words.join("; ");
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
  window.addEventListener("resize", () => { if ($("viewer").open) fit(); });
}

buildControls();
buildViewer();
refresh();
