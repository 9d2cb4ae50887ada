// One picture, large, with its labels. Which one is shown stands in the address, so that Back closes it.

import { fillShare, nameOf, ordered } from "./grid.js";

const at = (id) => document.getElementById(id);
const viewer = at("viewer"), photo = at("photo");

export function view(hit, hits) {
  at("viewed").textContent = nameOf(hit);
  const score = hit.score === null ? "" : ` · similarity ${hit.score.toFixed(3)}`;
  at("facts").textContent = `${hit.width} × ${hit.height} · ${hit.format}${score}`;
  at("facts").title = hit.key;
  photo.alt = nameOf(hit);
  // What the browser cannot show, such as a TIFF, or has changed since it was indexed: the thumbnail.
  photo.onerror = () => { photo.onerror = null; photo.src = hit.thumbnail; };
  photo.style.maxWidth = `min(100%, ${Math.max(240, 2.5 * hit.width)}px)`;  // small pictures are not blown up to a blur
  photo.src = hit.original;
  at("whole").href = hit.original;
  at("copies").hidden = !hit.copies.length;
  at("copies").textContent = `Also: ${hit.copies.join(", ")}`;
  at("shares").replaceChildren(...ordered(hit.labels ?? []).slice(0, 12).map(line));
  const place = hits.indexOf(hit);
  at("before").disabled = place <= 0;
  at("after").disabled = place < 0 || place === hits.length - 1;
  if (!viewer.open) viewer.showModal();
}

export function unview() {
  if (viewer.open) viewer.close();
  photo.onerror = null;
  photo.removeAttribute("src");
}

function line(label) {
  const made = document.createElement("li");
  made.className = "share";
  made.append(Object.assign(document.createElement("span"), { className: "said" }));
  made.append(Object.assign(document.createElement("span"), { className: "soft" }), document.createElement("i"));
  fillShare(made, label);
  return made;
}
