// Both towers in onnxruntime-web (wasm) and the tokenizer.
import * as ort from "./vendor/ort.wasm.bundle.min.js";
import { openTokens } from "./tokens.js";

const address = (name) => new URL(name, import.meta.url).href;

/** report({loaded, total}): bytes of all files so far. Resolves to {manifest, precisions, threads, key, tokens, texts, image}. */
export async function openModel(report) {
  const folder = JSON.parse(new TextDecoder().decode(await fetched("folder.json")));
  const files = await load(folder.files, report);
  const read = (name) => JSON.parse(new TextDecoder().decode(files.get(name)));
  const manifest = read("model/clipling.json");
  const threads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
  ort.env.wasm.wasmBinary = files.get("vendor/ort-wasm-simd-threaded.wasm");
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = "error";
  const sessions = {}, precisions = {};
  for (const side of ["image", "text"]) {
    const [[precision, name]] = Object.entries(manifest[side].files);
    sessions[side] = await session(files, `model/${name}`);
    precisions[side] = precision;
  }
  const tokens = openTokens(read(`model/${manifest.text.tokenizer}`), read("entities.json"), manifest.text);
  const run = inTurn(async (side, name, tensor) => {
    const { embedding } = await sessions[side].run({ [name]: tensor });
    const rows = split(embedding.data, manifest.embed_dim);
    embedding.dispose();
    return rows;
  });
  return { manifest, precisions, threads, key: folder.key, tokens,
    texts: (texts) => run("text", "tokens", tokenTensor(tokens(texts))),
    image: async ({ data, width, height }) => (await run("image", "pixels", new ort.Tensor("uint8", data, [1, height, width, 3])))[0] };
}

async function session(files, name) {
  const bytes = files.get(name);
  files.delete(name); // the session holds its own copy
  try {
    return await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"], graphOptimizationLevel: "all" });
  } catch (error) {
    throw new Error(`${name} does not run in this browser: ${error?.message || error}`);
  }
}

function tokenTensor(rows) {
  const flat = BigInt64Array.from(rows.flat(), BigInt);
  return new ort.Tensor("int64", flat, [rows.length, rows[0].length]);
}

function split(values, width) {
  return Array.from({ length: values.length / width }, (_, row) => values.slice(row * width, (row + 1) * width));
}

// onnxruntime-web has one memory and one thread of control: calls wait for each other.
function inTurn(job) {
  let last = Promise.resolve();
  return (...args) => {
    const next = last.then(() => job(...args));
    last = next.catch(() => {});
    return next;
  };
}

/** All files {name: bytes} of the folder, as a Map of Uint8Array. */
async function load(sizes, report) {
  const total = Object.values(sizes).reduce((sum, size) => sum + size, 0);
  let loaded = 0;
  const files = new Map();
  for (const [name, size] of Object.entries(sizes)) {
    files.set(name, await fetched(name, size, (bytes) => report({ loaded: (loaded += bytes), total })));
  }
  return files;
}

async function fetched(name, size, onBytes = () => {}) {
  let response;
  try {
    response = await fetch(address(name), { credentials: "omit" });
  } catch (error) {
    throw new Error(`${name} could not be loaded (${error.message}). Is the server of this page still there?`);
  }
  if (!response.ok) throw new Error(`${name} is missing from the folder of this page (HTTP ${response.status}). Copy the whole folder again.`);
  const parts = [];
  for (const reader = response.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    onBytes(value.length);
  }
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  parts.reduce((place, part) => (bytes.set(part, place), place + part.length), 0);
  if (size !== undefined && bytes.length !== size) throw new Error(`${name} has ${bytes.length} bytes, expected ${size}. Copy the whole folder again.`);
  return bytes;
}
