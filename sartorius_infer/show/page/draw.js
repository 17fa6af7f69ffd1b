// Overlays: pixels of cells and of their outlines, painted on a canvas over the picture.

const HIT = [86, 180, 233], MISS = [240, 228, 66], ALARM = [213, 94, 0], TRUTH = [255, 255, 255];
const outlines = new WeakMap();

/** Runs of every found and true cell of an image and the pixels of their outlines, made once. */
function shapes(image) {
  if (!outlines.has(image)) {
    const taken = new Uint8Array(image.h * image.w), packed = drawing(image);
    const shape = (text) => {
      const runs = unpack(text, image.w);
      return { runs, edge: edgeOf(runs, taken, image.w, image.h) };
    };
    outlines.set(image, {
      cells: packed.cells.map(shape),
      truth: packed.truth.map(shape),
    });
  }
  return outlines.get(image);
}

/** The pixels of a cell with a 4-neighbour outside it; the image's border is no neighbour. */
function edgeOf(runs, taken, width, height) {
  const each = (visit) => {
    for (let i = 0; i < runs.length; i += 2) {
      for (let p = runs[i]; p < runs[i] + runs[i + 1]; p++) visit(p);
    }
  };
  const edge = [];
  each((p) => { taken[p] = 1; });
  each((p) => {
    const x = p % width;
    if ((x > 0 && !taken[p - 1]) || (x < width - 1 && !taken[p + 1]) ||
        (p >= width && !taken[p - width]) || (p < width * (height - 1) && !taken[p + width])) edge.push(p);
  });
  each((p) => { taken[p] = 0; });
  return edge;
}

/** What is drawn of an image: for each outline its shape, colour, whether it is dashed, and its fill. */
function strokes(image, state) {
  const { cells, truth } = shapes(image);
  const { visible } = examine(image, state.floors);
  const drawn = [];
  if (state.mode === "match" && image.truth) {
    const truthOf = match(image, visible, state.level);
    const hit = new Set(truthOf);
    truth.forEach((shape, t) => { if (!hit.has(t)) drawn.push({ shape, colour: MISS, dashed: true, fill: 0 }); });
    cells.forEach((shape, c) => {
      if (visible[c]) drawn.push({ shape, colour: truthOf[c] >= 0 ? HIT : ALARM, dashed: false, fill: 50 });
    });
  } else {
    cells.forEach((shape, c) => {
      const colour = DATA.colours[image.cells.label[c] - 1];
      if (visible[c]) drawn.push({ shape, colour, dashed: false, fill: 50 });
    });
  }
  if (state.truth) truth.forEach((shape) => drawn.push({ shape, colour: TRUTH, dashed: true, fill: 0 }));
  return drawn;
}

/** Paint an image's overlay; `thick` outlines survive being shown smaller than they are. */
function paint(canvas, image, state, thick) {
  canvas.width = image.w;
  canvas.height = image.h;
  const context = canvas.getContext("2d");
  const picture = context.createImageData(image.w, image.h);
  const pixels = new Uint32Array(picture.data.buffer);
  const word = ([r, g, b], alpha) => ((alpha << 24) | (b << 16) | (g << 8) | r) >>> 0;
  const drawn = strokes(image, state);
  for (const { shape, colour, fill } of drawn) {
    if (!fill) continue;
    const value = word(colour, fill);
    for (let i = 0; i < shape.runs.length; i += 2) pixels.fill(value, shape.runs[i], shape.runs[i] + shape.runs[i + 1]);
  }
  for (const { shape, colour, dashed } of drawn) {
    const value = word(colour, 255);
    for (const p of shape.edge) {
      const x = p % image.w, y = (p - x) / image.w;
      if (dashed && ((x + y) & 7) > 4) continue;
      pixels[p] = value;
      if (thick && x + 1 < image.w) pixels[p + 1] = value;
      if (thick && y + 1 < image.h) pixels[p + image.w] = value;
    }
  }
  context.putImageData(picture, 0, 0);
}

/** The number of the visible found cell at a pixel, or of the true one; the smallest where several are. */
function cellAt(image, visible, x, y) {
  const p = y * image.w + x;
  const holds = ({ runs }) => {
    for (let i = 0; i < runs.length; i += 2) if (runs[i] <= p && p < runs[i] + runs[i + 1]) return true;
    return false;
  };
  const { cells, truth } = shapes(image);
  const smallest = (some, areas, wanted) => {
    let best = -1;
    some.forEach((shape, n) => {
      if (wanted(n) && (best < 0 || areas[n] < areas[best]) && holds(shape)) best = n;
    });
    return best;
  };
  return {
    cell: smallest(cells, image.cells.area, (c) => visible[c]),
    truth: image.truth ? smallest(truth, image.truth.area, () => true) : -1,
  };
}
