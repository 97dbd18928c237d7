// Controls, keys, playback and the address; starts the page.

function drawHeader() {
  const { width, height, frames, rate, source, name } = clip();
  const size = `${frames === 1 ? "1 frame" : `${frames} frames`} of ${width}×${height}`;
  const from = source[0] !== width || source[1] !== height ? ` from ${source[0]}×${source[1]}` : "";
  const { temporal, spatial } = clip().layout;
  byId("summary").replaceChildren(
    ...(facts.clips.length > 1 ? [make("bdi", {}, name), ": "] : []),
    `${size}${from}, ${number(rate, 2)} frames/s. Model `, make("bdi", {}, facts.model.name),
    `, ${temporal}×${spatial}×${spatial} compression.`);
  const nav = byId("clips");
  nav.hidden = facts.clips.length < 2;
  for (const [k, button] of [...nav.children].entries()) {
    button.setAttribute("aria-current", String(k === state.clip));
  }
}

function buildClips() {
  byId("clips").replaceChildren(...facts.clips.map((one, k) => {
    const src = `data:image/webp;base64,${pictureText(k, 0, 0)}`;
    return make("button", { type: "button", onclick: (event) => { release(event); openClip(k); } },
      make("img", { src, alt: "", width: 96, height: 54 }), make("bdi", {}, one.name));
  }));
}

function openClip(number) {
  const wanted = clamp(number, 0, facts.clips.length - 1), next = facts.clips[wanted];
  const coder = codersOf(next).includes(state.coder) ? state.coder : VTOK;
  change({ clip: wanted, coder, frame: Math.min(state.frame, next.pictured - 1), plane: 0 });
}

function drawChoices() {
  const { view, coder, bits } = state, coders = codersOf();
  const rates = clip().rates.filter((rate) => rate.coder === coder);
  const parts = [
    choice("view", "View", VIEWS.map(([value, label], k) => [value, label, `key ${k + 1}`]), view, (value) => change({ view: value })),
    choice("bits", "Bits per position", rates.map((rate) => [rate.bits, `${rate.bits}`, `${rate.setting}: ${bpp(rate.bpp)} bpp`]), bits, (value) => change({ bits: value })),
  ];
  parts[1].prepend(make("span", { class: "before" }, "bits"));
  if (coders.length > 1) {
    parts.push(choice("coder", "Coder", coders.map((one) => [one, one]), coder, (value) => change({ coder: value })));
  }
  parts.push(choice("zoom", "Zoom", ZOOMS.map((zoom) => [zoom, `${zoom}×`]), state.zoom, (zoom) => change({ zoom })));
  const legends = [];
  if (view === "error" || view === "pair") legends.push(scaleChoice());
  if (view === "codes" || view === "pair") legends.push(planeChoice());
  const focus = document.activeElement && document.activeElement.closest("#stage [data-name]");
  byId("choices").replaceChildren(...parts);
  byId("legends").replaceChildren(...legends);
  if (focus) focusAgain(focus.dataset.name);
  const names = measured().map((name) => [name, facts.metrics[name].label]);
  byId("metric-choice").replaceChildren(pick("Metric", names, state.metric, (metric) => change({ metric })));
}

/** Keep the keyboard focus when the buttons are rebuilt. */
function focusAgain(name) {
  const again = document.querySelector(`#stage [data-name="${name}"]`);
  const target = again && (again.querySelector('[aria-pressed="true"]') || again.querySelector("select"));
  if (target) target.focus();
}

function scaleChoice() {
  const bar = make("span", { class: "scale", role: "img", "aria-label": "dark: no error, bright: large error" });
  bar.style.background = `linear-gradient(90deg, ${facts.heat.filter((_, k) => k % 15 === 0).join(",")})`;
  const picker = pick("Error at the bright end", SCALES.map((scale) => [scale, `${scale}`]), state.scale, (scale) => change({ scale: Number(scale) }));
  return make("div", { class: "legend" }, make("span", {}, "0"), bar, picker, make("span", {}, "levels of 255"));
}

function planeChoice() {
  const planes = clip().codebooks.map((_, k) => [k, planeLabel(k)]);
  const colours = [["bits", "by bits"], ["hash", "by hash"]];
  return make("div", { class: "legend" },
    pick("Codes shown", planes, state.plane, (plane) => change({ plane: Number(plane) })),
    pick("Colours of codes", colours, state.colours, (value) => change({ colours: value })));
}

