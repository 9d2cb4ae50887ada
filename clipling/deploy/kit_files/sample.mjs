// Tested with Node.js and onnxruntime-node. In a browser import onnxruntime-web instead; the calls are the same.
//   npm install onnxruntime-node
//   node sample.mjs EXPORTED_FOLDER      checks every fixture of the kit and labels one picture
import { readFileSync } from "node:fs";
import { join } from "node:path";
import * as ort from "onnxruntime-node";

const TYPES = { uint8: Uint8Array, float32: Float32Array };

export class Model {
  static async load(folder) {
    const model = new Model();
    model.manifest = JSON.parse(readFileSync(join(folder, "clipling.json"), "utf8"));
    model.image = await ort.InferenceSession.create(join(folder, model.manifest.image.files.fp32));
    model.text = await ort.InferenceSession.create(join(folder, model.manifest.text.files.fp32));
    return model;
  }

  // rgb: Uint8Array of height * width * 3 values, rows first. Any size: the graph resizes and normalises.
  async encodeImage(rgb, height, width) {
    const pixels = new ort.Tensor("uint8", rgb, [1, height, width, 3]);
    return (await this.image.run({ pixels })).embedding.data;
  }

  // ids: token ids of one text, with the start and end ids.
  async encodeTokens(ids) {
    const { fixed_length, context_length, pad } = this.manifest.text;
    const row = [...ids];
    while (fixed_length && row.length < context_length) row.push(pad);
    const tokens = new ort.Tensor("int64", BigInt64Array.from(row, BigInt), [1, row.length]);
    return (await this.text.run({ tokens })).embedding.data;
  }

  // The probability of each text: softmax of logit_scale * cosine.
  probabilities(image, texts) {
    const logits = texts.map((text) => this.manifest.logit_scale * dot(image, text));
    const top = Math.max(...logits);
    const parts = logits.map((value) => Math.exp(value - top));
    const sum = parts.reduce((a, b) => a + b, 0);
    return parts.map((part) => part / sum);
  }
}

export function dot(a, b) {
  return a.reduce((sum, value, i) => sum + value * b[i], 0);
}

function read(kit, array) {
  const bytes = readFileSync(join(kit, array.file));
  return new TYPES[array.dtype](bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
}

async function check(folder) {
  const kit = join(folder, "kit");
  const fixtures = JSON.parse(readFileSync(join(kit, "fixtures.json"), "utf8"));
  const model = await Model.load(folder);
  let failed = 0;
  const compare = (name, got, expected) => {
    const cosine = dot(got, expected);
    const ok = cosine >= fixtures.tolerance.exact.cosine; // the kit's own pixels and tokens are fed
    failed += ok ? 0 : 1;
    console.log(`${ok ? "ok    " : "FAILED"} cosine ${cosine.toFixed(6)}  ${name}`);
  };
  const texts = [];
  for (const text of fixtures.texts) {
    texts.push(await model.encodeTokens(text.tokens));
    compare(JSON.stringify(text.text), texts.at(-1), read(kit, text.embedding));
  }
  for (const photo of fixtures.photos) {
    const [height, width] = photo.pixels.shape;
    const image = await model.encodeImage(read(kit, photo.pixels), height, width);
    compare(photo.file, image, read(kit, photo.embedding));
    console.log("       ", model.probabilities(image, texts).map((p) => p.toFixed(3)).join(" "));
  }
  process.exitCode = failed ? 1 : 0;
}

if (process.argv[2]) await check(process.argv[2]);
