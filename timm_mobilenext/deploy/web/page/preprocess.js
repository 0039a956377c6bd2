// timm's evaluation transform (timm/data/transforms_factory.py): Pillow's resize in fixed point
// (src/libImaging/Resample.c), only of what lies inside torchvision's crop.

const BITS = 22;  // Pillow's PRECISION_BITS for 8 bits a channel
const HALF = 1 << (BITS - 1);
const STRIP = 1 << 20;  // pixels that are read at once: the image is never copied whole

// name -> its reach, and its weight at a distance
const FILTERS = {
  bilinear: [1, x => Math.max(0, 1 - Math.abs(x))],
  bicubic: [2, x => {
    x = Math.abs(x);
    return x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
  }],
};

/** Round as Python does, half to even. */
function round(x) {
  const down = Math.floor(x);
  return x - down === 0.5 ? down + down % 2 : Math.round(x);
}

/** Where the crop lies on an axis: in the resized image, in the result, which may be padded, and in the image. */
function axis(size, resized, crop) {
  const first = resized < crop ? -Math.floor((crop - resized) / 2) : round((resized - crop) / 2);
  const from = Math.max(0, first), count = Math.min(resized, first + crop) - from;
  return {size, resized, from, count, offset: from - first, seen: [from / resized, count / resized]};
}

/** Say how an image is resized and cropped for an entry of models.json: [horizontally, vertically], see `axis`. */
export function plan(width, height, {input_size: [, cropHeight, cropWidth], crop_pct, crop_mode}) {
  let w = Math.floor(cropWidth / crop_pct), h = Math.floor(cropHeight / crop_pct);
  if (crop_mode === 'center' && w === h) {  // torchvision's Resize, by the shorter edge
    [w, h] = width <= height ? [w, Math.floor(h * height / width)] : [Math.floor(w * width / height), h];
  } else if (crop_mode !== 'squash') {  // timm's ResizeKeepRatio
    const ratio = Math[crop_mode === 'border' ? 'max' : 'min'](width / w, height / h);
    [w, h] = [width, height].map(size => Math.max(1, round(size / ratio)));
  }
  return [axis(width, w, cropWidth), axis(height, h, cropHeight)];
}

/** Pillow's weights: for each pixel of the crop the first pixel of the image, how many, and what each counts. */
function coefficients({size, resized, from, count}, [reach, weight]) {
  const scale = size / resized, filterScale = Math.max(scale, 1), support = reach * filterScale;
  const width = Math.ceil(support) * 2 + 1, row = new Float64Array(width);
  const starts = new Int32Array(count), counts = new Int32Array(count), weights = new Int32Array(count * width);
  for (let i = 0; i < count; i++) {
    const center = (from + i + 0.5) * scale;
    const start = starts[i] = Math.max(0, Math.trunc(center - support + 0.5));
    const n = counts[i] = Math.min(size, Math.trunc(center + support + 0.5)) - start;
    let sum = 0;
    for (let k = 0; k < n; k++) sum += row[k] = weight((k + start - center + 0.5) * (1 / filterScale));
    for (let k = 0; k < n; k++) weights[i * width + k] = Math.trunc((row[k] < 0 ? -0.5 : 0.5) + row[k] / sum * (1 << BITS));
  }
  return {starts, counts, weights, width, first: starts[0], end: starts[count - 1] + counts[count - 1]};
}

const clip = sum => Math.min(Math.max(sum >> BITS, 0), 255);

