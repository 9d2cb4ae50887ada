// A file to the pixels that the image graph gets, and to a small picture for the results.

const THUMB = 320; // longest side of a small picture
const ENOUGH = 2_000_000; // pixels: what is at least left of a large picture
const STRIP = 1_000_000; // pixels that are copied out of the decoder's memory at once

/** {pixels: {data (Uint8Array [h, w, 3]), width, height}, thumb (Blob), width, height}. The graph does the resizing. */
export async function readPicture(file, size) {
  const bitmap = await decode(file);
  try {
    const { width, height } = bitmap;
    return { pixels: shrunk(bitmap, factor(width, height, size)), thumb: await thumbnail(bitmap), width, height };
  } finally {
    bitmap.close();
  }
}

async function decode(file) {
  if (file.size === 0) throw unreadable("the file is empty");
  try {
    // Upright, without colour management, and transparency not yet worked in: as the pictures of training were read.
    return await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw unreadable("damaged, or of a kind that this browser does not read");
  }
}

function unreadable(reason) {
  return Object.assign(new Error(reason), { kind: "unreadable" });
}

/** By which whole number a picture is made smaller before the graph sees it: two megapixels are left, and four times `size`. */
export function factor(width, height, size) {
  const byPixels = Math.floor(Math.sqrt((width * height) / ENOUGH));
  const bySide = Math.floor(Math.min(width, height) / (4 * size));
  return Math.max(1, Math.min(byPixels, bySide));
}

/** RGB of a picture on white, made k times smaller by averaging areas: {data, width, height}. Read strip by strip. */
export function shrunk(bitmap, k) {
  const { width, height } = bitmap;
  const smaller = areaAverage(width, height, Math.ceil(width / k), Math.ceil(height / k));
  const rows = Math.min(height, Math.max(1, Math.floor(STRIP / width)));
  const canvas = new OffscreenCanvas(width, rows);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  for (let top = 0; top < height; top += rows) {
    const count = Math.min(rows, height - top);
    context.fillRect(0, 0, width, count);
    context.drawImage(bitmap, 0, top, width, count, 0, 0, width, count);
    smaller.take(context.getImageData(0, 0, width, count).data, count);
  }
  return smaller.result;
}

/** Takes rows of RGBA from the top, gives RGB: every pixel the mean of its area, areas that end inside of a pixel included. */
function areaAverage(width, height, outWidth, outHeight) {
  const data = new Uint8ClampedArray(outWidth * outHeight * 3); // rounds halves to the even neighbour: no drift towards white
  const columns = spans(width, outWidth), lines = spans(height, outHeight);
  const area = (width / outWidth) * (height / outHeight);
  const line = new Float64Array((outWidth + 1) * 3);
  let sums = new Float64Array(line.length), next = new Float64Array(line.length), row = 0;
  const flush = (target) => {
    for (let i = 0, at = target * outWidth * 3; i < outWidth * 3; i++) data[at + i] = sums[i] / area;
    [sums, next] = [next, sums];
    next.fill(0);
  };
  const take = (rgba, count) => {
    for (let y = 0, at = 0; y < count; y++, row++) {
      line.fill(0);
      for (let x = 0; x < width; x++, at += 4) {
        const place = columns.first[x] * 3, share = columns.share[x];
        for (let c = 0; c < 3; c++) {
          line[place + c] += rgba[at + c] * share;
          if (share < 1) line[place + 3 + c] += rgba[at + c] * (1 - share);
        }
      }
      const share = lines.share[row];
      for (let i = 0; i < line.length; i++) {
        sums[i] += line[i] * share;
        if (share < 1) next[i] += line[i] * (1 - share);
      }
      if (row + 1 === height || lines.first[row + 1] > lines.first[row]) flush(lines.first[row]);
    }
  };
  return { take, result: { data: new Uint8Array(data.buffer), width: outWidth, height: outHeight } };
}

/** For each of `from` pixels the first of `to` areas that it lies in, and which share of it; the rest is in the next area. */
function spans(from, to) {
  const first = new Int32Array(from), share = new Float64Array(from);
  for (let x = 0; x < from; x++) {
    first[x] = Math.floor((x * to) / from);
    // Whole numbers, so that areas which end between two pixels do so exactly.
    const beyond = (x + 1) * to - (first[x] + 1) * from;
    share[x] = beyond > 0 ? 1 - beyond / to : 1;
  }
  return { first, share };
}

async function thumbnail(bitmap) {
  const scale = Math.min(1, THUMB / Math.max(bitmap.width, bitmap.height));
  const canvas = new OffscreenCanvas(Math.max(1, Math.round(bitmap.width * scale)), Math.max(1, Math.round(bitmap.height * scale)));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.82 });
}
