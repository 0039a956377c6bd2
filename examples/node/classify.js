// From images to the names of their classes:
//     node classify.js model.onnx model.json IMAGE...
// prints the class of each image and its share, with --logits first all logits.
import {readFile} from 'node:fs/promises';
import ort from 'onnxruntime-node';
import sharp from 'sharp';
// timm's transform, to the pixel, as our page in the browser computes it
import {prepare} from '../../timm_mobilenext/deploy/web/page/preprocess.js';

const words = process.argv.slice(2), logitsOnly = words[0] === '--logits';
const [modelPath, aboutPath, ...images] = words.slice(logitsOnly ? 1 : 0);
if (!images.length) {
  console.error('Usage: node classify.js [--logits] model.onnx model.json IMAGE...');
  process.exit(1);
}

const about = JSON.parse(await readFile(aboutPath, 'utf8'));
const session = await ort.InferenceSession.create(modelPath);
for (const path of images) {
  const {data, info: {width, height}} = await sharp(path).ensureAlpha().raw().toBuffer({resolveWithObject: true});
  const read = (x, y, w, h) => {  // a rectangle of the image, in RGBA
    const bytes = new Uint8Array(4 * w * h);
    for (let row = 0; row < h; row++) {
      const start = 4 * ((y + row) * width + x);
      bytes.set(data.subarray(start, start + 4 * w), 4 * w * row);
    }
    return bytes;
  };
  const pixels = prepare(read, width, height, about);
  const {output} = await session.run({input: new ort.Tensor('float32', pixels, [1, ...about.input_size])});
  const logits = [...output.data], best = logits.indexOf(Math.max(...logits));
  const share = 1 / logits.reduce((sum, logit) => sum + Math.exp(logit - logits[best]), 0);
  console.log(logitsOnly ? [path, ...logits].join('\t') : `${path}: ${about.label_names[best]} ${Math.round(100 * share)} %`);
}
