// The results: a card each, moved through by arrow keys. One card at a time is in the order of Tab.

const grid = document.getElementById("grid"), template = document.getElementById("card");
const percent = (share) => (share >= 0.995 ? "100 %" : share < 0.01 ? "< 1 %" : `${Math.round(100 * share)} %`);
export const nameOf = (hit) => hit.key.slice(hit.key.lastIndexOf("/") + 1);
export const ordered = (labels) => [...labels].sort((a, b) => b.probability - a.probability);

// Lines of one label: its name, its probability in words and as a bar.
export function fillShare(line, { label, probability }) {
  line.querySelector(".said").textContent = label;
  line.querySelector(".soft").textContent = percent(probability);
  line.querySelector("i").style.setProperty("--share", probability);
}

function card(hit, state) {
  const made = template.content.cloneNode(true).firstElementChild;
  const find = (name) => made.querySelector(name), name = nameOf(hit);
  made.dataset.id = hit.id;
  const image = find("img");
  image.src = hit.thumbnail;
  image.addEventListener("error", () => made.classList.add("lost"));
  find(".thumb").ariaLabel = `Find pictures similar to ${name}`;
  find(".thumb").title = hit.copies.length ? `${hit.key} (and ${hit.copies.length} of the same)` : hit.key;
  find(".open").ariaLabel = `Open ${name}`;
  find(".open").title = "Open (Enter)";
  find(".file").textContent = name;
  find(".score").textContent = hit.score === null ? "" : hit.score.toFixed(2);
  find(".score").title = "Similarity (cosine) to what is asked for";
  for (const [button, list, words] of [[".up", state.like, "More like"], [".down", state.unlike, "Less like"]]) {
    find(button).ariaPressed = String(list.includes(hit.id));
    find(button).ariaLabel = `${words} ${name}`;
    find(button).title = `${words} this`;
  }
  if (hit.labels) {
    find(".share").hidden = false;
    fillShare(find(".share"), ordered(hit.labels)[0]);
  }
  return made;
}

export function show(hits, state) {
  const focused = grid.contains(document.activeElement) ? Number(document.activeElement.closest(".card").dataset.id) : null;
  grid.replaceChildren(...hits.map((hit) => card(hit, state)));
  const again = focused && grid.querySelector(`[data-id="${focused}"]`);
  current(again || grid.firstElementChild, focused !== null);
}

const inTabOrder = (made, yes) => made.querySelectorAll("button").forEach((button) => { button.tabIndex = yes ? 0 : -1; });

export function current(made, focus = true) {
  if (!made) return;
  for (const other of grid.children) inTabOrder(other, other === made);
  if (focus) made.querySelector(".thumb").focus();
}

// The card that an arrow key leads to, null for the way up and out.
export function next(from, key) {
  const cards = [...grid.children], place = cards.indexOf(from);
  const columns = cards.filter((other) => other.offsetTop === cards[0].offsetTop).length || 1;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  if (key === "ArrowUp" && place < columns) return null;
  return cards[Math.max(0, Math.min(cards.length - 1, place + step))];
}
