// The page: takes pictures and shows answers. What takes time is in worker.js.
import * as camera from './camera.js';
import {download, forget} from './download.js';

const SHOWN = 5;  // classes
const FRAME_MS = 100;  // between two frames of the camera, at least
const SPOKEN_MS = 3000;  // between two answers that are read aloud, at least

const $ = id => document.getElementById(id);
const say = text => $('message').textContent = text;

function median(values) {
  const sorted = [...values].sort((a, b) => a - b), last = sorted.length - 1;
  return (sorted[last >> 1] + sorted[(last + 1) >> 1]) / 2;
}

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const {userAgent: agent, hardwareConcurrency: cores, maxTouchPoints} = navigator;
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
let turn = 0;  // number of the picture: an answer to an earlier one comes too late
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
  worker.onmessage = ({data: {id, result, error}}) => {
    const {resolve, reject} = calls.get(id);
    calls.delete(id);
    if (error === undefined) resolve(result);
    else reject(new Error(error));
  };
  worker.onerror = () => {
    broken = new Error('a file of the page is missing');
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
  slot.amount.textContent = received < all ? `Loading: ${(received / 1e6).toFixed(1)} of ${(all / 1e6).toFixed(1)} MB` : 'Starting';
}

/** Show a network in a place, and load it. */
async function choose(slot, name) {
  Object.assign(slot, {name, received: 0});
  if (slot.select) slot.select.value = name;
  slot.bars.replaceChildren();
  slot.ms.textContent = slot.error.textContent = '';
  slot.body.hidden = !name;
  slot.loading.hidden = !name || ready.has(name);
  if (name) {
    const model = models.get(name);
    slot.facts.replaceChildren(...model.facts.map(fact => make('li', {dir: 'auto'}, fact)));
    showProgress(slot);
    try {
      await load(model, slot);
    } catch (error) {
      if (slot.name === name) slot.error.textContent = `${name} could not be loaded: ${error.message}. Load the page again.`;
    }
    if (slot.name !== name) return;
    slot.loading.hidden = true;
    if (ready.has(name) && !isLive) await classify();
  }
  for (const other of ready) {
    if (slotOf(other)) continue;
    ready.delete(other);
    loading.delete(other);
    call('unload', {name: other});
  }
  showState();
}

function addSlot(title, names) {
  const slot = {
    received: 0, facts: make('ul'), progress: make('progress', {ariaLabel: 'Loading'}), amount: make('span'),
    error: make('p', {role: 'alert'}), bars: make('ol', {className: 'bars'}), ms: make('p', {className: 'ms'}),
  };
  let head = make('h2', {dir: 'auto'}, names[0]);
  if (models.size > 1) {
    slot.select = make('select', {}, ...names.map(name => make('option', {value: name, dir: 'auto'}, name || 'no other')));
    slot.select.onchange = () => {
      const name = slot.select.value, other = name && slotOf(name), before = slot.name;
      if (other && !before) return slot.select.value = '';
      choose(slot, name);
      if (other) choose(other, before);  // they change places
    };
    head = make('label', {}, title, slot.select);
  }
  slot.loading = make('p', {className: 'loading'}, slot.progress, slot.amount);
  slot.body = make('div', {}, slot.loading, slot.error, slot.bars, slot.ms,
    make('details', {}, make('summary', {}, 'About this network'), slot.facts));
  slots.push(slot);
  $('answers').append(make('article', {}, head, slot.body));
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
  $('note').textContent = names.length ? '' : 'The answer appears when the network is loaded.';
  if (!names.length) return;
  let result;
  try {
    result = await call('classify', {image: picture, names});
  } catch (error) {
    if (mine !== turn) return;
    say(error.message);
    picture = null;
    return showFrame(null);
  }
  const {preview, notes, crop} = result, canvas = $('preview');
  if (mine === turn) {
    Object.assign(canvas, {width: preview.width, height: preview.height, ariaLabel: picture.name});
    canvas.getContext('2d').drawImage(preview, 0, 0);
    $('note').textContent = notes.join(' ');
    showFrame(canvas, crop);
    show(result, picture.name);
    if (slots.every(({loading}) => loading.hidden) && names.some(name => !timed.has(name))) await measure();
  }
  preview.close();
}

/** Show the picture or the camera, with the part that the network sees; or nothing. */
function showFrame(element, {x, y} = {x: [0, 1], y: [0, 1]}) {
  for (const other of [$('preview'), $('video')]) other.hidden = other !== element;
  $('frame').hidden = !element;
  $('empty').hidden = Boolean(element);
  if (!element) return slots.forEach(slot => slot.bars.replaceChildren());
  const [left, width, top, height] = [...x, ...y].map(share => `${100 * share}%`);
  Object.assign($('crop').style, {left, width, top, height});
  $('frame').style.setProperty('--ratio', (element.videoWidth || element.width) / (element.videoHeight || element.height));
}

