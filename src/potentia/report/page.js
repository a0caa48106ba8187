// The page: panels, the pixel cursor with its plots, and the comparison of two images.

const rows = info.rows, columns = info.columns, area = rows.length * columns.length;
const views = makeViews();
let view = views[0];
const at = { row: Math.floor(rows.length / 2), column: Math.floor(columns.length / 2) };

const maps = info.maps.map((map, k) => {
  const codes = codesOf(`map-${k}`, map.bits);
  return { ...map, planes: info.channels.map((_, c) => decode(codes, c, area, map.low[c], map.step[c], map.log, map.bits)) };
});
const byKey = Object.fromEntries(maps.map((map) => [map.key, map]));

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "rect", "line", "polyline", "text", "circle", "title"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Images and their colour scales.

function difference(a, b) {
  return Float64Array.from(a, (v, i) => (view.phase ? turn(v - b[i]) : v - b[i]));
}

function panelsOf() {
  const found = [];
  for (const map of maps) {
    const values = combined(map.planes, view, map.kind);
    const label = map.kind === "spread" && view.spreadLabel ? view.spreadLabel : map.label;
    found.push({ key: map.key, label, kind: map.kind, values, planes: map.planes });
    if (map.key === "truth") {
      const error = difference(combined(byKey.mean.planes, view, "image"), values);
      found.push({ key: "error", label: "Mean − truth", kind: "error", values: error });
    }
  }
  return found;
}

function scaleOf(kind, values, shared) {
  if (kind === "image") return view.phase ? [-Math.PI, Math.PI, "cyclic"] : [...shared, "grey"];
  const [low, high] = limits([values], 0.001);
  if (kind === "error") {
    const most = Math.max(Math.abs(low), Math.abs(high)) || 1;
    return [-most, most, "differences"];
  }
  if (kind === "spread") return [0, high > 0 ? high : 1, "magma"];
  if (kind === "rhat") return [Math.min(1, low), Math.max(high, 1.02), "viridis"];
  return [low, high, "viridis"];
}

let imageLimits = [0, 1];

function paint(canvas, values, scale, planes) {
  const context = canvas.getContext("2d"), picture = context.createImageData(columns.length, rows.length);
  const [low, high, name] = scale, colours = table(name), bytes = picture.data;
  const level = (v) => Math.max(0, Math.min(255, Math.round((255 * (v - low)) / (high - low))));
  for (let i = 0; i < area; i++) {
    if (view.colour && planes) {
      for (let c = 0; c < 3; c++) bytes[4 * i + c] = level(planes[c][i]);
    } else {
      const k = 3 * level(values[i] === Infinity ? high : values[i]);
      for (let c = 0; c < 3; c++) bytes[4 * i + c] = colours[k + c];
    }
    bytes[4 * i + 3] = Number.isNaN(values[i]) ? 0 : 255;
  }
  context.putImageData(picture, 0, 0);
}

function colourBar(scale) {
  const [low, high, name] = scale, canvas = make("canvas", { width: 256, height: 1, "aria-hidden": "true" });
  const context = canvas.getContext("2d"), picture = context.createImageData(256, 1), colours = table(name);
  for (let i = 0; i < 256; i++) picture.data.set([colours[3 * i], colours[3 * i + 1], colours[3 * i + 2], 255], 4 * i);
  context.putImageData(picture, 0, 0);
  const step = (high - low) / 300;
  const marks = [low, (low + high) / 2, high].map((v) => make("span", {}, number(v, step)));
  return make("div", { class: "colours" }, canvas, make("div", { class: "ticks" }, ...marks));
}

