// Tables and text: figures of the clip and the mean, code usage, definitions, and keys.

function drawFigures() {
  const names = measured();
  const parts = [scroller("Figures of this clip", rateTable(clip().rates, names, true))];
  if (clip().deltas.length) parts.push(make("h3", {}, "Bjøntegaard deltas of vtok"), deltaTable());
  if (facts.clips.length > 1) {
    const title = `Mean of ${facts.clips.length} clips`;
    const have = names.filter((name) => facts.mean.some((rate) => known(rate[name])));
    parts.push(make("h3", {}, title), scroller(title, rateTable(facts.mean, have, false)));
  }
  byId("figures").replaceChildren(...parts);
}

/** Box in which a wide table scrolls horizontally, also by keyboard. */
function scroller(label, table) {
  return make("div", { class: "scroller", role: "region", tabindex: 0, "aria-label": label }, table);
}

function rateTable(rates, names, selects) {
  const heads = ["", "bits", "bytes", "bpp", "kbit/s", ...names.map((name) => facts.metrics[name].label)];
  const titles = ["", "bits per latent position", "of the whole code file or stream", "bits of the file per pixel", "", ...names.map((name) => facts.metrics[name].meaning)];
  const timed = rates.some((rate) => known(rate.decode_fps));
  if (timed) heads.push("decoding");
  const rows = rates.map((rate) => {
    const chosen = selects && rate.coder === state.coder && rate.bits === state.bits;
    const cells = [number(rate.bytes), bpp(rate.bpp), number(rate.kbps, 1),
      ...names.map((name) => shown(name, rate[name]))].map((cell) => make("td", {}, cell));
    if (timed) cells.push(make("td", {}, known(rate.decode_fps) ? `${number(rate.decode_fps)} frames/s` : "–"));
    const name = selects && stripIndex(rate.coder, rate.bits) > 0
      ? make("button", { type: "button", class: "link", onclick: () => change({ coder: rate.coder, bits: rate.bits }) }, coderLabel(rate))
      : coderLabel(rate);
    return make("tr", { class: chosen ? `chosen coder-${codersOf().indexOf(rate.coder) % 5}` : "", "aria-current": chosen ? "true" : null },
      make("th", { scope: "row" }, name), make("td", {}, number(rate.bits)), cells);
  });
  return make("table", {},
    make("thead", {}, make("tr", {}, heads.map((head, k) => make("th", { scope: "col", title: titles[k] }, head)))),
    make("tbody", {}, rows));
}

const coderLabel = (rate) => (rate.coder === VTOK || !rate.setting ? rate.coder : `${rate.coder}, ${rate.setting}`);

function deltaTable() {
  const rows = clip().deltas.map((delta) => make("tr", {},
    make("th", { scope: "row" }, delta.codec),
    make("td", {}, facts.metrics[delta.metric].label),
    make("td", {}, known(delta.bd_quality) ? signed(delta.bd_quality, facts.metrics[delta.metric].digits) : "–"),
    make("td", {}, known(delta.bd_rate) ? `${signed(delta.bd_rate, 0)} %` : "no common quality")));
  const heads = ["against", "by", "quality at the same bytes", "bytes at the same quality"];
  return scroller("Bjøntegaard deltas", make("table", {},
    make("thead", {}, make("tr", {}, heads.map((head) => make("th", { scope: "col" }, head)))),
    make("tbody", {}, rows)));
}

const signed = (value, digits) => (value < 0 ? "−" : "+") + number(Math.abs(value), digits);

function drawUsage() {
  const { codebooks } = clip(), size = clip().layout.codebook_size;
  const rows = codebooks.map((book, k) => make("tr", {},
    make("th", { scope: "row" }, planeLabel(k)),
    make("td", {}, `${number(100 * book.used, 1)} %`),
    make("td", {}, number(book.perplexity)),
    make("td", {}, number(Math.log2(Math.max(1, book.perplexity)), 2)),
    make("td", { class: "wide" }, meter(Math.log2(Math.max(1, book.perplexity)) / Math.log2(size)))));
  const codes = number(codebooks[0] ? codebooks[0].codes : 0);
  byId("usage").replaceChildren(
    scroller("Code usage", make("table", {},
      make("thead", {}, make("tr", {}, ["", `used of ${number(size)}`, "perplexity", `bits of ${number(Math.log2(size))}`, ""].map((head) => make("th", { scope: "col" }, head)))),
      make("tbody", {}, rows))),
    make("p", { class: "muted small" }, `${codes} codes per stage in this clip. Bits: entropy of the codes of this clip; perplexity: 2 to that power. A short clip cannot use all entries of a large codebook.`));
}

function meter(share) {
  const bar = make("span", { class: "bar" });
  bar.style.width = `${100 * clamp(share, 0, 1)}%`;
  return make("span", { class: "meter", role: "img", "aria-label": `${number(100 * share, 1)} %` }, bar);
}

function drawMethod() {
  const { strips, frames, pictured } = clip();
  const fidelity = strips.map((strip) => strip.fidelity), least = Math.min(...fidelity);
  const items = [
    ["Pictures", `WebP of quality ${facts.webp_quality}. Their PSNR against the real frames is ${number(fidelity[0], 1)} dB for the original, and at least ${number(least, 1)} dB in all rows. All figures are measured on the real frames.`],
    ["Frames", pictured < frames ? `${pictured} of the ${frames} measured frames are pictured; all of them would exceed the size limit of the page.` : `All ${frames} measured frames are pictured.`],
    ["Error", "Mean absolute difference of red, green and blue, computed in the browser from the pictures. The scale is the same for all frames and rates."],
    ["Codes", "Each position of the latent grid in the colour of its code. By bits: codes with common bits have similar colours. By hash: different codes have different colours, out of 256."],
    ["Bytes", "Size of the whole code file, header and index included; kbit/s per second of video. The bars show one file: lower rates are its first stages."],
    ...measured().map((name) => [facts.metrics[name].label, facts.metrics[name].meaning]),
  ];
  byId("method").replaceChildren(make("dl", {}, items.map(([name, words]) => [make("dt", {}, name), make("dd", {}, words)])));
  const { name, weights_sha256: sha, computed } = facts.model;
  byId("footer").textContent = `vtok ${facts.version} · model ${name} · weights ${sha.slice(0, 16)} · computed in ${computed}`;
}

const KEYS = [
  ["Space", "play, pause"], ["← →", "previous, next frame"], ["Shift ← →", "ten frames"],
  ["Home End", "first, last frame"], ["[ ]", "move the divider"], ["1 – 5", "view"],
  [", .", "lower, higher rate"], ["C", "next coder"], ["S", "next stage of the code map"],
  ["Z", "zoom"], ["N P", "next, previous clip"],
];

function drawKeys() {
  byId("keys").replaceChildren(make("div", { class: "head" }, make("h2", {}, "Keys")),
    make("dl", { class: "keys" }, KEYS.map(([keys, words]) => make("div", {},
      make("dt", {}, keys.split(" ").map((key) => (key === "–" ? " – " : make("kbd", {}, key)))), make("dd", {}, words)))),
    make("p", { class: "muted small" }, "Double-click a picture to zoom in there, then drag it. Click the plot over time to go to a frame."));
}
