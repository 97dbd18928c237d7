// The picture area: synchronized panes, a divider between two layers, and a common zoom.

let layers = []; // { canvas, kind, strip } of all panes
let drawing = 0; // number of the latest redraw; earlier ones are dropped

/** Panes of a view, each with its layers; two layers share a pane with a divider. */
function panesOf(view) {
  const original = { kind: "strip", strip: 0 }, coded = { kind: "strip", strip: currentStrip() };
  const error = { kind: "error", strip: currentStrip() }, codes = { kind: "codes", strip: 0 };
  switch (view) {
    case "error": return [[original, error]];
    case "codes": return [[original, codes]];
    case "pair": return [[original], [coded], [error], [codes]];
    case "all": return clip().strips.map((_, k) => [{ kind: "strip", strip: k }]);
    default: return [[original, coded]];
  }
}

function buildPanes() {
  const panes = panesOf(state.view);
  const place = byId("panes");
  place.className = `view-${state.view}`;
  place.style.setProperty("--width", clip().width);
  place.style.setProperty("--height", clip().height);
  layers = [];
  place.replaceChildren(...panes.map(buildPane));
  showWipe();
  showLens();
}

function buildPane(parts) {
  const pane = make("div", { class: "pane" });
  parts.forEach((part, k) => {
    const canvas = make("canvas", { role: "img", "aria-label": describe(part) });
    layers.push({ ...part, canvas });
    pane.append(make("div", { class: k ? "layer top" : "layer" }, canvas));
  });
  const tags = parts.map((part, k) => make("span", { class: k ? "tag right" : "tag" }, ...tagOf(part)));
  pane.append(...tags);
  if (parts.length > 1) pane.append(buildDivider(parts));
  pane.addEventListener("pointerdown", (event) => grab(event, pane, parts.length > 1));
  pane.addEventListener("pointermove", (event) => point(event, pane));
  pane.addEventListener("pointerleave", () => showReading());
  pane.addEventListener("dblclick", (event) => {
    const zoomed = state.zoom > 1;
    change({ zoom: zoomed ? 1 : 4, centre: zoomed ? [0.5, 0.5] : placeIn(event, pane) });
  });
  return pane;
}

function buildDivider([left, right]) {
  return make("div", {
    class: "divider", role: "slider", tabindex: 0, "aria-orientation": "horizontal",
    "aria-label": `Wipe: ${describe(left)} on the left, ${describe(right)} on the right`,
    "aria-valuemin": 0, "aria-valuemax": 100, onkeydown: wipeByKey,
  }, make("span", { class: "grip", "aria-hidden": "true" }));
}

function describe({ kind, strip }) {
  if (kind === "error") return `error of ${labelOf(clip().strips[strip])}`;
  return kind === "codes" ? "code map" : labelOf(clip().strips[strip]);
}

/** Label on a picture; CSS hides the details on small panes. */
function tagOf({ kind, strip }) {
  if (kind === "codes") return ["codes, ", planeLabel(state.plane)];
  if (kind === "error") return ["error ", make("small", {}, `0 to ${state.scale} levels`)];
  const one = clip().strips[strip], rate = rateOf(one);
  if (!rate) return ["original"];
  const name = `${one.coder} ${one.coder === VTOK ? "" : "at "}${one.bits} bits`;
  const quality = known(rate.psnr) ? ` · ${shown("psnr", rate.psnr)} dB` : "";
  return [name, make("small", {}, ` ${bpp(rate.bpp)} bpp${quality}`)];
}

function planeLabel(plane) {
  const { num_codebooks: books } = clip().layout;
  const stage = `stage ${Math.floor(plane / books) + 1}`;
  return books > 1 ? `${stage}, codebook ${(plane % books) + 1}` : stage;
}

/** Draw the current frame on all layers at once, when all of its pictures are decoded. */
async function drawStage() {
  const mine = ++drawing, { frame } = state;
  const strips = [...new Set([0, ...layers.map((layer) => layer.strip)])];
  const found = picturesInStep(strips, frame);
  const bitmaps = found instanceof Promise ? await found : found;
  if (mine !== drawing) return;
  const byStrip = new Map(strips.map((strip, k) => [strip, bitmaps[k]]));
  for (const { canvas, kind, strip } of layers) {
    if (kind === "codes") drawCodes(canvas, state.plane, frame);
    else if (kind === "strip") drawPicture(canvas, byStrip.get(strip));
    else state.error = drawError(canvas, byStrip.get(0), byStrip.get(strip));
  }
  byId("stage").dataset.drawn = [state.clip, state.view, state.coder, state.bits, frame].join(" ");
  showReading();
  prefetch(strips, frame, state.playing ? 12 : 2);
}

