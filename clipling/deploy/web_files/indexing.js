// Photos in, one after the other: two are on their way at once, so that one is decoded while the model looks at the other.

const AT_ONCE = 2;

/** A queue of files. onPhoto(photo), onUnread({path, reason}), onProgress({done, total, counting, seconds}) where seconds is what is left. */
export class Indexing {
  constructor(engine, { onPhoto, onUnread, onProgress }) {
    Object.assign(this, { engine, onPhoto, onUnread, onProgress });
    this.reset();
  }

  reset() {
    this.queue = [];
    this.done = this.total = this.counting = this.running = 0;
    this.started = null;
  }

  get busy() { return this.running > 0 || this.queue.length > 0 || this.counting > 0; }

  /** Adds what an (async) iterator of files yields; resolves when all are known, not when all are read. */
  async add(files, accept) {
    const round = (this.round ??= {});
    this.counting++;
    try {
      for await (const file of files) {
        if (this.round !== round) return;
        if (!accept(file)) continue;
        this.queue.push(file);
        this.total++;
        this.#next();
      }
    } finally {
      if (this.round === round) this.counting--;
      this.#report();
    }
  }

  /** Forgets what is not begun. */
  cancel() {
    this.queue = [];
    this.total = this.done + this.running;
    this.counting = 0;
    this.round = {};
    this.#report();
  }

  #next() {
    while (this.running < AT_ONCE && this.queue.length) {
      this.started ??= performance.now();
      this.running++;
      this.#read(this.queue.shift());
    }
  }

  async #read(item) {
    try {
      this.onPhoto({ ...item, ...(await this.engine.picture(item.file)) });
    } catch (error) {
      this.onUnread({ id: item.id, path: item.path, reason: error.message });
      if (error.kind !== "unreadable" && this.engine.broken) this.queue = [];
    }
    this.running--;
    this.done++;
    this.#next();
    this.#report();
  }

  #report() {
    const each = this.done ? (performance.now() - this.started) / 1000 / this.done : null;
    const { done, total, counting } = this;
    this.onProgress({ done, total, counting: counting > 0, seconds: each === null ? null : each * (total - done) });
    if (!this.busy) this.reset();
  }
}