const cursors = [];
function imageBox(canvas) {
  const box = make("div", { class: "image" }, canvas), cursor = make("div", { class: "cursor" });
  box.style.setProperty("--ratio", columns.length / rows.length);
  cursor.style.width = `${100 / columns.length}%`;
  cursor.style.height = `${100 / rows.length}%`;
  box.append(cursor);
  cursors.push(cursor);
  canvas.addEventListener("click", (event) => {
    const place = canvas.getBoundingClientRect();
    choose(Math.floor(((event.clientY - place.top) / place.height) * rows.length),
      Math.floor(((event.clientX - place.left) / place.width) * columns.length));
  });
  return box;
}

const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
function moved(event) {
  const move = MOVES[event.key];
  if (!move || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  const far = event.shiftKey ? 10 : 1;
  choose(at.row + far * move[0], at.column + far * move[1]);
}

function newCanvas(label, first) {
  const given = { width: columns.length, height: rows.length, "aria-label": label };
  if (!first) return make("canvas", { ...given, role: "img" });
  // The one image that takes the keyboard: the others follow its cursor.
  const canvas = make("canvas", { ...given, role: "application", tabindex: 0,
    "aria-roledescription": "image with a pixel cursor", "aria-describedby": "cursor-hint said" });
  canvas.addEventListener("keydown", moved);
  return canvas;
}

const figures = new Map();
function drawPanels() {
  const panels = panelsOf();
  imageLimits = limits(panels.filter((p) => p.kind === "image").flatMap((p) => (
    view.colour ? p.planes : [p.values])), 0.001);
  for (const panel of panels) {
    // The same number everywhere makes no picture; the table of the pixel has it.
    const flat = ["rhat", "ess"].includes(panel.kind) && panel.values.every((v) => v === panel.values[0]);
    if (flat && area > 1) continue;
    if (!figures.has(panel.key)) {
      const canvas = newCanvas(panel.label, figures.size === 0);
      const caption = make("figcaption"), bar = make("div");
      element("panels").append(make("figure", {}, caption, imageBox(canvas), bar));
      figures.set(panel.key, { canvas, caption, bar });
    }
    const figure = figures.get(panel.key), scale = scaleOf(panel.kind, panel.values, imageLimits);
    const ofPhase = view.phase && ["image", "error"].includes(panel.kind);
    const unit = panel.kind === "rhat" ? "" : panel.kind === "ess" ? "draws" : ofPhase ? "rad" : "image’s unit";
    figure.caption.replaceChildren(panel.label, " ", make("span", { class: "unit" }, unit && `(${unit})`));
    figure.canvas.setAttribute("aria-label", `${panel.label}, ${view.label}`);
    paint(figure.canvas, panel.values, scale, panel.kind === "image" ? panel.planes : null);
    figure.bar.replaceChildren(colourBar(scale));
  }
  drawn = panels;
}
let drawn = [];

// The chosen pixel.

let timer = 0;
function choose(row, column) {
  at.row = Math.max(0, Math.min(rows.length - 1, row));
  at.column = Math.max(0, Math.min(columns.length - 1, column));
  for (const cursor of cursors) {
    cursor.style.top = `${(100 * (at.row + 0.5)) / rows.length}%`;
    cursor.style.left = `${(100 * (at.column + 0.5)) / columns.length}%`;
  }
  element("pixel-y").value = rows[at.row];
  element("pixel-x").value = columns[at.column];
  tellPixel();
  if (traces) drawTraced();
}

function stepOf(map, which) {
  return Math.max(...which.map((c) => map.step[c]));
}

function tellPixel() {
  const i = at.row * columns.length + at.column;
  const several = info.channels.length > 1 && info.channels.length <= 6;
  const parts = view.channels.length > 1 || !several ? [] : info.channels.map((_, c) => c);
  const shown = view.channels.length > 1 && several ? view.channels : parts;
  const heads = [view.label, ...shown.map((c) => info.channels[c])];
  const lines = [];
  for (const panel of drawn) {
    const map = byKey[panel.key];
    const text = (value, step) => (map?.log ? number(value, value * 1e-4) : number(value, step));
    const cells = [text(panel.values[i], map ? stepOf(map, view.channels) : stepOf(byKey.mean, view.channels))];
    for (const c of shown) {
      if (map) cells.push(text(map.planes[c][i], map.step[c]));
      else cells.push(number(byKey.mean.planes[c][i] - byKey.truth.planes[c][i], byKey.mean.step[c]));
    }
    lines.push([panel.key === "error" ? "Error" : map.label, ...cells]);
  }
  const grid = element("pixel-table");
  grid.tHead.replaceChildren(make("tr", {}, make("td"), ...heads.map((h) => make("th", { scope: "col" }, h))));
  grid.tBodies[0].replaceChildren(...lines.map(([name, ...cells]) => (
    make("tr", {}, make("th", { scope: "row" }, name), ...cells.map((c) => make("td", {}, c))))));
  const note = element("pixel-note"), joint = view.channels.length > 1;
  note.hidden = !joint;
  note.textContent = joint ? `In the column “${view.label}”, ${view.colour
    ? "values and std are means of the channels" : "std is of both parts together, their squares added"}, R-hat the worse `
    + "and ESS the lesser of them." : "";
  const told = lines.slice(0, 2).concat(lines.filter((l) => l[0] === "R-hat"));
  const words = `y ${rows[at.row]}, x ${columns[at.column]}: ${told.map((l) => `${l[0]} ${l[1]}`).join(", ")}`;
  element("readout").textContent = words;
  clearTimeout(timer);
  timer = setTimeout(() => { element("said").textContent = `Pixel ${words}`; }, 250);
}

// Histogram and trace of the nearest pixel whose draws the page holds.

let traces = null;
function readTraces() {
  const { bits, rows: tracedRows, columns: tracedColumns, draws } = info.traces;
  const size = info.chains * draws.length;
  traces = { codes: codesOf("traces", bits), low: codesOf("traces-low", 32), step: codesOf("traces-step", 32), bits, size,
    rows: tracedRows, columns: tracedColumns, draws };
}

const nearest = (list, value) => list.reduce((best, v, k) => (
  Math.abs(v - value) < Math.abs(list[best] - value) ? k : best), 0);

function drawTraced() {
  const row = nearest(traces.rows, rows[at.row]), column = nearest(traces.columns, columns[at.column]);
  const y = traces.rows[row], x = traces.columns[column], plane = traces.rows.length * traces.columns.length;
  const parts = view.channels.map((c) => {
    const group = c * plane + row * traces.columns.length + column;
    return decode(traces.codes, group, traces.size, traces.low[group], traces.step[group], false, traces.bits);
  });
  const values = parts.length === 1 ? parts[0]
    : Float64Array.from(parts[0], (_, i) => view.of(parts.map((p) => p[i])));
  const here = y === rows[at.row] && x === columns[at.column];
  element("traced").textContent = `Draws of the pixel y ${y}, x ${x}, ${view.label}${here ? "."
    : ": the nearest one whose draws this page holds."}`;
  const i = nearest(rows, y) * columns.length + nearest(columns, x);
  const truth = byKey.truth ? combined(byKey.truth.planes.map((p) => p.subarray(i, i + 1)), view, "image")[0] : NaN;
  drawHistogram(values, truth);
  drawTrace(element("trace"), values, traces.draws, view.phase ? "value (rad)" : "value (image’s unit)");
}

const WIDE = 420, HIGH = 190, BELOW = 38;

function frame(label, low, high, bottom, top, xLabel, yLabel, wide = WIDE) {
  const svg = make("svg", { viewBox: `0 0 ${wide} ${HIGH}`, role: "img", "aria-label": label });
  const xs = ticks(low, high, wide > WIDE ? 8 : 4), ys = ticks(bottom, top, 4).filter((t) => yLabel !== "draws" || Number.isInteger(t));
  const left = 30 + 7 * Math.max(...ys.map((t) => tick(t).length));
  const x = (v) => left + ((wide - left - 8) * (v - low)) / (high - low || 1);
  const y = (v) => HIGH - BELOW - ((HIGH - BELOW - 12) * (v - bottom)) / (top - bottom || 1);
  const floor = HIGH - BELOW;
  svg.append(make("line", { class: "axis", x1: left, x2: wide - 8, y1: floor, y2: floor }),
    make("line", { class: "axis", x1: left, x2: left, y1: 12, y2: floor }));
  for (const t of xs) {
    svg.append(make("line", { class: "axis", x1: x(t), x2: x(t), y1: floor, y2: floor + 4 }),
      make("text", { x: x(t), y: floor + 17, "text-anchor": "middle" }, tick(t)));
  }
  for (const t of ys) {
    svg.append(make("line", { class: "axis", x1: left - 4, x2: left, y1: y(t), y2: y(t) }),
      make("text", { x: left - 7, y: y(t) + 4, "text-anchor": "end" }, tick(t)));
  }
  svg.append(make("text", { x: (left + wide) / 2, y: HIGH - 4, "text-anchor": "middle" }, xLabel),
    make("text", { transform: `translate(12 ${(12 + floor) / 2}) rotate(-90)`, "text-anchor": "middle" }, yLabel));
  return { svg, x, y };
}

const tick = (t) => {
  const size = Math.abs(t);
  return (t === 0 ? "0" : size < 1e-3 || size >= 1e6 ? t.toExponential(1) : String(Number(t.toPrecision(7)))).replaceAll("-", "−");
};

function drawHistogram(values, truth) {
  const sorted = sortedFinite(values), place = element("histogram"), note = element("histogram-note");
  if (!sorted.length) {
    place.replaceChildren();
    note.textContent = "No draw of this pixel is a finite number.";
    return;
  }
  const [low, high] = [sorted[0], sorted[sorted.length - 1]], n = sorted.length;
  const spread = 2 * (quantile(sorted, 0.75) - quantile(sorted, 0.25)) / Math.cbrt(n);
  const bins = high > low ? Math.max(5, Math.min(40, Math.ceil((high - low) / (spread || (high - low) / 5)))) : 1;
  const counts = new Array(bins).fill(0), width = high > low ? (high - low) / bins : 1, first = high > low ? low : low - 0.5;
  for (const v of sorted) counts[Math.min(bins - 1, Math.floor((v - first) / width))]++;
  const [from, to] = interval(sorted, 0.9), mean = meanOf(sorted), std = stdOf(sorted);
  // Averages of draws are finer than the codes, quantiles are not.
  const step = (high - low) / (traces.bits === 8 ? 250 : 3000), fine = (high - low) / 3000, known = Number.isFinite(truth);
  const left = known ? Math.min(first, truth) : first, right = known ? Math.max(first + bins * width, truth) : first + bins * width;
  const words = `mean ${number(mean, fine)}, std ${number(std, fine)}, 90 % interval ${number(from, step)} to ${number(to, step)}`;
  const chart = frame(`Histogram of ${n} draws: ${words}`, left, right, 0, Math.max(...counts),
    view.phase ? "value (rad)" : "value (image’s unit)", "draws");
  counts.forEach((count, k) => chart.svg.append(make("rect", { class: "bar", x: chart.x(first + k * width) + 0.5,
    width: Math.max(0.5, chart.x(first + (k + 1) * width) - chart.x(first + k * width) - 1), y: chart.y(count),
    height: chart.y(0) - chart.y(count) })));
  const rule = (value, name) => chart.svg.append(
    make("line", { class: name, x1: chart.x(value), x2: chart.x(value), y1: 12, y2: chart.y(0) }));
  rule(mean, "mark");
  if (known) rule(truth, "truth");
  place.replaceChildren(chart.svg);
  note.textContent = `${n} draws: ${words}${known ? `; truth ${number(truth, fine)} (dashed)` : ""}. The line is the mean.`;
}

function drawTrace(place, values, draws, yLabel, wide = WIDE, what = "Trace") {
  const count = draws.length, sorted = sortedFinite(values);
  const pad = (sorted[sorted.length - 1] - sorted[0]) * 0.04 || 0.5;
  if (!sorted.length) return place.replaceChildren();
  const low = sorted[0] - pad, high = sorted[sorted.length - 1] + pad, single = count === 1;
  const label = `${what} of ${info.chains} chains over ${count} draws, from ${number(sorted[0])} to ${number(sorted[sorted.length - 1])}`;
  const chart = frame(label, single ? -0.5 : draws[0], single ? info.chains - 0.5 : draws[count - 1], low, high,
    single ? "chain" : "draw", yLabel, wide);
  for (let chain = 0; chain < info.chains; chain++) {
    const colour = `var(--chain-${chain % 8})`;
    const points = draws.map((d, k) => [chart.x(single ? chain : d), chart.y(values[chain * count + k])]).filter((p) => Number.isFinite(p[1]));
    const mark = points.length > 1 ? make("polyline", { class: "line", points: points.map((p) => p.map((v) => v.toFixed(1)).join(",")).join(" ") })
      : make("circle", { r: 3, cx: points[0]?.[0] ?? -9, cy: points[0]?.[1] ?? -9 });
    if (points.length > 1) mark.style.stroke = colour;
    else mark.style.fill = colour;
    chart.svg.append(mark);
  }
  return place.replaceChildren(chart.svg);
}

function drawKey() {
  const entries = [];
  for (let chain = 0; chain < Math.min(info.chains, 8); chain++) {
    const line = make("i");
    line.style.background = `var(--chain-${chain})`;
    entries.push(make("li", {}, line, `chain ${chain}${info.chains > 8 ? `, ${chain + 8} …` : ""}`));
  }
  if (info.traces.draws.length > 1) element("trace-key").append(...entries);
}

// Samples, and two images in turn.

const still = matchMedia("(prefers-reduced-motion: reduce)");
let showsB = false, blinking = 0, viewer = null;

const sampleCache = new Map();
function samplePlanes(chain, draw) {
  const key = `${chain}-${draw}`;
  if (!sampleCache.has(key)) {
    const { bits, low, step } = info.samples, codes = codesOf(`sample-${key}`, bits);
    if (sampleCache.size > 24) sampleCache.clear();
    sampleCache.set(key, info.channels.map((_, c) => decode(codes, c, area, low[c], step[c], false, bits)));
  }
  return sampleCache.get(key);
}

function pickedSample() {
  const chain = info.samples.chains[element("chain").valueAsNumber];
  const draw = info.samples.draws[element("draw").valueAsNumber];
  return { chain, draw, label: `Sample, chain ${chain}, draw ${draw}`, planes: samplePlanes(chain, draw) };
}

function drawViewer() {
  const choice = element(showsB ? "image-b" : "image-a").value;
  const image = choice === "sample" ? pickedSample() : { label: byKey[choice].label, planes: byKey[choice].planes };
  const scale = scaleOf("image", null, imageLimits), values = combined(image.planes, view, "image");
  paint(viewer.canvas, values, scale, image.planes);
  viewer.caption.textContent = `${showsB ? "B" : "A"}: ${image.label} (${view.label})`;
  viewer.canvas.setAttribute("aria-label", viewer.caption.textContent);
  viewer.bar.replaceChildren(colourBar(scale));
  element("swap").textContent = showsB ? "Show A" : "Show B";
}

function tellSliders() {
  const { chains, draws } = info.samples, chain = element("chain"), draw = element("draw");
  const of = (list, slider) => `${list[slider.valueAsNumber]}${list.length > 1 ? ` (${slider.valueAsNumber + 1} of ${list.length})` : ""}`;
  element("chain-said").textContent = of(chains, chain);
  element("draw-said").textContent = of(draws, draw);
  chain.setAttribute("aria-valuetext", `chain ${chains[chain.valueAsNumber]}`);
  draw.setAttribute("aria-valuetext", `draw ${draws[draw.valueAsNumber]}`);
}

function stopBlinking() {
  clearInterval(blinking);
  blinking = 0;
  element("blink").setAttribute("aria-pressed", "false");
}

function startBlinking() {
  clearInterval(blinking);
  blinking = setInterval(() => { showsB = !showsB; drawViewer(); }, Number(element("rate").value));
  element("blink").setAttribute("aria-pressed", "true");
}

function heedMotion() {
  if (still.matches) stopBlinking();
  for (const id of ["blink", "rate"]) element(id).disabled = still.matches;
  element("still").hidden = !still.matches;
}

function setUpViewer() {
  const canvas = newCanvas("Sample", false), caption = make("figcaption"), bar = make("div");
  viewer = { canvas, caption, bar };
  element("viewer").append(make("figure", {}, caption, imageBox(canvas), bar));
  const images = maps.filter((map) => map.kind === "image");
  for (const id of ["image-a", "image-b"]) {
    element(id).append(make("option", { value: "sample" }, "Sample"),
      ...images.map((map) => make("option", { value: map.key }, map.label)));
  }
  element("image-b").value = "mean";
  for (const [id, list] of [["chain", info.samples.chains], ["draw", info.samples.draws]]) {
    element(id).max = list.length - 1;
    element(id).disabled = list.length === 1;
    element(id).addEventListener("input", () => {
      // Moving a slider shows what it moves.
      if (element(showsB ? "image-b" : "image-a").value !== "sample") {
        if (element("image-a").value === "sample") showsB = false;
        else if (element("image-b").value === "sample") showsB = true;
        else element(showsB ? "image-b" : "image-a").value = "sample";
      }
      tellSliders();
      drawViewer();
    });
  }
  element("image-a").addEventListener("change", () => { showsB = false; drawViewer(); });
  element("image-b").addEventListener("change", () => { showsB = true; drawViewer(); });
  element("swap").addEventListener("click", () => { stopBlinking(); showsB = !showsB; drawViewer(); });
  element("blink").addEventListener("click", () => (blinking ? stopBlinking() : startBlinking()));
  element("rate").addEventListener("change", () => { if (blinking) startBlinking(); });
  still.addEventListener("change", heedMotion);
  heedMotion();
  tellSliders();
}

// Beginning.

function setUp() {
  views.forEach((v, k) => element("view").append(make("option", { value: k }, v.label)));
  element("view-label").hidden = views.length === 1;
  element("view").addEventListener("change", () => {
    view = views[Number(element("view").value)];
    drawPanels();
    choose(at.row, at.column);
    drawViewer();
  });
  for (const [id, list] of [["pixel-y", rows], ["pixel-x", columns]]) {
    element(id).max = list[list.length - 1];
    element(id).addEventListener("change", () => {
      const y = element("pixel-y").valueAsNumber, x = element("pixel-x").valueAsNumber;
      choose(Number.isFinite(y) ? nearest(rows, y) : at.row, Number.isFinite(x) ? nearest(columns, x) : at.column);
    });
  }
  for (const button of document.querySelectorAll("button[data-y]")) {
    button.addEventListener("click", () => {
      choose(nearest(rows, Number(button.dataset.y)), nearest(columns, Number(button.dataset.x)));
      element("pixel-y").focus();
    });
  }
  drawPanels();
  drawKey();
  choose(at.row, at.column);
  performance.mark("panels");
}

setUp();
// Draws and samples stand behind this script, so that the panels are seen before they are read.
document.addEventListener("DOMContentLoaded", () => {
  readTraces();
  setUpViewer();
  drawViewer();
  choose(at.row, at.column);
  if (info.lp) drawTrace(element("lp"), info.lp.flat(), info.traces.draws, "log posterior (nats)",
    element("lp").clientWidth > 560 ? 720 : WIDE, "Log posterior");
  performance.mark("complete");
});