/** One line on the current frame and on the code under the pointer. */
function showReading(more = "") {
  const { frame } = state, strip = clip().strips[currentStrip()];
  const rate = rateOf(strip);
  const mean = known(rate.psnr) ? `, ${shown("psnr", rate.psnr)} dB` : "";
  const parts = [`${labelOf(strip)}: ${bpp(rate.bpp)} bpp${mean}, this frame ${number(strip.psnr[frame], 2)} dB`];
  if (layers.some((layer) => layer.kind === "error")) {
    parts.push(`mean error ${number(state.error, 2)} levels of 255`);
  }
  byId("reading").textContent = [...parts, more].filter(Boolean).join(" · ");
}

function showWipe() {
  for (const layer of document.querySelectorAll(".layer.top")) {
    layer.style.clipPath = `inset(0 0 0 ${state.wipe}%)`;
  }
  const divider = document.querySelector(".divider");
  if (!divider) return;
  divider.style.left = `${state.wipe}%`;
  divider.setAttribute("aria-valuenow", Math.round(state.wipe));
  divider.setAttribute("aria-valuetext", `${Math.round(state.wipe)} % from the left`);
}

function wipeByKey(event) {
  const steps = { ArrowLeft: -2, ArrowDown: -2, ArrowRight: 2, ArrowUp: 2, PageDown: -10, PageUp: 10 };
  const ends = { Home: 0, End: 100 };
  const wanted = ends[event.key] ?? state.wipe + (steps[event.key] ?? NaN);
  if (Number.isNaN(wanted)) return;
  event.preventDefault();
  event.stopPropagation();
  change({ wipe: clamp(wanted, 0, 100) });
}

/** Apply the zoom to all canvases. */
function showLens() {
  const { zoom, centre } = state;
  const [x, y] = centre.map((at) => 100 * clamp(0.5 - at * zoom, 1 - zoom, 0));
  for (const { canvas } of layers) {
    canvas.style.transform = zoom > 1 ? `translate(${x}%, ${y}%) scale(${zoom})` : "";
    canvas.style.imageRendering = zoom >= 4 ? "pixelated" : "";
  }
  byId("panes").classList.toggle("zoomed", zoom > 1);
}

function placeIn(event, pane) {
  const box = pane.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

/** Drag the divider, or the picture itself when zoomed. */
function grab(event, pane, wiped) {
  if (event.button !== 0) return;
  const onDivider = event.target.closest(".divider");
  const pans = state.zoom > 1 && !onDivider;
  if (!pans && !wiped) return;
  const from = placeIn(event, pane), { centre, zoom } = state;
  const move = (now) => {
    const at = placeIn(now, pane);
    if (!pans) change({ wipe: clamp(100 * at[0], 0, 100) });
    else change({ centre: centre.map((c, k) => clamp(c - (at[k] - from[k]) / zoom, 0, 1)) });
  };
  pane.setPointerCapture(event.pointerId);
  pane.addEventListener("pointermove", move);
  const end = () => pane.removeEventListener("pointermove", move);
  pane.addEventListener("pointerup", end, { once: true });
  pane.addEventListener("pointercancel", end, { once: true });
  if (!pans) move(event);
}

/** Show the code under the pointer. */
function point(event, pane) {
  if (!layers.some((layer) => layer.kind === "codes" && pane.contains(layer.canvas))) return;
  const { layout, width, height } = clip();
  const { zoom, centre } = state;
  const [x, y] = placeIn(event, pane).map(
    (at, k) => (at - clamp(0.5 - centre[k] * zoom, 1 - zoom, 0)) / zoom);
  const column = Math.floor((x * width) / layout.spatial), row = Math.floor((y * height) / layout.spatial);
  const [rows, columns] = layout.grid;
  if (row < 0 || column < 0 || row >= rows || column >= columns) return;
  const code = codesAt(state.plane, state.frame)[row * columns + column];
  const bits = code.toString(2).padStart(layout.bits_per_code, "0");
  showReading(`row ${row}, column ${column}, step ${stepOf(state.frame)}: code ${code} (${bits})`);
}
