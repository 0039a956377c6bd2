// What the first bytes of a file say before anybody decodes it: its format, its size, what a user should know.

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

// format -> its [width, height], where these bytes have it
const SIZES = {
  JPEG(data) {
    for (let at = 2; at + 9 < data.byteLength;) {
      const marker = data.getUint16(at);
      if (/ffc[^48c]/.test(marker.toString(16))) return [data.getUint16(at + 7), data.getUint16(at + 5), data.getUint8(at + 9)];
      at += 2 + data.getUint16(at + 2);
    }
  },
  PNG: data => [data.getUint32(16), data.getUint32(20)],
  GIF: data => [data.getUint16(6, true), data.getUint16(8, true)],
  WebP(data, start) {
    const kind = start.slice(12, 16);
    if (kind === 'VP8 ') return [data.getUint16(26, true) & 0x3fff, data.getUint16(28, true) & 0x3fff];
    const bits = data.getUint32(21, true);
    return kind === 'VP8L' ? [(bits & 0x3fff) + 1, (bits >> 14 & 0x3fff) + 1] :
      [(data.getUint32(24, true) & 0xffffff) + 1, (data.getUint32(26, true) >> 8) + 1];
  },
  AVIF: largest, HEIC: largest,
};

/** The largest of the sizes that are written down: others are of tiles and thumbnails. */
function largest(data, start) {
  const sizes = [...start.matchAll(/ispe/g)].map(({index}) => [data.getUint32(index + 8), data.getUint32(index + 12)]);
  return sizes.sort(([a, b], [c, d]) => c * d - a * b)[0];
}

/** Return the format of a file by its first bytes ('' if none is known), its size (0 where not found), and notes. */
export function inspect(bytes) {
  const start = String.fromCharCode(...bytes.subarray(0, 8192)), notes = [];
  const [format] = SIGNS.find(([, sign]) => sign.test(start)) ?? [''];
  let size;
  try {
    size = SIZES[format]?.(new DataView(bytes.buffer), start);
  } catch {}  // it ends before its size
  const [width = 0, height = 0, channels] = size ?? [];
  if (channels === 4) notes.push('Its colours are for print (CMYK): the browser turned them to RGB.');
  if (format === 'PNG' && bytes[24] === 16) notes.push('It has 16 bits a channel: the browser made 8 of them, as Python may not.');
  if (/^GIF8.*NETSCAPE2|^\x89PNG.*acTL|^RIFF.{4}WEBPVP8X.*ANIM|^.{4}ftypavis/s.test(start)) notes.push('It is animated: this is its first picture.');
  return {format, width, height, notes};
}

/** Say in a sentence why a file could not be decoded. */
export function explain(name, size, {format}) {
  if (!size) return `${name} is empty.`;
  if (UNREAD[format]) return `${name} cannot be shown: ${UNREAD[format]}. Save it as JPEG or PNG.`;
  if (format) return `${name} is damaged or cut off: it starts as ${format}, but the browser cannot decode it.`;
  return `${name} is no picture: expected JPEG, PNG, WebP, GIF, AVIF or BMP.`;
}
