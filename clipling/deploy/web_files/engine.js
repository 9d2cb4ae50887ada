// The page's side of the worker: one call, one promise.

// A worker that is loaded from an address has no content security policy but the one of its own response, which a plain file
// server does not send. One that is loaded from a blob inherits the page's, so that the rule "connect to nothing else" holds there.
function start() {
  const source = `import ${JSON.stringify(new URL("worker.js", import.meta.url).href)};`;
  const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  return new Worker(address, { type: "module" });
}

export class Engine {
  /** onLoad({loaded, total}) is called while the model's files arrive. */
  constructor(onLoad = () => {}) {
    this.waiting = new Map();
    this.calls = 0;
    this.worker = start();
    this.worker.onmessage = ({ data }) => {
      if (data.load) return onLoad(data.load);
      const { resolve, reject } = this.waiting.get(data.call);
      this.waiting.delete(data.call);
      if (data.error) reject(Object.assign(new Error(data.error.message), { kind: data.error.kind }));
      else resolve(data.value);
    };
    this.worker.onerror = (event) => {
      event.preventDefault();
      this.fail(new Error(event.message || "the worker could not be started"));
    };
  }

  fail(error) {
    for (const { reject } of this.waiting.values()) reject(error);
    this.waiting.clear();
    this.broken = error;
  }

  call(name, ...args) {
    if (this.broken) return Promise.reject(this.broken);
    return new Promise((resolve, reject) => {
      this.waiting.set(++this.calls, { resolve, reject });
      this.worker.postMessage({ call: this.calls, name, args });
    });
  }

  /** Opens the model: {manifest, precisions, threads, key}. */
  open() { return this.call("open"); }
  /** Token ids of texts, as the graph gets them. */
  tokens(texts) { return this.call("tokens", texts); }
  /** Unit rows (Float32Array each) of texts. */
  texts(texts) { return this.call("texts", texts); }
  /** {vector, thumb, width, height} of a picture's file; rejects where this browser cannot read it. */
  picture(file) { return this.call("picture", file); }
}
