// The page: a state, an address that says it, and what is drawn of it.

import { ask, upload } from "./api.js";
import { current, next, show } from "./grid.js";
import { EMPTY, FIRST, MOST, address, asks, labelsOf, read, request } from "./state.js";
import { unview, view } from "./viewer.js";

const at = (id) => document.getElementById(id);
const text = at("text"), labels = at("labels"), grid = at("grid");
const number = new Intl.NumberFormat("en");
const answers = new Map();  // request -> answer, so that Back shows at once what was there
const KEPT = 40;
let state = read(location.search), hits = [], drawn = "", waiting = null, typing = false, timer = 0;
let focusOn = null;  // the card to go back to, when the viewer closes

// --- from state to page

function draw() {
  if (text.value.trim() !== state.text.trim()) text.value = state.text;
  if (labels.value !== state.labels && document.activeElement !== labels) labels.value = state.labels;
  at("hint").hidden = labelsOf(state).length !== 1;
  const shown = [];
  if (state.upload) shown.push(chip(`/api/uploads/${encodeURIComponent(state.upload)}/thumbnail`, "your picture", { upload: "" }));
  if (state.similar) shown.push(chip(`/api/pictures/${state.similar}/thumbnail`, "similar to this", { similar: null }));
  at("asked").replaceChildren(...shown);
  text.placeholder = shown.length ? "Add words" : "Describe a picture";
  at("clear").hidden = !asks(state) && !state.labels && !state.unlike.length;
  at("slash").hidden = !at("clear").hidden;
  drawRated();
  document.title = state.text.trim() ? `${state.text.trim()} · Search pictures` : "Search pictures";
}

function chip(source, words, without) {
  const made = document.createElement("li"), image = new Image(), button = document.createElement("button");
  image.src = source;
  image.alt = words;
  image.addEventListener("error", () => image.replaceWith(Object.assign(document.createElement("span"), { className: "gone", textContent: "?" })));
  button.type = "button";
  button.className = "icon";
  button.ariaLabel = `Remove ${words}`;
  button.textContent = "×";
  button.addEventListener("click", () => { go(without); text.focus(); });
  made.title = words;
  made.append(image, button);
  return made;
}

function drawRated() {
  const { like, unlike } = state, said = at("rated");
  said.hidden = !like.length && !unlike.length;
  if (said.hidden) return;
  const parts = [[like, "up", "like"], [unlike, "down", "unlike"]].flatMap(([list, mark, name]) => list.slice(-6).map((id) => mini(id, mark, name)));
  const reset = Object.assign(document.createElement("button"), { type: "button", className: "quiet", textContent: "Forget" });
  reset.addEventListener("click", () => go({ like: [], unlike: [] }));
  said.replaceChildren(Object.assign(document.createElement("span"), { className: "soft", textContent: `Refined by ${like.length + unlike.length}` }), ...parts, reset);
}

function mini(id, mark, list) {
  const button = Object.assign(document.createElement("button"), { type: "button", className: `mini ${mark}`, title: "Take back" });
  button.ariaLabel = `Take back: ${mark === "up" ? "more" : "less"} like picture ${id}`;
  button.append(Object.assign(new Image(), { src: `/api/pictures/${id}/thumbnail`, alt: "" }));
  button.addEventListener("click", () => go({ [list]: state[list].filter((other) => other !== id) }));
  return button;
}

function drawResults(url, answer) {
  if (drawn === url) { drawView(); return; }
  drawn = url;
  hits = answer.results;
  at("trouble").hidden = true;
  grid.classList.remove("old");
  show(hits, state);
  const all = `${number.format(answer.pictures)} picture${answer.pictures === 1 ? "" : "s"}`;
  at("about").textContent = all;
  const nothing = "Nothing is left to show: fewer thumbs down bring pictures back.";
  const found = `${number.format(hits.length)} of ${all}, in ${answer.took_ms < 10 ? answer.took_ms.toFixed(1) : Math.round(answer.took_ms)} ms`;
  at("status").textContent = !hits.length ? nothing : asks(state) ? `The nearest ${found}` : `Some of ${all}. Describe one, drop one, or click one.`;
  at("more").hidden = state.k >= MOST || hits.length < state.k;
  drawView();
}

