// Drawing of one layer on a canvas: a frame, an error map or a code map.

const heat = facts.heat.map(rgb);
const palette = facts.palette.map(rgb);
const codeColours = new Map();

function rgb(hex) {
  const value = parseInt(hex.slice(1), 16);
  return [value >> 16, (value >> 8) & 255, value & 255];
}

/** Draw a bitmap. */
function drawPicture(canvas, bitmap) {
  const context = sized(canvas, bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0);
}

/** Draw the absolute difference of two bitmaps, averaged over R, G and B; returns its mean. */
function drawError(canvas, first, second) {
  const { width, height } = first;
  const [a, b] = [first, second].map((bitmap) => pixelsOf(bitmap).data);
  const image = new ImageData(width, height);
  const out = image.data, most = heat.length - 1, gain = most / state.scale;
  let total = 0;
  for (let k = 0; k < out.length; k += 4) {
    const error =
      (Math.abs(a[k] - b[k]) + Math.abs(a[k + 1] - b[k + 1]) + Math.abs(a[k + 2] - b[k + 2])) / 3;
    total += error;
    const colour = heat[Math.min(most, Math.round(error * gain))];
    out[k] = colour[0];
    out[k + 1] = colour[1];
    out[k + 2] = colour[2];
    out[k + 3] = 255;
  }
  sized(canvas, width, height).putImageData(image, 0, 0);
  return total / (width * height);
}

/** Draw the codes of one plane, each as a block in its colour. */
function drawCodes(canvas, plane, frame) {
  const { width, height, layout } = clip();
  const { grid: [rows, columns], spatial } = layout;
  const image = new ImageData(columns, rows);
  codesAt(plane, frame).forEach((code, k) => image.data.set([...codeColour(code), 255], 4 * k));
  const small = Object.assign(make("canvas"), { width: columns, height: rows });
  small.getContext("2d").putImageData(image, 0, 0);
  const context = sized(canvas, width, height);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, columns * spatial, rows * spatial); // the last blocks may be cropped
}

/** Colour of a code: by its bits, so that codes with common bits look similar, or by a hash. */
function codeColour(code) {
  const bits = clip().layout.bits_per_code;
  const key = `${state.colours}${bits}/${code}`;
  if (!codeColours.has(key)) {
    codeColours.set(key, state.colours === "hash" ? palette[hash(code) % palette.length] : byBits(code, bits));
  }
  return codeColours.get(key);
}

/** Bits 0, 3, 6 ... select red, 1, 4, 7 ... green, 2, 5, 8 ... blue. */
function byBits(code, bits) {
  return [0, 1, 2].map((channel) => {
    let value = 0, most = 0;
    for (let bit = channel; bit < bits; bit += 3) {
      value = 2 * value + ((code >>> bit) & 1);
      most = 2 * most + 1;
    }
    return most ? Math.round(30 + (205 * value) / most) : 120;
  });
}

function hash(code) {
  let x = Math.imul(code ^ (code >>> 16), 0x45d9f3b);
  x = Math.imul(x ^ (x >>> 15), 0x2c1b3c6d);
  return (x ^ (x >>> 13)) >>> 0;
}

function sized(canvas, width, height) {
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  return canvas.getContext("2d");
}

const scratch = document.createElement("canvas");

function pixelsOf(bitmap) {
  const { width, height } = bitmap;
  if (scratch.width !== width || scratch.height !== height) Object.assign(scratch, { width, height });
  const context = scratch.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, width, height);
}
