// The page: what is searched, what is shown, and what the keys and buttons do.
import { Engine } from "./engine.js";
import { Indexing } from "./indexing.js";
import { described, dropped, firstPicture, isPicture } from "./intake.js";
import { Store } from "./store.js";
import { append, count, draw, listUnread, move, openLarge } from "./view.js";

const PAGE = 60; // cards that are drawn at once
const $ = (id) => document.getElementById(id);
const photos = new Map(); // id: {id, place, name, path, vector, thumb, file?}
const pictures = new Map(); // number: {vector, thumb, name} of pictures that were searched with
const unread = [];
let engine, store, indexing, opened;
let query = null; // null | {kind: "text", text} | {kind: "like", id} | {kind: "picture", number}
let ranked = [], drawn = 0, turn = 0;

// ---- loading

async function begin() {
  if (!("WebAssembly" in window) || !("OffscreenCanvas" in window) || !("createImageBitmap" in window)) {
    return fail("This browser lacks what the page needs (WebAssembly, OffscreenCanvas). Chrome, Edge or Firefox of 2023 or later have it.");
  }
  engine = new Engine(({ loaded, total }) => status(`Loading the model: ${megabytes(loaded)} of ${megabytes(total)} MB`, loaded / total));
  try {
    opened = await engine.open();
  } catch (error) {
    return fail(`The model could not be opened. ${error.message}`);
  }
  store = new Store(opened.key);
  indexing = new Indexing(engine, { onPhoto, onUnread, onProgress });
  about();
  if (store.wanted) await restore();
  for (const id of ["text", "go", "by-picture", "keep"]) $(id).disabled = false;
  document.documentElement.dataset.ready = "yes";
  idle();
  await follow();
}

function about() {
  const { manifest, precisions, threads } = opened;
  const kinds = [...new Set(Object.values(precisions))].join(" and ");
  $("about").textContent = `Model: ${manifest.name} (${kinds}, ${manifest.embed_dim} numbers a photo, ${count(threads, "thread")}).`;
}

async function restore() {
  $("keep").checked = true;
  try {
    for (const photo of await store.all()) photos.set(photo.id, photo);
  } catch (error) {
    trouble(`What was kept in this browser could not be read (${error.message}).`);
  }
}

// ---- indexing

async function addFiles(files) {
  trouble("");
  let other = 0;
  const known = new Set(photos.keys());
  let again = 0;
  await indexing.add(files, (file) => {
    if (!isPicture(file.file)) { other++; return false; }
    // A photo that comes back gives its file, for the large view; it is not read again.
    if (photos.has(file.id)) photos.get(file.id).file = file.file;
    if (known.has(file.id)) { again++; return false; }
    known.add(file.id);
    return true;
  });
  const remarks = [again && `${count(again, "photo")} already there`, other && `${count(other, "file")} without a picture left out`].filter(Boolean);
  $("status").dataset.remark = remarks.join(", ");
  if (!indexing.busy) idle();
}

function onPhoto({ id, name, path, file, vector, thumb }) {
  const kept = { id, place: photos.size, name, path, vector, thumb };
  if (photos.has(id)) return;
  photos.set(id, { ...kept, file });
  if (store.wanted) keep(kept);
}

function onUnread(file) {
  unread.push(file);
}

let last = 0, timer = null;

function onProgress(progress) {
  const over = progress.done >= progress.total && !progress.counting;
  const now = performance.now();
  clearTimeout(timer);
  if (!over && now - last < 200) { timer = setTimeout(onProgress, 200, progress); return; } // the page is not redrawn for every photo
  last = now;
  if (over) return finished();
  const left = progress.seconds === null || progress.done < 5 ? "" : `, ${duration(progress.seconds)} left`;
  status(`Reading photos: ${progress.done.toLocaleString("en")} of ${progress.total.toLocaleString("en")}${progress.counting ? " or more" : ""}${left}`,
    progress.done / progress.total, true);
  layout();
  if (!query && drawn < PAGE) refresh();
}

async function finished() {
  idle();
  listUnread(unread);
  if (engine.broken) trouble(`The model stopped working (${engine.broken.message}). Reload the page and add the rest again.`);
  if (store.wanted) await keep(null);
  if (query || drawn < PAGE || ranked.length !== photos.size) await refresh();
}