function drawView() {
  const hit = hits.find((other) => other.id === state.view);
  if (hit) { view(hit, hits); return; }
  unview();
  if (focusOn) current(grid.querySelector(`[data-id="${focusOn}"]`));
  focusOn = null;
}

function drawTrouble(error) {
  drawn = "";
  at("trouble").hidden = false;
  at("trouble").firstElementChild.textContent = error.message;
  // What is no longer there will not be there when it is asked for again.
  at("again").textContent = error.status === 404 ? "Start over" : "Try again";
  at("again").onclick = error.status === 404 ? clear : search;
  at("status").textContent = "";
  grid.classList.add("old");
}

// --- from state to answer

async function search() {
  const url = request(state);
  waiting?.abort();
  draw();
  if (answers.has(url)) {
    busy(false);
    drawResults(url, answers.get(url));
    return;
  }
  const mine = waiting = new AbortController();
  busy(true);
  try {
    const answer = await ask(url, { signal: mine.signal });
    answers.set(url, answer);
    if (answers.size > KEPT) answers.delete(answers.keys().next().value);
    drawResults(url, answer);
  } catch (error) {
    if (error.name !== "AbortError") drawTrouble(error);
  } finally {
    if (waiting === mine) busy(false);
  }
}

let slow = 0;
function busy(yes) {
  clearTimeout(slow);
  grid.ariaBusy = String(yes);
  if (yes) slow = setTimeout(() => { at("bar").hidden = false; }, 150);
  else at("bar").hidden = true;
}

// A change of the state. Typing on is one step of history, not one a letter.
function go(change, { replace = false, scroll = true } = {}) {
  typing = replace && typing;
  state = { ...state, k: FIRST, view: null, ...change };
  history[replace ? "replaceState" : "pushState"](null, "", address(state));
  if (scroll) scrollTo({ top: 0 });
  search();
}

function typed() {
  if (text.value.trim() === state.text.trim()) return;
  const fresh = typing ? {} : { like: [], unlike: [] };  // another text is another search: what was rated belonged to the last
  go({ text: text.value, ...fresh }, { replace: typing });
  typing = true;
}

function rate(id, list) {
  const other = list === "like" ? "unlike" : "like";
  const has = state[list].includes(id);
  go({ [list]: has ? state[list].filter((one) => one !== id) : [...state[list], id].slice(-100), [other]: state[other].filter((one) => one !== id) }, { scroll: false });
}

function similar(id) {
  go({ ...EMPTY, labels: state.labels, similar: id });
  current(grid.firstElementChild, false);
}

function clear() {
  clearTimeout(timer);
  text.value = labels.value = "";
  if (address(state) !== "/") go({ ...EMPTY });
  text.focus();
}

async function searchBy(file) {
  if (!file) return;
  busy(true);
  at("status").textContent = "Looking at your picture ...";
  try {
    const made = await upload(file);
    go({ ...EMPTY, labels: state.labels, upload: made.upload });
  } catch (error) {
    busy(false);
    drawTrouble(error);
  }
}

// --- from events to state

text.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(typed, 180); });
at("form").addEventListener("submit", (event) => { event.preventDefault(); clearTimeout(timer); typed(); typing = false; });
text.addEventListener("blur", () => { clearTimeout(timer); typed(); typing = false; });
labels.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(() => go({ labels: labels.value, k: state.k }, { replace: true, scroll: false }), 350); });
at("clear").addEventListener("click", clear);
at("home").addEventListener("click", (event) => { event.preventDefault(); clear(); });
at("more").addEventListener("click", () => go({ k: Math.min(MOST, state.k + 80) }, { replace: true, scroll: false }));
at("pick").addEventListener("click", () => at("file").click());
at("file").addEventListener("change", () => { searchBy(at("file").files[0]); at("file").value = ""; });
addEventListener("popstate", () => { clearTimeout(timer); typing = false; focusOn = state.view; state = read(location.search); text.value = state.text; labels.value = state.labels; search(); });

