// Lets the page start without a network and, from the second visit on, in the isolation that threads need.
// The browser compares this file with the one it has, so a new VERSION brings a new copy of the page.
const VERSION = 'development';  // the command that makes the site writes its digest here
const FILES = [
  './', 'style.css', 'icon.svg', 'example.svg', 'models.json', 'app.js', 'camera.js', 'download.js', 'formats.js', 'preprocess.js',
  'worker.js', 'onnxruntime-web/ort.wasm.min.mjs', 'onnxruntime-web/ort-wasm-simd-threaded.mjs',
];
const PREFIX = `timm-mobilenext:${new URL('.', location.href).pathname}:`;  // other sites may share this origin
const NAME = PREFIX + VERSION;
const LARGE = `${PREFIX}files`;

// Replace the old copy at once, as on phones a page is hardly ever closed.
self.addEventListener('install', event => event.waitUntil(self.skipWaiting().then(() => caches.open(NAME))
  .then(cache => cache.addAll(FILES.map(file => new Request(file, {cache: 'reload'}))))));

self.addEventListener('activate', event => event.waitUntil(clean()));

/** Remove the pages of earlier versions, and the large files of download.js that the site no longer has. */
async function clean() {
  for (const name of await caches.keys()) {
    if (name.startsWith(PREFIX) && ![NAME, LARGE].includes(name)) await caches.delete(name);
  }
  const {runtime, models} = await (await (await caches.open(NAME)).match('models.json')).json();
  const wanted = [runtime, ...models.map(model => model.file)].map(({path}) => new URL(path, registration.scope).href);
  const large = await caches.open(LARGE);
  for (const request of await large.keys()) if (!wanted.includes(request.url)) await large.delete(request);
}

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