function pick(label, options, current, choose) {
  const select = make("select", { "aria-label": label, onchange: (event) => choose(event.target.value) },
    options.map(([value, words]) => make("option", { value, selected: value === current }, words)));
  return make("label", { "data-name": label }, select);
}

const ICONS = {
  first: "M5 4v16M19 5 9 12l10 7z", back: "M16 5 7 12l9 7z", play: "M7 4.5 19.5 12 7 19.5z",
  pause: "M7 5h3.5v14H7zM13.5 5H17v14h-3.5z", next: "M8 5l9 7-9 7z", last: "M19 4v16M5 5l10 7-10 7z",
};

function buildTransport() {
  const button = (name, label, press) => make("button", {
    type: "button", id: name, "aria-label": label, title: label, onclick: (event) => { release(event); press(); },
  }, draw("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, draw("path", { d: ICONS[name] })));
  const slider = make("input", {
    type: "range", id: "frame", min: 0, step: 1, "aria-label": "Frame", oninput: (event) => change({ frame: Number(event.target.value) }),
  });
  byId("transport").replaceChildren(
    button("first", "First frame", () => change({ frame: 0 })), button("back", "Previous frame", () => step(-1)),
    button("play", "Play", togglePlay), button("next", "Next frame", () => step(1)),
    button("last", "Last frame", () => change({ frame: clip().pictured - 1 })),
    slider, make("output", { id: "time", for: "frame" }),
    pick("Speed", SPEEDS.map((speed) => [speed, `${speed}×`]), state.speed, (speed) => change({ speed: Number(speed) })));
}

function drawTransport() {
  const { pictured, rate } = clip(), { frame, playing } = state;
  const slider = byId("frame");
  slider.max = pictured - 1;
  slider.value = frame;
  slider.disabled = byId("play").disabled = pictured < 2;
  slider.setAttribute("aria-valuetext", `frame ${frame + 1} of ${pictured}`);
  byId("time").textContent = `${String(frame + 1).padStart(String(pictured).length, "\u2007")} / ${pictured} · ${number(frame / rate, 2)} s`;
  const label = playing ? "Pause" : "Play";
  byId("play").setAttribute("aria-label", label);
  byId("play").title = label;
  byId("play").querySelector("path").setAttribute("d", playing ? ICONS.pause : ICONS.play);
}

function step(count) {
  const { pictured } = clip();
  change({ playing: false, frame: (((state.frame + count) % pictured) + pictured) % pictured });
}

function togglePlay() {
  if (clip().pictured > 1) change({ playing: !state.playing });
}

let playback = 0; // number of the latest start; earlier loops stop

/** Show frames in real time; wait for late pictures, so that all panes stay synchronized. */
function play() {
  const mine = ++playback;
  let from = state.frame, begin = performance.now();
  const tick = (now) => {
    if (!state.playing || mine !== playback) return;
    const { pictured, rate } = clip();
    const due = from + Math.floor(((now - begin) / 1000) * rate * state.speed);
    const next = (state.frame + 1) % pictured;
    const strips = [...new Set([0, ...layers.map((layer) => layer.strip)])];
    if (due !== from && isHeld(strips, next)) {
      begin += ((due - from) * 1000) / (rate * state.speed);
      const wanted = (state.frame + due - from) % pictured;
      const frame = isHeld(strips, wanted) ? wanted : next;
      from = frame;
      change({ frame });
    } else if (due !== from) {
      begin = now;
      prefetch(strips, state.frame, 12);
    }
    requestAnimationFrame(tick);
  };
  prefetch([...new Set([0, ...layers.map((layer) => layer.strip)])], state.frame, 12);
  requestAnimationFrame(tick);
}

function nextOf(values, current, by) {
  const at = values.indexOf(current);
  return values[clamp(at + by, 0, values.length - 1)];
}
const cycle = (values, current) => values[(values.indexOf(current) + 1) % values.length];

const ACTIONS = {
  " ": togglePlay,
  ArrowLeft: (event) => step(event.shiftKey ? -10 : -1),
  ArrowRight: (event) => step(event.shiftKey ? 10 : 1),
  Home: () => change({ frame: 0 }),
  End: () => change({ frame: clip().pictured - 1 }),
  "[": () => change({ wipe: clamp(state.wipe - 5, 0, 100) }),
  "]": () => change({ wipe: clamp(state.wipe + 5, 0, 100) }),
  ",": () => change({ bits: nextOf(ratesNow(), state.bits, -1) }),
  ".": () => change({ bits: nextOf(ratesNow(), state.bits, 1) }),
  c: () => change({ coder: cycle(codersOf(), state.coder) }),
  s: () => change({ plane: (state.plane + 1) % clip().codebooks.length }),
  z: () => change({ zoom: cycle(ZOOMS, state.zoom) }),
  n: () => openClip(state.clip + 1),
  p: () => openClip(state.clip - 1),
  ...Object.fromEntries(VIEWS.map(([view], k) => [String(k + 1), () => change({ view })])),
};
const ratesNow = () => clip().rates.filter((rate) => rate.coder === state.coder).map((rate) => rate.bits);

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  const on = event.target.closest("button, select, input, a, .scroller");
  const native = [" ", "ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key);
  if (on && (on.matches("select") || (native && event.key !== " ") || on.matches("button, a"))) {
    if (on.matches("select") || (native && (event.key === " " || !on.matches("button, a")))) return;
  }
  const action = ACTIONS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  action(event);
}

function onChange(names) {
  const any = (...some) => some.some((name) => names.has(name));
  if (any("clip")) drawHeader();
  if (any("clip", "view", "coder", "bits", "zoom", "scale", "plane", "colours", "metric")) drawChoices();
  if (any("clip", "view", "coder", "bits", "plane", "scale")) buildPanes();
  if (any("clip", "view", "coder", "bits", "plane", "scale", "colours", "frame")) drawStage();
  if (any("wipe")) showWipe();
  if (any("zoom", "centre")) showLens();
  if (any("clip", "frame", "playing", "speed")) drawTransport();
  if (any("clip", "metric", "coder", "bits")) drawCurves();
  if (any("clip", "coder", "bits")) drawTimeline();
  else if (any("frame")) moveCursor();
  if (any("clip", "coder", "bits")) drawFigures();
  if (any("clip")) { drawUsage(); drawMethod(); }
  if (any("playing") && state.playing) play();
  if (any("view", "bits", "coder", "clip")) announce();
  if (!state.playing) remember();
}

/** Announce the current view to screen readers. */
function announce() {
  const view = VIEWS.find(([name]) => name === state.view)[1];
  byId("spoken").textContent = `${clip().name}: ${view}, ${labelOf(clip().strips[currentStrip()])}`;
}

const REMEMBERED = ["clip", "view", "coder", "bits", "frame", "wipe", "zoom", "plane", "metric"];
let remembering = 0;

/** Keep the view in the address, so that a link restores it. */
function remember() {
  clearTimeout(remembering);
  remembering = setTimeout(() => {
    const words = new URLSearchParams(REMEMBERED.map((name) => [name, state[name]]));
    try {
      history.replaceState(null, "", `#${words}`);
    } catch {
      // some browsers forbid address changes for local files
    }
  }, 300);
}

/** Restore the view from the address; values that do not exist get their defaults. */
function recall() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const whole = (name, least, most) => {
    const value = Number.parseInt(asked.get(name) ?? "", 10);
    return Number.isNaN(value) ? undefined : clamp(value, least, most);
  };
  const one = (name, values) => values.find((value) => String(value) === asked.get(name));
  state.clip = whole("clip", 0, facts.clips.length - 1) ?? 0;
  const rates = vtokRates().map((rate) => rate.bits);
  state.coder = one("coder", codersOf()) ?? VTOK;
  state.bits = one("bits", rates) ?? rates[Math.min(1, rates.length - 1)];
  state.view = one("view", VIEWS.map(([view]) => view)) ?? "wipe";
  state.frame = whole("frame", 0, clip().pictured - 1) ?? 0;
  state.wipe = whole("wipe", 0, 100) ?? 50;
  state.zoom = one("zoom", ZOOMS) ?? 1;
  state.plane = whole("plane", 0, clip().codebooks.length - 1) ?? 0;
  state.metric = one("metric", measured()) ?? measured()[0] ?? "";
}

recall();
buildClips();
buildTransport();
drawKeys();
listeners.push(onChange);
onChange(new Set(Object.keys(state).filter((name) => name !== "playing")));
document.addEventListener("keydown", onKey);
window.addEventListener("hashchange", () => {
  recall();
  onChange(new Set(Object.keys(state).filter((name) => name !== "playing")));
});
let lastWidth = 0;
new ResizeObserver(() => {
  if (document.body.clientWidth === lastWidth) return;
  lastWidth = document.body.clientWidth;
  drawCurves();
  drawTimeline();
}).observe(document.body);
