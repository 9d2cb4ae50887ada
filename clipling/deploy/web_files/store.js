// The index in this browser's own database, where the user wants it kept. Every model has a database of its own.

const EVERY = 50; // photos that are written at once

export class Store {
  /** key: of the model's files, so that another model never reads these embeddings. */
  constructor(key) {
    this.name = `clipling-photos-${key}`;
    this.waiting = [];
  }

  get wanted() { return read(this.name) === "yes"; }
  set wanted(value) { write(this.name, value ? "yes" : "no"); }

  async #open() {
    const request = indexedDB.open(this.name, 1);
    request.onupgradeneeded = () => request.result.createObjectStore("photos", { keyPath: "id" });
    return answer(request);
  }

  /** All photos that were kept, in the order in which they were added. */
  async all() {
    const database = await this.#open();
    const photos = await answer(database.transaction("photos").objectStore("photos").getAll());
    database.close();
    return photos.sort((a, b) => a.place - b.place);
  }

  /** Keeps a photo {id, place, name, path, vector, thumb}; written in groups, the last one by flush(). */
  async add(photo) {
    this.waiting.push(photo);
    if (this.waiting.length >= EVERY) await this.flush();
  }

  async flush() {
    const photos = this.waiting.splice(0);
    if (!photos.length) return;
    const database = await this.#open();
    try {
      const transaction = database.transaction("photos", "readwrite");
      for (const photo of photos) transaction.objectStore("photos").put(photo);
      await new Promise((resolve, reject) => {
        transaction.oncomplete = resolve;
        transaction.onerror = transaction.onabort = () => reject(transaction.error ?? new Error("the browser's database is full"));
      });
    } finally {
      database.close();
    }
  }

  async clear() {
    this.waiting = [];
    await answer(indexedDB.deleteDatabase(this.name));
  }
}

function answer(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

// A browser may forbid storage altogether: then nothing is kept.
function read(name) {
  try { return localStorage.getItem(name); } catch { return null; }
}
function write(name, value) {
  try { localStorage.setItem(name, value); } catch { /* nothing is kept */ }
}