function showState() {
  const isReady = loaded().length;
  $('example').hidden = !isReady;
  $('state').textContent = isReady ? 'Ready. Choose a picture, or start with this one:' : 'Loading the network. You can already choose a picture.';
}

/** Show the answers; the event `answer` of the document has the logits. */
function show({answers, ms}, name) {
  const said = answers.map(({name, logits}) => {
    const model = models.get(name), most = Math.max(...logits), powers = logits.map(logit => Math.exp(logit - most));
    const sum = powers.reduce((a, b) => a + b), best = [...logits.keys()].sort((a, b) => logits[b] - logits[a]).slice(0, SHOWN);
    const classes = best.map(i => [site.labels[model.labels]?.[i] ?? `class ${i}`, `${(100 * powers[i] / sum).toFixed(1)} %`]);
    slotOf(name)?.bars.replaceChildren(...classes.map(([label, percent]) => {
      const bar = make('span', {className: 'bar'});
      bar.style.setProperty('--share', percent.replace(' ', ''));
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

async function measure(rounds = 21, atMost = 2000) {
  const names = loaded(), times = await call('measure', {names, rounds, atMost}), first = median(times[0]);
  $('times').replaceChildren(...names.map((name, i) => {
    const middle = median(times[i]), cells = [`${middle.toFixed(1)} ms`];
    if (names.length > 1) cells.push((middle / first).toFixed(2));
    timed.add(name);
    return make('tr', {}, make('th', {scope: 'row', dir: 'auto'}, name), ...cells.map(cell => make('td', {}, cell)));
  }));
  $('times').previousElementSibling.hidden = names.length < 2;
  $('device').textContent = `The median of ${times[0].length} runs after two to warm up, without the time to decode and resize the ` +
    `picture. WebAssembly with SIMD, ${threads === 1 ? 'one thread' : `${threads} threads`} on ${cores} cores.`;
  $('speed').hidden = false;
  document.dispatchEvent(new CustomEvent('measured', {detail: {names, times, threads}}));
}

// The camera

async function toggleCamera() {
  if (isLive) return stopCamera();
  say('');
  $('camera').disabled = true;  // until the user allows or refuses it
  try {
    await camera.start($('video'), () => {
      stopCamera();
      say('The camera was disconnected.');
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
  showFrame($('video'));
  while (isLive) {
    const next = new Promise(resolve => setTimeout(resolve, FRAME_MS)), names = loaded();
    if (names.length && !document.hidden && $('video').readyState >= 2) {
      try {
        const image = await createImageBitmap($('video')), result = await call('classify', {image, names}, [image]);
        if (!isLive) return;
        showFrame($('video'), result.crop);
        show(result, 'camera');
        for (const {name, ms} of result.answers) Object.assign(slotOf(name)?.ms ?? {}, {textContent: `${ms.toFixed(1)} ms`});
      } catch (error) {
        say(error.message);
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
  showFrame(null);
  slots.forEach(slot => slot.ms.textContent = '');
}

// The page

function listen() {
  $('file').onchange = ({target}) => {
    if (target.files.length) take(target.files[0]);
    target.value = '';  // so that the same file can be chosen again
  };
  $('example').onclick = async () => take(await camera.photograph($('sample'), 'The example'));
  $('camera').onclick = toggleCamera;
  $('shoot').onclick = async () => take(await camera.photograph($('video'), 'The photograph'));
  $('measure').onclick = () => measure(31, 10_000);
  document.onpaste = ({clipboardData: {files}}) => files.length ? take(files[0]) : say('The clipboard has no picture.');
  document.ondragover = event => event.preventDefault();
  document.ondrop = event => {
    event.preventDefault();
    const {files} = event.dataTransfer;
    if (files.length) take(files[0]);
    else say('This is not a file. Save the picture first, then drop it here.');
  };
}

async function main() {
  listen();
  if (!self.OffscreenCanvas || !self.DecompressionStream) {
    return $('state').textContent = 'This browser is too old to run the network. Update it, or use another.';
  }
  try {
    const response = await fetch('models.json');
    if (!response.ok) throw new Error(`the server answers ${response.status}`);
    site = await response.json();
  } catch ({message}) {
    return $('state').textContent = `The list of networks could not be loaded: ${message}. Load the page again.`;
  }
  for (const model of site.models) models.set(model.name, model);
  startWorker();
  showState();
  const names = [...models.keys()], first = addSlot('Network', names);
  const second = names.length > 1 ? addSlot('Compare with', ['', ...names]) : null;
  // The second waits for the first, and for the user if the browser saves data.
  if (second) second.name = second.select.value = navigator.connection?.saveData ? '' : names[1];
  await choose(first, names[0]);
  navigator.serviceWorker?.register('sw.js', {updateViaCache: 'none'});
  if (second && !loading.has(second.name)) choose(second, second.name);
}

main();
