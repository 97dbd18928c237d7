// SVG plots at the size of their container: rate-distortion curves, size and quality over time.

const MARKS = ["M-4-4h8v8h-8z", "M0-5L5 4H-5z", "M0-6L6 0 0 6-6 0z"]; // of codecs; vtok has a circle

/** About `count` round numbers between two limits. */
function ticks(low, high, count) {
  const rough = (high - low || Math.abs(high) || 1) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((k) => k >= rough * 0.999);
  const result = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) result.push(k * step);
  return result;
}

function frameOf(place, height, label, edges) {
  const width = Math.max(240, place.clientWidth);
  const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  return { svg, width, height, left: edges.left, right: width - edges.right, top: edges.top, bottom: height - edges.bottom };
}

const text = (x, y, words, options = {}) => draw("text", { x, y, ...options }, words);
const line = (x1, y1, x2, y2, kind) => draw("line", { x1, y1, x2, y2, class: kind });
const path = (points) => points.map(([x, y], k) => `${k ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

function drawCurves() {
  const place = byId("curves"), { metric } = state;
  const rates = clip().rates.filter((rate) => known(rate[metric]));
  if (!rates.length) {
    place.replaceChildren(make("p", { class: "muted" }, "No metric was measured."));
    return;
  }
  const { label, rises, digits } = facts.metrics[metric];
  const words = `${label} over bits per pixel: ` + rates.map((r) =>
    `${r.coder} ${bpp(r.bpp)} gives ${shown(metric, r[metric])}`).join(", ");
  const box = frameOf(place, 290, words, { left: 46, right: 58, top: 14, bottom: 40 });
  const xs = rates.map((rate) => Math.log2(rate.bpp)), ys = rates.map((rate) => rate[metric]);
  const [x0, x1] = [Math.min(...xs) - 0.25, Math.max(...xs) + 0.25];
  const pad = 0.08 * (Math.max(...ys) - Math.min(...ys)) || Math.max(0.01, 0.05 * Math.abs(ys[0]));
  const [y0, y1] = [Math.min(...ys) - pad, Math.max(...ys) + pad];
  const x = (rate) => box.left + ((Math.log2(rate.bpp) - x0) / (x1 - x0)) * (box.right - box.left);
  const y = (value) => box.bottom - ((value - y0) / (y1 - y0)) * (box.bottom - box.top);
  const values = ticks(y0, y1, 5);
  for (const value of values) {
    const shortest = Math.max(0, Math.min(digits, Math.ceil(-Math.log10(values[1] - values[0] || 1) - 1e-9)));
    box.svg.append(line(box.left, y(value), box.right, y(value), "grid"),
      text(box.left - 8, y(value) + 4, number(value, shortest), { "text-anchor": "end" }));
  }
  for (let k = Math.ceil(x0); k <= x1; k++) {
    const at = box.left + ((k - x0) / (x1 - x0)) * (box.right - box.left);
    box.svg.append(line(at, box.top, at, box.bottom, "grid"),
      text(at, box.bottom + 18, k >= 0 ? number(2 ** k) : `1/${2 ** -k}`, { "text-anchor": "middle" }));
  }
  box.svg.append(text((box.left + box.right) / 2, box.height - 4, "bits per pixel, logarithmic", { "text-anchor": "middle", class: "axis" }));
  codersOf().forEach((coder, index) => drawCoder(box, coder, index, rates, x, (rate) => y(rate[metric])));
  nameCurves(box, rates, x, (rate) => y(rate[metric]));
  const heading = label + (rises ? "" : ", lower is better");
  box.svg.append(text(box.left, 10, heading, { class: "axis" }));
  place.replaceChildren(box.svg);
}

function drawCoder(box, coder, index, rates, x, y) {
  const mine = rates.filter((rate) => rate.coder === coder).sort((a, b) => a.bpp - b.bpp);
  if (!mine.length) return;
  const group = draw("g", { class: `coder coder-${index % 5}` });
  group.append(draw("path", { d: path(mine.map((rate) => [x(rate), y(rate)])), class: "curve" }));
  for (const rate of mine) {
    const chosen = rate.coder === state.coder && rate.bits === state.bits;
    const hint = draw("title", {}, `${coder}, ${rate.setting}: ${bpp(rate.bpp)} bpp, ${shown(state.metric, rate[state.metric])}`);
    const at = { transform: `translate(${x(rate)} ${y(rate)})`, class: chosen ? "mark chosen" : "mark" };
    const mark = coder === VTOK ? draw("circle", { r: 4.5 }) : draw("path", { d: MARKS[(index - 1) % 3] });
    group.append(draw("g", { ...at, onclick: () => change({ coder: rate.coder, bits: rate.bits }) },
      hint, draw("circle", { r: 14, class: "target" }), chosen ? draw("circle", { r: 9, class: "ring" }) : null, mark));
  }
  box.svg.append(group);
}

/** Label each curve at its end, with a minimum distance between labels. */
function nameCurves(box, rates, x, y) {
  const ends = codersOf().map((coder, index) => ({ coder, index, rate: lastOf(rates, coder) }))
    .filter(({ rate }) => rate).sort((a, b) => y(a.rate) - y(b.rate));
  let previous = -Infinity;
  for (const { coder, index, rate } of ends) {
    previous = Math.max(y(rate) + 4, previous + 15);
    const at = Math.min(x(rate) + 12, box.right + 8);
    box.svg.append(draw("g", { class: `coder coder-${index % 5}` }, text(at, previous, coder, { class: "name" })));
  }
}

const lastOf = (rates, coder) =>
  rates.filter((rate) => rate.coder === coder).sort((a, b) => b.bpp - a.bpp)[0];

/** Stacked bitrate of each chunk by stage, above the PSNR of each frame. */
function drawTimeline() {
  const place = byId("timeline"), { chunks, frames, rate, strips, pictured } = clip();
  const used = stagesOf(state.bits);
  const bits = chunks.map((chunk) => chunk.stages.map((bytes) => (8 * bytes * rate) / chunk.frames / 1000));
  const peak = Math.max(...bits.map((stages) => sum(stages)));
  const box = frameOf(place, 290, timelineWords(bits, used), { left: 46, right: 12, top: 24, bottom: 40 });
  const middle = 150, x = (frame) => box.left + (frame / frames) * (box.right - box.left);
  const y = (value) => middle - (value / (peak * 1.05)) * (middle - box.top);
  for (const value of ticks(0, peak * 1.05, 4)) {
    box.svg.append(line(box.left, y(value), box.right, y(value), "grid"),
      text(box.left - 8, y(value) + 4, number(value), { "text-anchor": "end" }));
  }
  let first = 0;
  chunks.forEach((chunk, k) => {
    let low = 0;
    bits[k].forEach((height, stage) => {
      const hint = `chunk ${k + 1}, frames ${first + 1} to ${first + chunk.frames}, stage ${stage + 1}: ${number(8 * chunk.stages[stage])} bits of ${number(8 * sum(chunk.stages))}`;
      box.svg.append(draw("rect", {
        x: x(first) + 0.5, width: Math.max(1, x(first + chunk.frames) - x(first) - 1),
        y: y(low + height), height: Math.max(0, y(low) - y(low + height) - 0.6),
        class: stage < used ? `stage used shade-${stage % 2}` : "stage",
      }, draw("title", {}, hint)));
      low += height;
    });
    first += chunk.frames;
  });
  const rest = used < chunks[0].stages.length && box.width > 420 ? `; grey: stages beyond ${state.bits} bits` : "";
  box.svg.append(text(box.left, 12, `kbit/s of each chunk, stacked by stage${rest}`, { class: "axis" }));
  drawQuality(box, x, middle);
  if (pictured < frames) box.svg.append(draw("rect", { x: x(pictured), y: box.top, width: box.right - x(pictured), height: box.bottom - box.top, class: "unseen" }, draw("title", {}, "measured, but not pictured on this page")));
  const seconds = frames / rate;
  for (const value of ticks(0, seconds, Math.max(2, Math.round(box.width / 110)))) {
    box.svg.append(text(x(value * rate), box.bottom + 18, `${number(value, seconds < 3 ? 1 : 0)} s`, { "text-anchor": "middle" }));
  }
  box.svg.append(draw("line", { id: "cursor", y1: box.top, y2: box.bottom, class: "cursor" }));
  seekBy(box, frames, pictured);
  place.replaceChildren(box.svg);
  box.svg.moveCursor = (frame) => {
    for (const end of ["x1", "x2"]) byId("cursor").setAttribute(end, x(frame + 0.5));
  };
  box.svg.moveCursor(state.frame);
}

function drawQuality(box, x, above) {
  const { strips } = clip(), top = above + 34;
  const lines = strips.map((strip, k) => [strip, k]).filter(([strip]) => strip.coder === state.coder);
  const values = lines.flatMap(([strip]) => strip.psnr).filter((value) => value < facts.identical_db);
  const [low, high] = values.length ? [Math.min(...values) - 0.3, Math.max(...values) + 0.3] : [0, facts.identical_db];
  const y = (value) => box.bottom - ((clamp(value, low, high) - low) / (high - low)) * (box.bottom - top);
  for (const value of ticks(low, high, 3)) {
    box.svg.append(line(box.left, y(value), box.right, y(value), "grid"),
      text(box.left - 8, y(value) + 4, number(value, high - low < 3 ? 1 : 0), { "text-anchor": "end" }));
  }
  const chosen = currentStrip(), index = codersOf().indexOf(state.coder) % 5;
  for (const [strip, k] of lines) {
    const points = strip.psnr.map((value, frame) => [x(frame + 0.5), y(value)]);
    if (points.length === 1) points.push([x(1), points[0][1]]);
    box.svg.append(draw("path", { d: path(points), class: `series coder-${index}${k === chosen ? " chosen" : ""}` },
      draw("title", {}, `${labelOf(strip)}, PSNR of each frame`)));
  }
  box.svg.append(text(box.left, top - 10, `PSNR dB of each frame, ${state.coder} at all rates`, { class: "axis" }));
}

function seekBy(box, frames, pictured) {
  const seek = (event) => {
    const share = (event.clientX - box.svg.getBoundingClientRect().left - box.left) / (box.right - box.left);
    change({ frame: clamp(Math.floor(share * frames), 0, pictured - 1) });
  };
  box.svg.addEventListener("pointerdown", (event) => {
    box.svg.setPointerCapture(event.pointerId);
    seek(event);
    box.svg.addEventListener("pointermove", seek);
    box.svg.addEventListener("pointerup", () => box.svg.removeEventListener("pointermove", seek), { once: true });
  });
}

function timelineWords(bits, used) {
  const rates = bits.map((stages) => number(sum(stages.slice(0, used))));
  return `kbit/s of each chunk at ${state.bits} bits per position: ${rates.join(", ")}; PSNR of each frame`;
}

const sum = (values) => values.reduce((total, value) => total + value, 0);

function moveCursor() {
  const svg = byId("timeline").firstElementChild;
  if (svg) svg.moveCursor(state.frame);
}
