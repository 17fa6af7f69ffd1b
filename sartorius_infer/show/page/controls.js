// What can be chosen, and what it comes to: sliders, colours, the score, the rules to take along.

const state = {
  floors: [...DATA.floors], mode: DATA.truth ? "match" : "class", level: DATA.level, truth: false,
  sort: DATA.truth ? "ap" : "id", up: true,
};
const START = DATA.truth ? mean(DATA.images.map((image) => examine(image, DATA.floors).ap)) : NaN;
const BEGUN = JSON.stringify([DATA.classes, DATA.floors, DATA.level]);
let results = [];
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

/** What was chosen outlasts a reload, in the tab's history, unless the page has been made anew otherwise. */
function keep() {
  history.replaceState({ begun: BEGUN, state }, "");
}

function resume() {
  if (history.state && history.state.begun === BEGUN) Object.assign(state, history.state.state);
}

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
  const rows = [DATA.truth ? matching() : [], DATA.scored ? [...thresholds(), ...DATA.rules ? takenAlong() : []] : []];
  $("controls").replaceChildren(...rows.filter((row) => row.length).map((row) => element("div", {}, ...row)));
  $("fold").hidden = !$("controls").children.length;
}

/** How found cells are told from true ones. */
function matching() {
  const choice = (mode, text) => element("label", {}, element("input", {
    type: "radio", name: "mode", value: mode, ...(state.mode === mode ? { checked: "" } : {}),
    onchange: () => { state.mode = mode; refresh(); } }), text);
  return [
    choice("match", "hits and misses"),
    choice("class", "classes"),
    element("label", {}, element("input", { type: "checkbox", id: "truth", ...(state.truth ? { checked: "" } : {}), onchange: (e) => { state.truth = e.target.checked; refresh(); } }),
      "all true outlines"),
    slider([element("span", { class: "called" }, "IoU over")], "level", "IoU over which a found cell is a hit", .5, .95, .05, state.level / 20, (v) => v.toFixed(2), (v) => { state.level = Math.round(v * 20); }),
  ];
}

function thresholds() {
  const sliders = DATA.classes.map((name, k) => {
    const own = swatch(DATA.colours[k]);
    own.classList.add("of-class");
    return slider([own, element("span", { class: "called" }, name)], `floor-${k + 1}`, `${name}: score threshold`, 0, 1, .01, state.floors[k], hundredths, (v) => { state.floors[k] = v; });
  });
  return [...sliders, element("button", { type: "button", id: "reset", onclick: () => { state.floors = [...DATA.floors]; buildControls(); refresh(); $("reset").focus(); } },
    "reset", element("span", { class: "long" }, " thresholds"))];
}

function takenAlong() {
  return [
    element("button", { type: "button", id: "copy", onclick: copyRules }, "copy rules"),
    element("a", { id: "save", class: "button", download: "rules.json" }, "save rules.json"),
    element("p", { id: "kept", role: "status" }),
  ];
}

function fold(folded) {
  $("controls").hidden = folded;
  $("fold").setAttribute("aria-expanded", String(!folded));
}

/** The rules with the thresholds as they are now, as `--rules` takes them. */
function rulesText() {
  const rules = structuredClone(DATA.rules);
  DATA.classes.forEach((name, k) => { rules.per_class[name].score = state.floors[k]; });
  return JSON.stringify(rules, null, 2);
}

async function copyRules() {
  const text = rulesText(), told = $("kept");
  try {
    await navigator.clipboard.writeText(text);
    told.textContent = "Copied: put it into a file, and give that to --rules.";
  } catch { // a browser may refuse, and to a page in another one it does
    const shown = element("textarea", { id: "rules-text", readonly: "", "aria-label": "rules as JSON" });
    shown.value = text;
    told.replaceChildren("The browser does not let this page copy. Copy this into a file, and give that to --rules: ", shown);
    shown.select();
  }
}

function writeRules() {
  if (!DATA.rules) return;
  $("save").setAttribute("href", `data:application/json,${encodeURIComponent(`${rulesText()}\n`)}`);
  $("kept").replaceChildren(); // what was copied is no longer what is chosen
}

function writeSummary() {
  const found = element("span", { id: "found" }, String(results.reduce((n, r) => n + r.found, 0)));
  if (!DATA.truth || !results.length) {
    $("summary").replaceChildren(found, ` cells found in ${counted(DATA.images.length, "image")}.`);
    return;
  }
  const now = mean(results.map((r) => r.ap)), by = now - START;
  const moved = Math.abs(by) > 5e-5 ? [` (${by > 0 ? "+" : "−"}${Math.abs(by).toFixed(4)}`, element("span", { class: "long" }, " against the thresholds as they were"), ")"] : [];
  $("summary").replaceChildren(element("b", { id: "score" }, now.toFixed(4)), " score", ...moved, "; ",
    found, ` cells found, ${results.reduce((n, r) => n + r.cells, 0)} true`);
}

const counted = (number, name) => `${number} ${name}${number === 1 ? "" : "s"}`;

function writeAbout() {
  if (!DATA.truth || !results.length) return;
  const [low, high] = DATA.interval;
  $("about").textContent = `Score: mean average precision over ${counted(DATA.images.length, "image")}, at first ${START.toFixed(4)} (95 % interval ${low.toFixed(4)} to ${high.toFixed(4)})`;
}

/** What the colours mean that are drawn now. */
function writeLegend() {
  const entry = (colour, text, dashed) => {
    const own = swatch(colour);
    if (dashed) own.classList.add("dashed");
    return element("span", {}, own, text);
  };
  const entries = state.mode === "match"
    ? [entry(HIT, "hits"), entry(MISS, "misses (dashed)", true), entry(ALARM, "false alarms")]
    : DATA.classes.map((name, k) => entry(DATA.colours[k], name));
  if (state.truth) entries.push(entry(TRUTH, "true (dashed)", true));
  $("legend").replaceChildren(...entries);
}
