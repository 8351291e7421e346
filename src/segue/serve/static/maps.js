// Class maps as numbers, and their colours.

function crc(bytes) {
  let rest = -1;
  for (const byte of bytes) {
    rest ^= byte;
    for (let bit = 0; bit < 8; bit += 1) rest = (rest >>> 1) ^ (rest & 1 ? 0xedb88320 : 0);
  }
  return ~rest >>> 0;
}

// A class map is a PNG of ids under a palette. A canvas would give the palette's colours, which two classes may share;
// so the header is made to say grey (colour type 0, byte 25) and the palette is left out: the same bytes are then ids.
function unpaletted(bytes) {
  const head = bytes.slice(0, 33);
  head[25] = 0;
  new DataView(head.buffer).setUint32(29, crc(head.subarray(12, 29)));
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const parts = [head];
  for (let start = 33; start < bytes.length; start += 12 + view.getUint32(start)) {
    const kind = String.fromCharCode(...bytes.subarray(start + 4, start + 8));
    if (kind !== "PLTE" && kind !== "tRNS") parts.push(bytes.subarray(start, start + 12 + view.getUint32(start)));
  }
  return new Blob(parts, { type: "image/png" });
}

// {width, height, values} of an 8-bit PNG, grey or with a palette.
export async function numbers(bytes) {
  const blob = bytes[25] === 3 ? unpaletted(bytes) : new Blob([bytes], { type: "image/png" });
  const image = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const canvas = new OffscreenCanvas(image.width, image.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, image.width, image.height);
  const values = new Uint8Array(image.width * image.height);
  for (let i = 0; i < values.length; i += 1) values[i] = data[4 * i];
  return { width: image.width, height: image.height, values };
}
