"use strict";
// Numbers: decoding, statistics, ticks and their printing. What is drawn with them is in page.js.

const element = (id) => document.getElementById(id);
const info = JSON.parse(element("report-data").textContent);

function codesOf(id, bits) {
  const text = atob(element(id).textContent.trim());
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  if (bits === 8) return bytes;
  return bits === 16 ? new Uint16Array(bytes.buffer) : new Float32Array(bytes.buffer);
}

// One array a group; the greatest code is NaN, the one below it infinity.
function decode(codes, group, size, low, step, log, bits) {
  const nan = bits === 8 ? 255 : 65535;
  const out = new Float64Array(size);
  for (let i = 0, k = group * size; i < size; i++, k++) {
    const code = codes[k];
    const value = low + code * step;
    out[i] = code === nan ? NaN : code === nan - 1 ? Infinity : log ? Math.exp(value) : value;
  }
  return out;
}

function quantile(sorted, p) {
  const at = p * (sorted.length - 1), k = Math.floor(at);
  return sorted[k] + (sorted[Math.min(k + 1, sorted.length - 1)] - sorted[k]) * (at - k);
}

// Central interval as Ensemble.interval has it: the k-th of n draws has k / (n + 1) below it.
function interval(sorted, level) {
  const n = sorted.length;
  return [(1 - level) / 2, (1 + level) / 2].map((p) => {
    const at = Math.min(Math.max(p * (n + 1) - 1, 0), n - 1), k = Math.floor(at);
    return sorted[k] + (sorted[Math.min(k + 1, n - 1)] - sorted[k]) * (at - k);
  });
}

function sortedFinite(values) {
  const known = Float64Array.from(values).filter(Number.isFinite);
  return known.sort();
}

function meanOf(values) {
  let sum = 0;
  for (const v of values) sum += v;
  return sum / values.length;
}

function stdOf(values) {
  const mean = meanOf(values);
  let sum = 0;
  for (const v of values) sum += (v - mean) * (v - mean);
  return values.length > 1 ? Math.sqrt(sum / (values.length - 1)) : NaN;
}

// The greatest part of many numbers, which colour scales run between.
function limits(arrays, p) {
  const some = [];
  for (const values of arrays) {
    const stride = Math.max(1, Math.floor(values.length / 20000));
    for (let i = 0; i < values.length; i += stride) if (Number.isFinite(values[i])) some.push(values[i]);
  }
  if (!some.length) return [0, 1];
  const sorted = Float64Array.from(some).sort();
  const low = quantile(sorted, p), high = quantile(sorted, 1 - p);
  return high > low ? [low, high] : [low - 0.5, low + 0.5];
}

// As many digits as the step of the codes bears out, five at the most.
function number(value, step = 0) {
  if (value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0 || (step > 0 && Math.abs(value) < step / 2)) return "0";
  const size = Math.floor(Math.log10(Math.abs(value)));
  const digits = step > 0 ? Math.min(5, Math.max(1, size - Math.floor(Math.log10(step)))) : 5;
  const text = size < -4 || size > 5 ? value.toExponential(digits - 1) : value.toPrecision(digits);
  return text.replaceAll("-", "−");
}

function ticks(low, high, about) {
  if (!(high > low)) return [low];
  const raw = (high - low) / about, power = 10 ** Math.floor(Math.log10(raw));
  const unit = [1, 2, 5, 10].find((u) => u * power >= raw) * power;
  const found = [];
  for (let k = Math.ceil(low / unit - 1e-9); k * unit <= high + unit * 1e-9; k++) found.push(k * unit);
  return found.map((t) => Number(t.toPrecision(12)));
}

// Colour maps, by a few colours each that the eye takes for evenly spaced.
const COLOURS = {
  grey: ["000000", "ffffff"],
  magma: ["000004", "1d1147", "51127c", "832681", "b73779", "e75263", "fc8961", "fec488", "fcfdbf"],
  viridis: ["440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725"],
  differences: ["0b3c77", "2c7bb6", "8abde0", "e8e8e8", "f0a582", "cf4a2e", "7a0b1d"],
  cyclic: ["e2d9e2", "9ebbc9", "6785be", "5e43a5", "2f1436", "6c1e4c", "b25652", "ceac94", "e2d9e2"],
};

const tables = {};
function table(name) {
  if (!tables[name]) {
    const stops = COLOURS[name].map((c) => [0, 2, 4].map((k) => parseInt(c.slice(k, k + 2), 16)));
    const bytes = new Uint8ClampedArray(768);
    for (let i = 0; i < 256; i++) {
      const at = (i / 255) * (stops.length - 1), k = Math.min(Math.floor(at), stops.length - 2);
      for (let c = 0; c < 3; c++) bytes[3 * i + c] = stops[k][c] + (stops[k + 1][c] - stops[k][c]) * (at - k);
    }
    tables[name] = bytes;
  }
  return tables[name];
}

const turn = (angle) => Math.atan2(Math.sin(angle), Math.cos(angle));

// What of the stored channels is looked at. `of` makes one number of them; spreads and diagnostics go their own way.
function makeViews() {
  const names = info.channels, found = [];
  const total = (parts) => Math.hypot(...parts);
  const mean = (parts) => parts.reduce((a, b) => a + b, 0) / parts.length;
  if (info.complex) {
    for (let k = 0; k < names.length; k += 2) {
      const which = names.length > 2 ? ` of channel ${k / 2}` : "", both = [k, k + 1];
      found.push(
        { label: "magnitude" + which, channels: both, of: total, spread: total, spreadLabel: "Std, both parts" },
        { label: "phase" + which, channels: both, of: (p) => Math.atan2(p[1], p[0]), spread: total,
          spreadLabel: "Std, both parts", phase: true },
        { label: "real part" + which, channels: [k], of: (p) => p[0], spread: (p) => p[0] },
        { label: "imaginary part" + which, channels: [k + 1], of: (p) => p[0], spread: (p) => p[0] },
      );
    }
  } else {
    if (names.length === 3) {
      found.push({ label: "colour", channels: [0, 1, 2], of: mean, spread: mean, spreadLabel: "Std, mean of channels",
        colour: true });
    }
    names.forEach((name, k) => found.push({
      label: names.length > 1 ? `channel ${name}` : "value", channels: [k], of: (p) => p[0], spread: (p) => p[0],
    }));
  }
  return found;
}

// The function by which a kind of map is combined over the channels of a view.
function combiner(view, kind) {
  if (kind === "rhat") return (p) => Math.max(...p);
  if (kind === "ess") return (p) => Math.min(...p);
  return kind === "spread" ? view.spread : view.of;
}

function combined(planes, view, kind) {
  if (view.channels.length === 1) return planes[view.channels[0]];
  const f = combiner(view, kind), chosen = view.channels.map((c) => planes[c]);
  return Float64Array.from(chosen[0], (_, i) => f(chosen.map((plane) => plane[i])));
}
