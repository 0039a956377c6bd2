// Large files, which never change under their name: downloaded once, with progress, and kept for offline use.

// Other sites may share the address, below other paths.
const name = `timm-mobilenext:${new URL('.', location.href).pathname}:files`;

// There is none without https, or if the browser was told to store nothing.
const cache = Promise.resolve(globalThis.caches?.open(name)).catch(() => undefined);

/**
 * Get a file, unpacked, as an ArrayBuffer; errors have words for the user.
 * @param file {path, bytes, size} its address, and its bytes packed and unpacked.
 * @param onProgress is told how many of its bytes are there.
 */
export async function download({path, bytes, size}, onProgress) {
  const kept = await (await cache)?.match(path);
  if (kept) return kept.arrayBuffer();
  let response;
  try {
    response = await fetch(path, await cache ? {cache: 'no-store'} : {});
  } catch {
    throw new Error('it is not stored here, and the server cannot be reached');
  }
  if (!response.ok) throw new Error(`the server has no such file (${response.status})`);
  const chunks = [];
  let received = 0;
  try {
    for (const reader = response.body.getReader(); ;) {
      const {done, value} = await reader.read();
      if (done) break;
      chunks.push(value);
      onProgress(received += value.length);
    }
  } catch {}  // the end of the connection, like any other file that is too short
  if (received !== bytes && received !== size) {  // some servers have the browser unpack a packed file
    throw new Error(`the download was cut off after ${received} of ${bytes} bytes`);
  }
  const packed = new Blob(chunks), stream = packed.stream();
  const content = await new Response(received === size ? stream : stream.pipeThrough(new DecompressionStream('gzip'))).arrayBuffer();
  try {
    await (await cache)?.put(path, new Response(content));  // unpacked, which is faster the next time
  } catch {}  // the storage is full
  return content;
}

/** Forget files, which may have been stored damaged. */
export async function forget(...paths) {
  for (const path of paths) await (await cache)?.delete(path);
}