grid.addEventListener("click", (event) => {
  const made = event.target.closest(".card"), button = event.target.closest("button");
  if (!made || !button) return;
  const id = Number(made.dataset.id);
  if (button.matches(".up")) rate(id, "like");
  else if (button.matches(".down")) rate(id, "unlike");
  else if (button.matches(".open")) open(id);
  else similar(id);
});

// --- the viewer and the keys

function open(id) {
  if (state.view) history.replaceState(history.state, "", address({ ...state, view: id }));
  else history.pushState({ viewing: true }, "", address({ ...state, view: id }));
  state = { ...state, view: id };
  drawView();
}

function close() {
  if (!state.view) return;
  if (history.state?.viewing) { history.back(); return; }
  focusOn = state.view;
  state = { ...state, view: null };
  history.replaceState(null, "", address(state));
  drawView();
}

function turn(step) {
  const hit = hits[hits.findIndex((other) => other.id === state.view) + step];
  if (hit) open(hit.id);
}

at("viewer").addEventListener("cancel", (event) => { event.preventDefault(); close(); });
at("viewer").addEventListener("click", (event) => { if (event.target === at("viewer")) close(); });
at("close").addEventListener("click", close);
at("before").addEventListener("click", () => turn(-1));
at("after").addEventListener("click", () => turn(1));
at("alike").addEventListener("click", () => similar(state.view));
at("keys").addEventListener("click", () => at("help").showModal());
at("unhelp").addEventListener("click", () => at("help").close());
at("help").addEventListener("click", (event) => { if (event.target === at("help")) at("help").close(); });

const ARROWS = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"];

addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.isComposing || at("help").open) return;
  if (at("viewer").open) {
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") turn(event.key === "ArrowLeft" ? -1 : 1);
    return;
  }
  const made = document.activeElement?.closest?.(".card"), writing = document.activeElement?.matches?.("input");
  if (event.key === "Escape") { event.preventDefault(); clear(); }
  else if (event.key === "/" && !writing) { event.preventDefault(); text.focus(); text.select(); }
  else if (event.key === "ArrowDown" && writing) { event.preventDefault(); current(grid.firstElementChild); }
  else if (event.key === "Backspace" && document.activeElement === text && !text.value && (state.similar || state.upload)) go({ similar: null, upload: "" });
  else if (made) onCard(event, made);
});

function onCard(event, made) {
  const id = Number(made.dataset.id);
  if (ARROWS.includes(event.key)) {
    event.preventDefault();
    const to = next(made, event.key);
    if (to) current(to); else text.focus();
  } else if (event.key === "Enter" && event.target.matches(".thumb")) { event.preventDefault(); open(id); }
  else if (event.key === "+") rate(id, "like");
  else if (event.key === "-") rate(id, "unlike");
}

// --- dropped and pasted pictures

const files = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
let inside = 0;
addEventListener("dragenter", (event) => { if (files(event)) { inside += 1; at("drop").hidden = false; } });
addEventListener("dragleave", (event) => { if (files(event) && (inside -= 1) <= 0) { inside = 0; at("drop").hidden = true; } });
addEventListener("dragover", (event) => { if (files(event)) event.preventDefault(); });
addEventListener("drop", (event) => {
  if (!files(event)) return;
  event.preventDefault();
  inside = 0;
  at("drop").hidden = true;
  searchBy(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
  if (file) { event.preventDefault(); searchBy(file); }
});

text.value = state.text;
labels.value = state.labels;
search();
text.focus();