async function keep(photo) {
  try {
    await (photo ? store.add(photo) : store.flush());
  } catch (error) {
    store.wanted = $("keep").checked = false;
    trouble(`The index could not be kept in this browser (${error.message}). It is still here until the page is closed.`);
  }
}

// ---- searching

/** Asks for a query, and makes it a place to which the back button returns. */
function ask(next) {
  if (JSON.stringify(next) === JSON.stringify(query)) return refresh();
  history.pushState(next, "", next ? address(next) : location.pathname + location.search);
  return follow();
}

function address({ kind, text, id, number }) {
  return `#${kind}=${encodeURIComponent(text ?? id ?? number)}`;
}

/** Shows what the address says. */
async function follow() {
  const [, kind, value] = location.hash.match(/^#(text|like|picture)=(.*)$/) ?? [];
  let given = "";
  try { given = decodeURIComponent(value ?? ""); } catch { /* an address that somebody broke */ }
  query = null;
  if (kind === "text" && given.trim()) query = { kind, text: given };
  if (kind === "like" && photos.has(given)) query = { kind, id: given };
  if (kind === "picture" && pictures.has(Number(given))) query = { kind, number: Number(given) };
  showQuery();
  await refresh();
  window.scrollTo({ top: 0 });
}

async function refresh() {
  const mine = ++turn;
  let vector = null;
  try {
    vector = await vectorOf(query);
  } catch (error) {
    trouble(`The search failed: ${error.message}`);
  }
  if (mine !== turn) return; // a later one overtook this
  ranked = rank(vector, query?.kind === "like" ? query.id : null);
  drawn = Math.min(PAGE, ranked.length);
  layout();
  draw(ranked.slice(0, drawn), actions);
  $("more").hidden = drawn >= ranked.length;
  $("results").dataset.turn = mine;
}

const actions = { onSimilar: (photo) => ask({ kind: "like", id: photo.id }), onOpen: (photo) => openLarge(photo, actions.onSimilar) };

let lastText = {};

async function vectorOf(asked) {
  if (!asked) return null;
  if (asked.kind === "like") return photos.get(asked.id).vector;
  if (asked.kind === "picture") return pictures.get(asked.number).vector;
  if (lastText.text !== asked.text) lastText = { text: asked.text, vector: (await engine.texts([asked.text]))[0] };
  return lastText.vector;
}

/** All photos by falling cosine; without a vector in the order in which they were added. */
function rank(vector, except) {
  const all = [...photos.values()];
  if (!vector) return all.map((photo) => ({ photo, score: null }));
  const scored = all.filter((photo) => photo.id !== except).map((photo) => ({ photo, score: cosine(vector, photo.vector) }));
  return scored.sort((a, b) => b.score - a.score || a.photo.place - b.photo.place);
}

function cosine(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

async function searchByPicture(file) {
  trouble("");
  try {
    const { vector, thumb } = await engine.picture(file);
    pictures.set(pictures.size + 1, { vector, thumb, name: file.name || "pasted picture" });
    await ask({ kind: "picture", number: pictures.size });
  } catch (error) {
    trouble(`${file.name || "The picture"} cannot be searched with: ${error.message}.`);
  }
}

// ---- the page

function showQuery() {
  const picture = query?.kind === "like" ? photos.get(query.id) : query?.kind === "picture" ? pictures.get(query.number) : null;
  $("text").value = query?.kind === "text" ? query.text : "";
  $("text").placeholder = picture ? "or describe a photo" : "Describe a photo";
  $("clear").hidden = !query;
  $("chip").hidden = !picture;
  URL.revokeObjectURL($("chip-picture").src);
  if (picture) $("chip-picture").src = URL.createObjectURL(picture.thumb);
  $("chip-name").textContent = picture ? `Like ${picture.name}` : "";
}

function layout() {
  const any = photos.size > 0;
  $("empty").hidden = any || indexing.busy;
  $("found").hidden = !any;
  $("forget").disabled = !any && !unread.length;
  document.body.classList.toggle("has-photos", any);
  const what = { text: () => `Closest to “${query.text}”`, like: () => `Similar to ${photos.get(query.id).name}`, picture: () => "Closest to your picture" };
  $("heading").textContent = query ? what[query.kind]() : count(photos.size, "photo");
}

function status(text, share = null, cancellable = false) {
  $("status").hidden = !text;
  $("status-text").textContent = text;
  $("bar").hidden = share === null;
  if (share !== null) $("bar").value = share;
  $("cancel").hidden = !cancellable;
}

function idle() {
  const remark = $("status").dataset.remark;
  status(remark ? `${remark[0].toUpperCase()}${remark.slice(1)}.` : "");
  layout();
}

function trouble(text) {
  $("trouble").hidden = !text;
  $("trouble").textContent = text;
}

function fail(text) {
  status("");
  trouble(text);
  document.documentElement.dataset.ready = "no";
}

const megabytes = (bytes) => (bytes / 1e6).toFixed(1);

function duration(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 3600 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

// ---- events

$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (text || query?.kind === "text") ask(text ? { kind: "text", text } : null);
});
$("clear").addEventListener("click", () => { ask(null); $("text").focus(); });
$("more").addEventListener("click", () => {
  append(ranked.slice(drawn, drawn + PAGE), actions);
  $("results").children[drawn].querySelector("button").focus();
  drawn = Math.min(drawn + PAGE, ranked.length);
  $("more").hidden = drawn >= ranked.length;
});
$("cancel").addEventListener("click", () => indexing.cancel());
$("by-picture").addEventListener("click", () => $("query-file").click());
for (const button of document.querySelectorAll("[data-add]")) {
  // Phones have no picker of folders.
  if (button.dataset.add === "folder" && !("webkitdirectory" in $("folder"))) button.hidden = true;
  button.addEventListener("click", () => $(button.dataset.add).click());
}
for (const id of ["files", "folder"]) {
  $(id).addEventListener("change", () => {
    addFiles([...$(id).files].map((file) => described(file)));
    $(id).value = "";
  });
}
$("query-file").addEventListener("change", () => {
  const [file] = $("query-file").files;
  $("query-file").value = "";
  if (file) searchByPicture(file);
});
$("keep").addEventListener("change", async () => {
  store.wanted = $("keep").checked;
  if (!store.wanted) return store.clear();
  for (const { file, ...photo } of photos.values()) await keep(photo);
  await keep(null);
});
$("forget").addEventListener("click", async () => {
  indexing.cancel();
  photos.clear();
  unread.length = 0;
  listUnread(unread);
  $("status").dataset.remark = "";
  await store.clear();
  history.replaceState(null, "", location.pathname + location.search);
  idle();
  await follow();
});
window.addEventListener("popstate", follow);

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("large").open) return;
  const typing = event.target.matches("input[type=search]");
  if (event.key === "/" && !typing) { event.preventDefault(); $("text").select(); $("text").focus(); }
  if (event.key === "Escape" && query) { event.preventDefault(); ask(null); }
  if (event.key === "ArrowDown" && typing && $("results").firstChild) { event.preventDefault(); $("results").querySelector("button").focus(); }
  if (typing) return;
  if (move(event.key)) event.preventDefault();
  if (event.key === "o") document.activeElement?.closest?.(".card")?.querySelector(".open").click();
});
document.addEventListener("paste", (event) => {
  const file = opened && firstPicture(event.clipboardData);
  if (file) { event.preventDefault(); searchByPicture(file); }
});

let depth = 0; // of elements that a drag has entered
const dragsFiles = (event) => opened && [...event.dataTransfer.types].includes("Files");
document.addEventListener("dragenter", (event) => {
  if (!dragsFiles(event)) return;
  event.preventDefault();
  depth++;
  $("drop").hidden = false;
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  for (const area of document.querySelectorAll("[data-drop]")) area.classList.toggle("over", area.contains(event.target));
});
document.addEventListener("dragleave", (event) => { if (dragsFiles(event) && --depth <= 0) endDrag(); });
document.addEventListener("drop", (event) => {
  event.preventDefault(); // or the browser would leave the page for the file
  endDrag();
  if (!opened || !event.dataTransfer) return;
  const query = event.target.closest?.('[data-drop="query"], #search');
  const file = query && firstPicture(event.dataTransfer);
  if (file) return searchByPicture(file);
  addFiles(dropped(event.dataTransfer));
});
function endDrag() {
  depth = 0;
  $("drop").hidden = true;
}

begin();