/** Resize rows of `length` pixels of `stride` bytes horizontally. */
function resizeRows(pixels, rows, length, stride, channels, {starts, counts, weights, width, first}) {
  const out = new Uint8Array(rows * starts.length * channels);
  for (let row = 0, target = 0; row < rows; row++) {
    for (let i = 0; i < starts.length; i++) {
      let at = (row * length + starts[i] - first) * stride, k = i * width, r = HALF, g = HALF, b = HALF;
      const end = k + counts[i];
      for (; k < end; k++, at += stride) {  // a grey image does not use g and b
        r += Math.imul(pixels[at], weights[k]);
        g += Math.imul(pixels[at + 1], weights[k]);
        b += Math.imul(pixels[at + 2], weights[k]);
      }
      out[target++] = clip(r);
      if (channels === 1) continue;
      out[target++] = clip(g);
      out[target++] = clip(b);
    }
  }
  return out;
}

/** Add rows `y` and on of the image to the sums of the vertical pass. */
function addRows(sums, pixels, y, rows, line, {starts, counts, weights, width}) {
  for (let i = 0; i < starts.length; i++) {
    const end = Math.min(starts[i] + counts[i], y + rows);
    for (let row = Math.max(starts[i], y); row < end; row++) {
      const weight = weights[i * width + row - starts[i]];
      for (let x = i * line, from = (row - y) * line; x < (i + 1) * line; x++, from++) sums[x] += Math.imul(pixels[from], weight);
    }
  }
}

/** The channels of the network of RGBA; grey as Pillow's convert('L') makes it. */
function pack(rgba, channels) {
  const out = new Uint8Array(rgba.length / 4 * channels);
  for (let at = 0, target = 0; at < rgba.length; at += 4) {
    if (channels === 1) {
      out[target++] = (rgba[at] * 19595 + rgba[at + 1] * 38470 + rgba[at + 2] * 7471 + 0x8000) >> 16;
    } else {
      for (let c = 0; c < 3; c++) out[target++] = rgba[at + c];
    }
  }
  return out;
}

/**
 * Make the network's input of an image.
 * @param read gives the RGBA bytes of a rectangle (x, y, width, height) of the image.
 * @returns Float32Array (C, H, W).
 */
export function prepare(read, width, height, model) {
  const [channels, cropHeight, cropWidth] = model.input_size, filter = FILTERS[model.interpolation];
  const [x, y] = plan(width, height, model), across = coefficients(x, filter), down = coefficients(y, filter);
  // Pillow, from 13.0 on, starts with the axis that shrinks more. Both passes round, so the order matters.
  const isVerticalFirst = height > y.resized && height - y.resized > 2 * (width - x.resized);
  const needed = across.end - across.first, line = (isVerticalFirst ? needed : x.count) * channels;
  const sums = new Int32Array(y.count * line).fill(HALF), step = Math.max(1, Math.floor(STRIP / needed));
  for (let row = down.first; row < down.end; row += step) {
    const rows = Math.min(step, down.end - row), rgba = read(across.first, row, needed, rows);
    const pixels = channels === 1 || isVerticalFirst ? pack(rgba, channels) : rgba;
    addRows(sums, isVerticalFirst ? pixels : resizeRows(pixels, rows, needed, pixels === rgba ? 4 : 1, channels, across),
      row, rows, line, down);
  }
  let small = Uint8Array.from(sums, clip);
  if (isVerticalFirst) small = resizeRows(small, y.count, needed, channels, channels, across);

  const plane = cropHeight * cropWidth, out = new Float32Array(channels * plane);
  for (let c = 0; c < channels; c++) {
    // in float32, as PyTorch divides, subtracts and divides
    const mean = model.mean[c] ?? model.mean[0], std = Math.fround(model.std[c] ?? model.std[0]);
    const table = Float32Array.from({length: 256}, (_, v) => Math.fround(Math.fround(v / 255) - Math.fround(mean)) / std);
    out.fill(table[model.crop_mode === 'border' ? round(255 * mean) : 0], c * plane, (c + 1) * plane);  // the padding
    for (let row = 0, from = c; row < y.count; row++) {
      const target = c * plane + (y.offset + row) * cropWidth + x.offset;
      for (let i = 0; i < x.count; i++, from += channels) out[target + i] = table[small[from]];
    }
  }
  return out;
}
