// The page itself: pictures and table. One state, one redraw.

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
const WIDE = new Set(DATA.truth ? ["type", "cells", "found"] : []); // those that a narrow screen does without

function order() {
  const [, , value] = COLUMNS.find(([key]) => key === state.sort);
  const keys = DATA.images.map((image, i) => value(results[i], image));
  const sign = state.up ? 1 : -1;
  return keys.map((_, i) => i).sort((a, b) => (keys[a] < keys[b] ? -sign : keys[a] > keys[b] ? sign : a - b));
}

const look = (key) => `${NAMES.has(key) ? "name" : ""} ${WIDE.has(key) ? "wide" : ""}`.trim();

function writeTable() {
  const head = element("tr", {}, ...COLUMNS.map(([key, text]) => element("th",
    { scope: "col", class: look(key), ...(state.sort === key ? { "aria-sort": state.up ? "ascending" : "descending" } : {}) },
    element("button", { type: "button", "data-sort": key, onclick: () => {
      state.up = state.sort === key ? !state.up : true;
      state.sort = key;
      refresh();
      document.querySelector(`[data-sort=${key}]`).focus();
    } }, text))));
  const rows = order().map((i) => element("tr", {}, ...COLUMNS.map(([key, , value, format]) => {
    const told = value(results[i], DATA.images[i]);
    const text = format ? format(told) : String(told);
    return element("td", { class: look(key) },
      key === "id" ? element("button", { type: "button", onclick: () => open(i) }, text) : text);
  })));
  $("images").replaceChildren(head, ...rows);
}

/** A picture and its canvas; what is far from the screen holds neither, and gives its memory back. */
function fill(stage, image) {
  stage.querySelector("img").setAttribute("src", drawing(image).picture);
  paint(stage.querySelector("canvas"), image, state, true);
}

function empty(stage, image) {
  const canvas = stage.querySelector("canvas");
  canvas.width = canvas.height = 0;
  stage.querySelector("img").removeAttribute("src");
  forget(image.number);
}

const near = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    target.dataset.near = isIntersecting ? "yes" : "";
    (isIntersecting ? fill : empty)(target, DATA.images[+target.dataset.image]);
  }
}, { rootMargin: "300px" });

// On paper there is no scrolling near: every picture that the page has come to is there.
const afar = (act) => document.querySelectorAll("#gallery .card").forEach((card) => {
  if (!card.dataset.near) act(card, DATA.images[+card.dataset.image]);
});
window.addEventListener("beforeprint", () => afar(fill));
window.addEventListener("afterprint", () => afar(empty));

function stage(image) {
  const picture = element("img", { alt: `picture of ${image.id}`, decoding: "async" });
  return element("span", { class: "stage", style: `aspect-ratio: ${image.w} / ${image.h}` }, picture, element("canvas"));
}

const BATCH = 24; // pictures that come at once: table and charts are to stay within reach
let wanted = BATCH;
const cards = new Map();

function card(i) {
  if (!cards.has(i)) {
    const made = element("button", { type: "button", class: "card", "data-image": i, onclick: () => open(i) }, stage(DATA.images[i]), element("span", { class: "text" }));
    near.observe(made);
    cards.set(i, made);
  }
  return cards.get(i);
}

function caption(i) {
  const r = results[i], image = DATA.images[i];
  const misses = image.truth && r.cells - r.tp[state.level - 10];
  const counts = image.truth
    ? [`score ${r.ap.toFixed(3)}`, counted(r.tp[state.level - 10], "hit"), counted(r.found - r.tp[state.level - 10], "false alarm"), `${misses} miss${misses === 1 ? "" : "es"}`].join(", ")
    : counted(r.found, "cell");
  return `${image.id}${image.type ? ` (${image.type})` : ""}: ${counts}`;
}

function writeGallery() {
  const gallery = $("gallery"), there = order().slice(0, wanted).map(card), left = DATA.images.length - there.length;
  for (const made of there) {
    const i = +made.dataset.image;
    made.querySelector(".text").textContent = caption(i);
    if (made.dataset.near) paint(made.querySelector("canvas"), DATA.images[i], state, true);
  }
  if (there.length !== gallery.children.length || there.some((made, place) => made !== gallery.children[place])) gallery.replaceChildren(...there);
  if (!DATA.images.length) gallery.textContent = "No images.";
  $("more").hidden = left === 0;
  $("more").textContent = `${Math.min(BATCH, left)} more pictures of the ${left} that are left`;
}

function refresh() {
  document.body.dataset.mode = state.mode;
  results = DATA.images.map((image) => examine(image, state.floors));
  mays = DATA.images.map(candidates);
  writeSummary();
  writeLegend();
  writeRules();
  if ($("counts")) writeCounts();
  else writeCharts();
  writeTable();
  writeGallery();
  if ($("viewer").open) drawViewer();
  clearTimeout(refresh.later);
  refresh.later = setTimeout(() => { keep(); writeFigures(); }, 250);
}

function buildPage() {
  $("fold").addEventListener("click", () => fold(!$("controls").hidden));
  fold(matchMedia("(max-width: 600px), (max-height: 500px)").matches);
  $("more").addEventListener("click", () => {
    const first = wanted;
    wanted += BATCH;
    writeGallery();
    $("gallery").children[first].focus();
  });
  document.querySelectorAll("[data-to]").forEach((button) => button.addEventListener("click", () => {
    $(button.dataset.to).scrollIntoView();
  }));
  new ResizeObserver(([{ target }]) => {
    if (!$("viewer").open) document.documentElement.style.setProperty("--covered", `${target.offsetHeight}px`);
  }).observe($("panel"));
}
