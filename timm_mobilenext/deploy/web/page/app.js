// The page: pictures in, answers out. What takes time is in worker.js.
import * as camera from './camera.js';
import {download, forget, storage} from './download.js';

const SHOWN = 5;  // classes
const FRAME_MS = 100;  // at least, between two frames of the camera
const SPOKEN_MS = 3000;  // at least, between two answers to them that are read aloud
// A module with an instruction of WebAssembly SIMD.
const SIMD = Uint8Array.of(0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11);

const $ = id => document.getElementById(id);
const say = text => $('message').textContent = text;
const megabytes = bytes => `${(bytes / 1e6).toFixed(1)} MB`;

function median(values) {
  const sorted = [...values].sort((a, b) => a - b), last = sorted.length - 1;
  return (sorted[last >> 1] + sorted[(last + 1) >> 1]) / 2;
}

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const {userAgent: agent, userAgentData: client, hardwareConcurrency: cores, maxTouchPoints} = navigator;
const isIos = /iP(hone|ad|od)/.test(agent) || (/Mac/.test(agent) && maxTouchPoints > 1);
// Threads need isolation, and fail on iOS (onnxruntime #11679). ?threads=N asks for others.
const threads = !self.crossOriginIsolated || isIos ? 1 :
  Number(new URLSearchParams(location.search).get('threads')) || Math.min(4, Math.ceil(cores / 2));

let site;  // models.json
const models = new Map();  // name -> its entry there
const loading = new Map();  // name -> promise
const ready = new Set();  // names
const timed = new Set();  // names
const slots = [];  // the networks side by side
const loaded = () => slots.map(slot => slot.name).filter(name => ready.has(name));
const slotOf = name => slots.find(slot => slot.name === name);
let picture = null;  // a File
let turn = 0;  // of what is classified: an answer of an earlier one is late
let isLive = false, lastSpoken = 0;

// The worker

let worker, lastCall = 0, broken;
const calls = new Map();

function call(command, given, transfer) {
  return new Promise((resolve, reject) => {
    calls.set(++lastCall, {resolve, reject});
    if (broken) reject(broken);
    else worker.postMessage({id: lastCall, command, ...given}, transfer);
  });
}

function startWorker() {
  worker = new Worker('worker.js', {type: 'module'});
  worker.onmessage = ({data: {id, result, error, isTold}}) => {
    const {resolve, reject} = calls.get(id);
    calls.delete(id);
    if (error === undefined) resolve(result);
    else reject(Object.assign(new Error(error), {isTold}));
  };
  worker.onerror = () => {
    broken = new Error('a part of the page is missing');
    calls.forEach(({reject}) => reject(broken));
  };
}

// The networks

let runtimeReceived = 0;

/** Do something once, and again only if it failed. */
function once(name, work) {
  if (!loading.has(name)) {
    loading.set(name, work().catch(error => {
      loading.delete(name);
      throw error;
    }));
  }
  return loading.get(name);
}

const loadRuntime = () => once('', async () => {
  const wasm = await download(site.runtime, received => {
    runtimeReceived = received;
    slots.forEach(showProgress);
  });
  runtimeReceived = site.runtime.bytes;
  await call('start', {wasm, threads}, [wasm]);
});

const load = (model, slot) => once(model.name, async () => {
  const [bytes] = await Promise.all([download(model.file, received => {
    slot.received = received;
    showProgress(slot);
  }), loadRuntime()]);
  slot.received = model.file.bytes;
  showProgress(slot);
  try {
    await call('load', {model, bytes}, [bytes]);
  } catch (error) {
    await forget(model.file.path, site.runtime.path);
    throw error;
  }
  ready.add(model.name);
});

function showProgress(slot) {
  if (!slot.name) return;
  const all = models.get(slot.name).file.bytes + site.runtime.bytes, received = slot.received + runtimeReceived;
  slot.progress.value = received / all;
  slot.amount.textContent = received < all ? `Loading: ${megabytes(received)} of ${megabytes(all)}` : 'Starting';
}

/** Show a network in a place, and load it. */
async function choose(slot, name) {
  Object.assign(slot, {name, received: 0});
  slot.select.value = name;
  slot.bars.replaceChildren();
  slot.ms.textContent = slot.error.textContent = '';
  slot.retry.hidden = true;
  slot.body.hidden = !name;
  const model = models.get(name);
  slot.loading.hidden = !name || ready.has(name);
  if (name) {
    slot.facts.textContent = `${(model.params / 1e6).toFixed(2)} M parameters, ${Math.round(model.madds / 1e6)} M multiply-adds ` +
      `at ${model.input_size.slice(1).join(' x ')} px, ${megabytes(model.file.size)}, ${model.precision_in_words}`;
    showProgress(slot);
    try {
      await load(model, slot);
    } catch (error) {
      if (slot.name === name) slot.error.textContent = `${name} could not be loaded: ${error.message}.`;
    }
    if (slot.name !== name) return;
    slot.loading.hidden = true;
    slot.retry.hidden = ready.has(name);
    if (ready.has(name) && !isLive) await classify();
  }
  for (const other of ready) {
    if (slotOf(other)) continue;
    ready.delete(other);
    loading.delete(other);
    call('unload', {name: other});
  }
}

