// Pictures and codes, decoded from the data blocks of the page on first use.

const MOST_PIXELS = 40e6; // limit of decoded pictures, 160 MB
const blocks = new Map(); // block id -> { text, offsets }
const held = new Map(); // "clip/strip/frame" -> ImageBitmap, least recently used first
const pending = new Map(); // "clip/strip/frame" -> promise
const codesHeld = new Map();
let heldPixels = 0;

function blockOf(clipNumber, stripNumber) {
  const strip = facts.clips[clipNumber].strips[stripNumber];
  const id = `pictures-${clipNumber}-${strip.key}`;
  if (!blocks.has(id)) {
    const offsets = [0];
    for (const size of strip.sizes) offsets.push(offsets.at(-1) + 4 * Math.ceil(size / 3));
    blocks.set(id, { text: byId(id).textContent, offsets });
  }
  return blocks.get(id);
}

/** One picture as base64. */
function pictureText(clipNumber, stripNumber, frame) {
  const { text, offsets } = blockOf(clipNumber, stripNumber);
  return text.slice(offsets[frame], offsets[frame + 1]);
}

function bytesOf(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

/** One picture, decoded: an ImageBitmap, or a promise of one. */
function picture(clipNumber, stripNumber, frame) {
  const key = `${clipNumber}/${stripNumber}/${frame}`;
  const bitmap = held.get(key);
  if (bitmap) {
    held.delete(key);
    held.set(key, bitmap);
    return bitmap;
  }
  if (!pending.has(key)) {
    const bytes = bytesOf(pictureText(clipNumber, stripNumber, frame));
    const decoded = createImageBitmap(new Blob([bytes], { type: "image/webp" }));
    pending.set(key, decoded.then((result) => keep(key, result)).finally(() => pending.delete(key)));
  }
  return pending.get(key);
}

function keep(key, bitmap) {
  held.set(key, bitmap);
  heldPixels += bitmap.width * bitmap.height;
  for (const [oldest, old] of held) {
    if (heldPixels <= MOST_PIXELS || oldest === key) break;
    heldPixels -= old.width * old.height;
    held.delete(oldest); // not closed, since a pending draw may use it
  }
  return bitmap;
}

const isHeld = (strips, frame) => strips.every((k) => held.has(`${state.clip}/${k}/${frame}`));

/** One frame of several strips: bitmaps, or a promise of them. */
function picturesInStep(strips, frame) {
  const found = strips.map((k) => picture(state.clip, k, frame));
  return found.some((one) => one instanceof Promise) ? Promise.all(found) : found;
}

function prefetch(strips, frame, count) {
  const { pictured } = clip();
  for (let k = 1; k <= Math.min(count, pictured - 1); k++) {
    for (const strip of strips) picture(state.clip, strip, (frame + k) % pictured);
  }
}

/** All codes of a clip as a flat array, [plane][step][row][column]. */
function codesOf(clipNumber) {
  if (!codesHeld.has(clipNumber)) {
    const bytes = bytesOf(byId(`codes-${clipNumber}`).textContent);
    const view = new DataView(bytes.buffer);
    const { width } = facts.clips[clipNumber].layout;
    const read = { 1: "getUint8", 2: "getUint16", 4: "getUint32" }[width];
    const codes = new Uint32Array(bytes.length / width);
    for (let k = 0; k < codes.length; k++) codes[k] = view[read](k * width, true);
    codesHeld.set(clipNumber, codes);
  }
  return codesHeld.get(clipNumber);
}

/** Codes of one plane at one frame, in row-major order. */
function codesAt(plane, frame) {
  const { grid: [rows, columns], steps } = clip().layout;
  const start = (plane * steps + stepOf(frame)) * rows * columns;
  return codesOf(state.clip).subarray(start, start + rows * columns);
}
