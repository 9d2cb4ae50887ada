// Everything heavy, away from the page: the model, decoding, thumbnails.
import { openModel } from "./model.js";
import { readPicture } from "./pixels.js";

let model;

const calls = {
  async open() {
    model = await openModel((load) => self.postMessage({ load }));
    return { manifest: model.manifest, precisions: model.precisions, threads: model.threads, key: model.key };
  },
  tokens: async (texts) => model.tokens(texts),
  texts: async (texts) => model.texts(texts),
  async picture(file) {
    const { pixels, ...rest } = await readPicture(file, model.manifest.image.size);
    return { vector: await model.image(pixels), ...rest };
  },
};

self.onmessage = async ({ data: { call, name, args } }) => {
  try {
    self.postMessage({ call, value: await calls[name](...args) });
  } catch (error) {
    self.postMessage({ call, error: { message: error?.message || String(error), kind: error?.kind || null } });
  }
};