function addSlot(title, names) {
  const slot = {
    received: 0, select: make('select', {}, ...names.map(name => make('option', {value: name, dir: 'auto'}, name || 'none'))),
    facts: make('p', {className: 'facts'}), progress: make('progress', {ariaLabel: `${title}: loading`}), amount: make('span'),
    error: make('p', {role: 'alert'}), retry: make('button', {hidden: true}, 'Try again'),
    bars: make('ol', {className: 'bars'}), ms: make('p', {className: 'ms'}),
  };
  slot.loading = make('p', {className: 'loading'}, slot.progress, slot.amount);
  slot.body = make('div', {}, slot.facts, slot.loading, slot.error, slot.retry, slot.bars, slot.ms);
  slot.select.onchange = () => {
    const name = slot.select.value, other = name && slotOf(name), before = slot.name;
    if (other && !before) return slot.select.value = '';
    choose(slot, name);
    if (other) choose(other, before);  // they change places
  };
  slot.retry.onclick = () => choose(slot, slot.name);
  slots.push(slot);
  $('answers').append(make('article', {}, make('label', {}, title, slot.select), slot.body));
  return slot;
}

// Pictures

function take(file) {
  stopCamera();
  picture = file;
  classify();
}

async function classify() {
  const mine = ++turn, names = loaded();
  if (!picture) return;
  say('');
  $('note').textContent = names.length ? '' : 'The answer comes when the network has been loaded.';
  if (!names.length) return;
  let result;
  try {
    result = await call('classify', {image: picture, names});
  } catch (error) {
    if (mine === turn) say(error.isTold ? error.message : `${picture.name} could not be classified: ${error.message}.`);
    return;
  }
  const {preview, notes, crop} = result, canvas = $('preview');
  if (mine === turn) {
    Object.assign(canvas, {width: preview.width, height: preview.height, ariaLabel: picture.name});
    canvas.getContext('2d').drawImage(preview, 0, 0);
    if (storage.isFull) notes.push('The storage of this browser is full: next time the network is downloaded again.');
    $('note').textContent = notes.join(' ');
    showFrame(canvas, crop);
    show(result, picture.name);
    if (slots.every(({name, retry}) => !name || ready.has(name) || !retry.hidden) && names.some(name => !timed.has(name))) await measure();
  }
  preview.close();
}

function showFrame(element, {x, y}) {
  for (const other of [$('preview'), $('video')]) other.hidden = other !== element;
  $('frame').hidden = !element;
  $('hint').hidden = Boolean(element);
  const [left, width, top, height] = [...x, ...y].map(share => `${100 * share}%`);
  Object.assign($('crop').style, {left, width, top, height});
}

/** Show the answers; the event `answer` of the document has the logits. */
function show({answers, ms}, name) {
  const said = answers.map(({name, logits}) => {
    const model = models.get(name), most = Math.max(...logits), powers = logits.map(logit => Math.exp(logit - most));
    const sum = powers.reduce((a, b) => a + b), best = [...logits.keys()].sort((a, b) => logits[b] - logits[a]).slice(0, SHOWN);
    const classes = best.map(i => [site.labels[model.labels]?.[i] ?? `class ${i}`, `${(100 * powers[i] / sum).toFixed(1)} %`]);
    slotOf(name)?.bars.replaceChildren(...classes.map(([label, percent]) => {
      const bar = make('span', {className: 'bar'});
      bar.style.width = percent.replace(' ', '');
      return make('li', {}, make('span', {dir: 'auto'}, label), make('span', {}, percent), bar);
    }));
    return `${name}: ${classes[0].join(', ')}`;
  }).join('. ');
  if ((!isLive || performance.now() - lastSpoken > SPOKEN_MS) && $('spoken').textContent !== said) {
    $('spoken').textContent = said;
    lastSpoken = performance.now();
  }
  document.dispatchEvent(new CustomEvent('answer', {detail: {name, answers, ms}}));
}

// Time

async function measure(rounds = 21, atMost = 2000) {
  const names = loaded(), times = await call('measure', {names, rounds, atMost}), first = median(times[0]);
  $('times').replaceChildren(...names.map((name, i) => {
    const middle = median(times[i]), cells = [middle.toFixed(1), (middle / first).toFixed(2), times[i].length];
    timed.add(name);
    return make('tr', {}, make('th', {scope: 'row', dir: 'auto'}, name), ...cells.map(cell => make('td', {}, cell)));
  }));
  $('speed').hidden = false;
  document.dispatchEvent(new CustomEvent('measured', {detail: {names, times, threads}}));
}

