// Decodes, prepares and classifies images, so that the page stays responsive.
import * as ort from './onnxruntime-web/ort.wasm.min.mjs';
import {explain, inspect} from './formats.js';
import {plan, prepare} from './preprocess.js';

const MOST_PIXELS = 120e6;  // browsers draw larger pictures black
const CANVAS_PIXELS = 16_777_216;  // some phones hold no more
const PREVIEW = 720;  // the longer edge of what is shown

const networks = new Map();  // name -> {model, session}

const find = names => names.map(name => networks.get(name));

const commands = {
  start({wasm, threads}) {
    const mjs = new URL('onnxruntime-web/ort-wasm-simd-threaded.mjs', import.meta.url).href;
    Object.assign(ort.env.wasm, {wasmBinary: wasm, numThreads: threads, wasmPaths: {mjs}});
  },

  async load({model, bytes}) {
    networks.set(model.name, {model, session: await ort.InferenceSession.create(bytes, {executionProviders: ['wasm']})});
  },

  async unload({name}) {
    await networks.get(name)?.session.release();
    networks.delete(name);
  },

  /** Classify a file, or an ImageBitmap of the camera. */
  async classify({image, names}) {
    const start = performance.now();
    const {bitmap, notes} = image instanceof Blob ? await decode(image) : {bitmap: image, notes: []};
    try {
      const decoded = performance.now(), {width, height} = bitmap, read = reader(bitmap), inputs = {}, answers = [];
      const chosen = find(names);
      for (const {model} of chosen) inputs[look(model)] ??= prepare(read, width, height, model);
      const prepared = performance.now();
      for (const network of chosen) answers.push({name: network.model.name, ...await run(network, inputs[look(network.model)])});
      const [x, y] = plan(width, height, chosen[0].model), part = x.seen[1] * y.seen[1];
      if (part < 0.25) notes.push(`The network sees only the middle, ${(100 * part).toPrecision(1)} % of it.`);
      const scale = Math.min(1, PREVIEW / Math.max(width, height));
      const resizeWidth = Math.ceil(width * scale), resizeHeight = Math.ceil(height * scale);
      return {
        answers, notes, crop: {x: x.seen, y: y.seen}, ms: {decode: decoded - start, prepare: prepared - decoded},
        preview: image === bitmap ? null : await createImageBitmap(bitmap, {resizeWidth, resizeHeight}),
      };
    } finally {
      bitmap.close();
    }
  },

  /** Time the networks in turn; returns the milliseconds of each run. */
  async measure({names, rounds, atMost}) {
    const chosen = find(names), times = names.map(() => []), start = performance.now();
    for (let round = -2; round < rounds && (round < 5 || performance.now() - start < atMost); round++) {  // two to warm up
      for (const [i, network] of chosen.entries()) {
        const {ms} = await run(network, blank(network.model));
        if (round >= 0) times[i].push(ms);
      }
    }
    return times;
  },
};

/** Return what an image's preparation depends on. */
const look = ({input_size, interpolation, crop_pct, crop_mode, mean, std}) =>
  JSON.stringify([input_size, interpolation, crop_pct, crop_mode, mean, std]);

const blank = ({input_size: [c, h, w]}) => new Float32Array(c * h * w);

async function run({model, session}, input) {
  const tensor = new ort.Tensor('float32', input, [1, ...model.input_size]), start = performance.now();
  const output = await session.run({[session.inputNames[0]]: tensor});
  return {ms: performance.now() - start, logits: [...output[session.outputNames[0]].data]};
}

async function decode(file) {
  const head = inspect(new Uint8Array(await file.slice(0, 1 << 20).arrayBuffer())), {width, height} = head;
  const notes = [], pixels = width * height, options = {colorSpaceConversion: 'none'};
  checkSize(file, pixels);
  if (pixels > CANVAS_PIXELS) {
    const shape = Math.min(width, height) / Math.max(width, height);
    options.resizeQuality = 'high';  // pictures may be turned, except for panoramas
    options.resizeWidth = Math.floor(Math.sqrt(CANVAS_PIXELS * (shape < 0.25 ? width / height : shape)));
    notes.push(`It has ${Math.round(pixels / 1e6)} million pixels and was reduced first: Python may answer slightly differently.`);
  }
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, options);
  } catch {
    throw new Error(explain(file.name, file.size, head));
  }
  checkSize(file, bitmap.width * bitmap.height);
  return {notes, bitmap};
}

function checkSize({name}, pixels) {
  if (pixels > MOST_PIXELS) {
    throw new Error(`${name} has ${Math.round(pixels / 1e6)} million pixels. Use a picture of at most ${MOST_PIXELS / 1e6} million.`);
  }
}

/** Read rectangles of a picture, white where it is transparent. */
function reader(bitmap) {
  const canvas = new OffscreenCanvas(1, 1), context = canvas.getContext('2d', {willReadFrequently: true, alpha: false});
  return (x, y, width, height) => {
    if (canvas.width !== width || canvas.height < height) Object.assign(canvas, {width, height});
    context.fillStyle = '#fff';
    context.fillRect(0, 0, width, height);
    context.drawImage(bitmap, x, y, width, height, 0, 0, width, height);
    return context.getImageData(0, 0, width, height).data;
  };
}

async function obey({id, command, ...given}) {
  try {
    const result = await commands[command](given);
    self.postMessage({id, result}, result?.preview ? [result.preview] : []);
  } catch (error) {
    self.postMessage({id, error: String(error.message ?? error)});
  }
}

let last = Promise.resolve();
self.onmessage = ({data}) => last = last.then(() => obey(data));  // one after another
