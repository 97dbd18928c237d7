// Shared by all scripts: the figures, the state of the view, formatting, and element builders.

const facts = JSON.parse(document.getElementById("facts").textContent);
const ORIGINAL = "original", VTOK = "vtok";
const VIEWS = [
  ["wipe", "Wipe"],
  ["error", "Error"],
  ["codes", "Codes"],
  ["pair", "Four up"],
  ["all", "All rates"],
];
const ZOOMS = [1, 2, 4, 8];
const SPEEDS = [1, 0.5, 0.25];
const SCALES = [16, 32, 64, 128]; // error maps: error in levels of 255 at the bright end

const state = {
  clip: 0, coder: VTOK, bits: 0, view: "wipe", frame: 0, wipe: 50, playing: false, speed: 1,
  zoom: 1, centre: [0.5, 0.5], plane: 0, colours: "bits", scale: 64, metric: "",
};
const listeners = [];

/** Update the state and pass the names of the changed fields to the listeners. */
function change(values) {
  const changed = Object.keys(values).filter((name) => state[name] !== values[name]);
  if (!changed.length) return;
  Object.assign(state, values);
  for (const listener of listeners) listener(new Set(changed));
}

const clip = () => facts.clips[state.clip];
const vtokRates = (of = clip()) => of.rates.filter((rate) => rate.coder === VTOK);
const codersOf = (of = clip()) => [...new Set(of.rates.map((rate) => rate.coder))];
const stripIndex = (coder, bits, of = clip()) =>
  of.strips.findIndex((strip) => strip.coder === coder && (strip.bits === bits || strip.original));
const currentStrip = () => stripIndex(state.coder, state.bits);
const rateOf = (strip, of = clip()) =>
  of.rates.find((rate) => rate.coder === strip.coder && rate.bits === strip.bits);
const measured = (of = clip()) =>
  Object.keys(facts.metrics).filter((name) => of.rates.some((rate) => known(rate[name])));
const stagesOf = (bits) => Math.round(bits / facts.model.bits_per_stage);
/** Latent step of a frame; the first frame, also of each window, is a step of its own. */
const stepOf = (frame) => {
  const { temporal, window } = clip().layout;  // window: latent steps, null for a stream
  const length = window ? 1 + (window - 1) * temporal : Infinity;
  return Math.floor(frame / length) * window + Math.ceil((frame % length) / temporal);
};

function known(value) { return value !== null && value !== undefined; }
function clamp(value, least, most) { return Math.min(most, Math.max(least, value)); }

/** Format a number with fixed decimals and thousands separators. */
function number(value, digits = 0) {
  if (!known(value)) return "–";
  return (value || 0).toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function shown(metric, value) {
  const { digits } = facts.metrics[metric];
  return number(value, digits);
}

/** Format bits per pixel with about three significant digits. */
function bpp(value) {
  return number(value, value < 0.1 ? 4 : 3);
}

/** Display name of a strip. */
function labelOf(strip) {
  if (strip.original) return "original";
  return strip.coder === VTOK ? `vtok ${strip.bits} bits` : `${strip.coder} at vtok's ${strip.bits} bits`;
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && known(value)) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter(known)); // strings become text, never markup
  return element;
}
const make = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);
const draw = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const byId = (id) => document.getElementById(id);

/** Group of buttons, one of them pressed; `options` are [value, label, title]. */
function choice(name, label, options, current, choose) {
  const buttons = options.map(([value, text, title]) =>
    make("button", {
      type: "button", title, "aria-pressed": String(value === current), "data-value": value,
      onclick: (event) => { release(event); choose(value); },
    }, text));
  return make("div", { class: "choice", role: "group", "aria-label": label, "data-name": name }, buttons);
}

/** After a pointer click, return keyboard input from the button to the page. */
function release(event) {
  if (event.detail) event.currentTarget.blur();
}