async function describeDevice() {
  const data = await client?.getHighEntropyValues(['model']);
  const brand = data?.brands.findLast(({brand}) => !/Not/.test(brand));
  const browser = brand ? `${brand.brand} ${brand.version}` : /Firefox\/\d+|Version\/[\d.]+ .*Safari/.exec(agent)?.[0] ?? 'a browser';
  const system = data ? `${data.platform} ${data.model}`.trim() : /\((.*?)\)/.exec(agent)[1];
  $('device').textContent = `WebAssembly with SIMD on the processor, ${threads === 1 ? 'one thread' : `${threads} threads`}; ` +
    `${browser} on ${system}, ${cores} cores. Medians of runs in turn, after warming up, without decoding and resizing.`;
}

// The camera

async function toggleCamera() {
  if (isLive) return stopCamera();
  say('');
  $('camera').disabled = true;  // until it was allowed or refused
  try {
    await camera.start($('video'), () => {
      stopCamera();
      say('The camera was taken away.');
    });
  } catch (error) {
    return say(error.message);
  } finally {
    $('camera').disabled = false;
  }
  isLive = true;
  picture = null;
  turn++;
  $('note').textContent = '';
  $('camera').textContent = 'Stop the camera';
  $('shoot').hidden = false;
  showFrame($('video'), {x: [0, 1], y: [0, 1]});
  const recent = {};  // name -> milliseconds of the last runs
  while (isLive) {
    const next = new Promise(resolve => setTimeout(resolve, FRAME_MS)), names = loaded();
    if (names.length && !document.hidden && $('video').readyState >= 2) {
      try {
        const image = await createImageBitmap($('video')), result = await call('classify', {image, names}, [image]);
        if (!isLive) return;
        showFrame($('video'), result.crop);
        show(result, 'camera');
        for (const {name, ms} of result.answers) {
          recent[name] = [...recent[name] ?? [], ms].slice(-15);
          Object.assign(slotOf(name)?.ms ?? {}, {textContent: `${median(recent[name]).toFixed(1)} ms`});
        }
      } catch (error) {
        say(`A frame of the camera could not be classified: ${error.message}.`);
      }
    }
    await next;
  }
}

function stopCamera() {
  if (!isLive) return;
  isLive = false;
  camera.stop($('video'));
  $('camera').textContent = 'Camera';
  $('shoot').hidden = true;
  showFrame(null, {x: [], y: []});
  slots.forEach(slot => slot.ms.textContent = '');
}

// The page

function listen() {
  $('file').onchange = ({target}) => {
    if (target.files.length) take(target.files[0]);
    target.value = '';  // so that the same file can be chosen again
  };
  $('camera').onclick = toggleCamera;
  $('shoot').onclick = async () => take(await camera.photograph($('video')));
  $('measure').onclick = () => measure(31, 10_000);
  document.onpaste = ({clipboardData: {files}}) => files.length ? take(files[0]) : say('There is no picture in the clipboard.');
  document.ondragover = event => event.preventDefault();
  document.ondrop = event => {
    event.preventDefault();
    const {files} = event.dataTransfer;
    if (files.length) take(files[0]);
    else say('That was no file: save the picture first, then drop it here.');
  };
}

async function main() {
  listen();
  if (!WebAssembly.validate(SIMD) || !self.OffscreenCanvas || !self.DecompressionStream) {
    return $('wait').textContent = 'This browser cannot run the network: it lacks WebAssembly with SIMD, or what else ' +
      'browsers have since 2023. Update it, or use another.';
  }
  try {
    const response = await fetch('models.json');
    if (!response.ok) throw new Error(`the server answers ${response.status}`);
    site = await response.json();
  } catch ({message}) {
    return $('wait').textContent = `The list of the networks could not be loaded: ${message}. Load the page again.`;
  }
  for (const model of site.models) models.set(model.name, model);
  $('wait').hidden = true;
  $('about').append(...site.models.map(({name, source, license, check}) => make('p', {dir: 'auto'},
    `${name}: from ${source}, licence ${license ?? 'not stated'}. As in PyTorch: ${check}.`)));
  startWorker();
  describeDevice();
  const names = [...models.keys()], first = addSlot('Network', names);
  const second = names.length > 1 ? addSlot('Beside it', ['', ...names]) : null;
  // The second waits for the first, and is not loaded by itself where the user saves data.
  if (second) second.name = second.select.value = navigator.connection?.saveData ? '' : names[1];
  await choose(first, names[0]);
  navigator.serviceWorker?.register('sw.js', {updateViaCache: 'none'});
  if (second && !loading.has(second.name)) choose(second, second.name);
}

main();
