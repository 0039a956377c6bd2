// Large files, which never change under their name: downloaded once, and stored for visits offline.

// Other sites may share the address, below other paths.
const name = `timm-mobilenext:${new URL('.', location.href).pathname}:files`;

// Undefined without https, or if the browser stores nothing.
const cache = Promise.resolve(globalThis.caches?.open(name)).catch(() => undefined);

/**
 * Return a file, unpacked, as an ArrayBuffer. Its errors are words for the user.
 * @param file {path, bytes, size} its address, and its bytes packed and unpacked.
 * @param onProgress is called with the number of bytes received.
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
  } catch {}  // the connection ended: handled below, like any file that is too short
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

/** Remove files from the storage, as they may be damaged. */
export async function forget(...paths) {
  for (const path of paths) await (await cache)?.delete(path);
}
