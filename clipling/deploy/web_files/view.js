// The results and the large view: elements out of photos, nothing else.

const $ = (id) => document.getElementById(id);
const shown = new Set(); // addresses of small pictures on the page, freed when they leave it

/** Draws the cards of photos [{photo, score}], score null where nothing was searched. */
export function draw(items, { onSimilar, onOpen }) {
  const focus = document.activeElement?.closest?.(".card")?.dataset.id;
  for (const address of shown) URL.revokeObjectURL(address);
  shown.clear();
  $("results").replaceChildren(...items.map((item) => card(item, onSimilar, onOpen)));
  if (focus) [...$("results").children].find((one) => one.dataset.id === focus)?.querySelector("button").focus({ preventScroll: true });
}

/** Adds cards below those that are there. */
export function append(items, { onSimilar, onOpen }) {
  $("results").append(...items.map((item) => card(item, onSimilar, onOpen)));
}

function card({ photo, score }, onSimilar, onOpen) {
  const picture = element("img", { src: addressOf(photo.thumb), alt: "", decoding: "async" });
  const label = score === null ? "" : `, similarity ${score.toFixed(3)}`;
  const similar = element("button", { type: "button", className: "photo", title: photo.path }, picture);
  similar.setAttribute("aria-label", `${photo.path}${label}: find similar photos`);
  similar.addEventListener("click", () => onSimilar(photo));
  const open = element("button", { type: "button", className: "open quiet", textContent: "Open" });
  open.setAttribute("aria-label", `Open ${photo.path}`);
  open.addEventListener("click", () => onOpen(photo));
  const caption = element("div", { className: "caption" }, element("span", { className: "name", textContent: photo.name, title: photo.path }));
  if (score !== null) caption.append(element("span", { className: "score", textContent: score.toFixed(3) }));
  const made = element("li", { className: "card" }, similar, caption, open);
  made.dataset.id = photo.id;
  return made;
}

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function addressOf(blob) {
  const address = URL.createObjectURL(blob);
  shown.add(address);
  return address;
}

/** The photo in large: from its file while this page has it, else the small picture that was kept. */
export function openLarge(photo, onSimilar) {
  const dialog = $("large"), picture = $("large-picture");
  const address = URL.createObjectURL(photo.file ?? photo.thumb);
  picture.src = address;
  $("large-name").textContent = photo.path + (photo.file ? "" : " (small picture; the file itself is not kept)");
  $("large-similar").onclick = () => { dialog.close(); onSimilar(photo); };
  $("large-close").onclick = () => dialog.close();
  dialog.onclose = () => { URL.revokeObjectURL(address); picture.removeAttribute("src"); };
  dialog.onclick = (event) => event.target === dialog && dialog.close();
  dialog.showModal();
}

/** Moves between cards by the arrow keys; true where the key was one of them. */
export function move(key) {
  const cards = [...$("results").children];
  const here = cards.indexOf(document.activeElement?.closest?.(".card"));
  if (here < 0) return false;
  const columns = cards.filter((one) => one.offsetTop === cards[0].offsetTop).length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  if (!step) return false;
  cards[here + step]?.querySelector("button").focus();
  return true;
}

/** The files that could not be read, with the reason of each. */
export function listUnread(unread) {
  const list = $("unread");
  list.hidden = !unread.length;
  list.querySelector("summary").textContent = `${count(unread.length, "file")} could not be read`;
  const rows = unread.slice(0, 200).map(({ path, reason }) => element("li", { textContent: `${path}: ${reason}` }));
  if (unread.length > 200) rows.push(element("li", { textContent: `and ${unread.length - 200} more` }));
  list.querySelector("ul").replaceChildren(...rows);
}

export const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
