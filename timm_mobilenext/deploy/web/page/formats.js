// What the first bytes of a file tell: its format, its size, and why a browser may not decode it.

const UNREAD = {
  HEIC: 'this browser does not read HEIC, which iPhones take (Settings, Camera, Formats: Most Compatible)',
  SVG: 'a drawing (SVG) has no pixels',
  TIFF: 'browsers do not read TIFF',
};
const SIGNS = [
  ['JPEG', /^\xff\xd8/], ['PNG', /^\x89PNG/], ['GIF', /^GIF8/], ['WebP', /^RIFF.{4}WEBP/s], ['BMP', /^BM/],
  ['AVIF', /^.{4}ftypavi/s], ['HEIC', /^.{4}ftyp(hei|hev|mif|msf)/s], ['TIFF', /^(II\*\0|MM\0\*)/],
  ['SVG', /^\s*(<[?!][^>]*>\s*)*<svg/],
];

// [width, height], if these bytes have it; cameras write JPEG
const SIZES = {
  JPEG(data) {
    for (let at = 2; at + 9 < data.byteLength; at += 2 + data.getUint16(at + 2)) {
      if (/ffc[^48c]/.test(data.getUint16(at).toString(16))) return [data.getUint16(at + 7), data.getUint16(at + 5)];
    }
  },
  PNG: data => [data.getUint32(16), data.getUint32(20)],
};

/** Return the format of a file ('' if none is known), and its size (0 if unknown). */
export function inspect(bytes) {
  const start = String.fromCharCode(...bytes.subarray(0, 1024));
  const [format] = SIGNS.find(([, sign]) => sign.test(start)) ?? [''];
  let size;
  try {
    size = SIZES[format]?.(new DataView(bytes.buffer));
  } catch {}  // it ends before its size
  const [width = 0, height = 0] = size ?? [];
  return {format, width, height};
}

/** Say in a sentence why a file could not be decoded. */
export function explain(name, size, {format}) {
  if (!size) return `${name} is empty.`;
  if (UNREAD[format]) return `${name} cannot be shown: ${UNREAD[format]}. Save it as JPEG or PNG.`;
  if (format) return `${name} is damaged or cut off: it starts as ${format}, but the browser cannot decode it.`;
  return `${name} is not an image that this page can read. Use JPEG, PNG, WebP, GIF, AVIF or BMP.`;
}
