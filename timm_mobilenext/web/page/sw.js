// Lets the page start without a network, and from the second visit on in isolation, where WebAssembly may have threads.
// The browser compares this file with the one it has, so a new VERSION brings a whole new copy of the page.
const VERSION = 'development';  // the command that makes the site writes its digest here
const FILES = [
  './', 'style.css', 'icon.svg', 'models.json', 'app.js', 'camera.js', 'download.js', 'formats.js', 'preprocess.js',
  'worker.js', 'onnxruntime-web/ort.wasm.min.mjs', 'onnxruntime-web/ort-wasm-simd-threaded.mjs',
];
const PREFIX = `timm-mobilenext:${new URL('.', location.href).pathname}:`;  // other sites may share this origin
const NAME = PREFIX + VERSION;

// It takes over at once: on phones a page is hardly ever closed. What is open keeps what it has loaded until it is
// loaded again.
self.addEventListener('install', event => event.waitUntil(self.skipWaiting().then(() => caches.open(NAME))
  .then(cache => cache.addAll(FILES.map(file => new Request(file, {cache: 'reload'}))))));

self.addEventListener('activate', event => event.waitUntil(
  caches.keys().then(names => Promise.all(names
    .filter(name => name.startsWith(PREFIX) && name !== NAME && name !== `${PREFIX}files`)
    .map(name => caches.delete(name))))));

self.addEventListener('fetch', event => {
  const {request} = event, {scope} = registration;
  if (request.method === 'GET' && request.url.startsWith(scope) && !request.url.startsWith(`${scope}files/`)) {
    event.respondWith(answer(request));
  }
});

async function answer(request) {
  const cache = await caches.open(NAME);
  const {body, status, statusText, headers} =
    await cache.match(request.url.replace(/index\.html$/, ''), {ignoreSearch: true, ignoreVary: true}) ?? await fetch(request);
  const isolated = new Headers(headers);
  isolated.set('Cross-Origin-Opener-Policy', 'same-origin');
  isolated.set('Cross-Origin-Embedder-Policy', 'require-corp');
  return new Response([101, 204, 205, 304].includes(status) ? null : body, {status, statusText, headers: isolated});
}
