// What is asked for is what stands in the address: back, forward, reload and a sent link all mean the same search.

export const FIRST = 40, MOST = 200;
const number = (text) => (/^[1-9]\d{0,15}$/.test(text) ? Number(text) : null);
const numbers = (list) => [...new Set(list.map(number).filter((n) => n !== null))].slice(0, 100);

export const EMPTY = Object.freeze({ text: "", upload: "", similar: null, like: [], unlike: [], labels: "", k: FIRST, view: null });

export function read(address) {
  const given = new URLSearchParams(address);
  const k = number(given.get("k") ?? "") ?? FIRST;
  return {
    text: (given.get("text") ?? "").slice(0, 1000),
    upload: (given.get("upload") ?? "").slice(0, 64),
    similar: number(given.get("similar") ?? ""),
    like: numbers(given.getAll("like")),
    unlike: numbers(given.getAll("unlike")),
    labels: (given.get("labels") ?? "").slice(0, 4000),
    k: Math.min(k, MOST),
    view: number(given.get("view") ?? ""),
  };
}

export function address(state) {
  const made = new URLSearchParams();
  for (const name of ["text", "upload", "similar", "labels", "view"]) if (state[name]) made.set(name, state[name]);
  for (const name of ["like", "unlike"]) for (const id of state[name]) made.append(name, id);
  if (state.k !== FIRST) made.set("k", state.k);
  const text = made.toString();
  return text ? `/?${text}` : "/";
}

export const asks = (state) => Boolean(state.text.trim() || state.upload || state.similar || state.like.length);

export function labelsOf(state) {
  return [...new Set(state.labels.split(",").map((label) => label.trim()).filter(Boolean))].slice(0, 50);
}

// The request of a state: without anything asked for, a sample of the collection.
export function request(state) {
  const made = new URLSearchParams({ k: state.k });
  const labels = labelsOf(state);
  if (labels.length > 1) for (const label of labels) made.append("label", label.slice(0, 200));
  if (!asks(state)) return `/api/sample?${made}`;
  if (state.text.trim()) made.set("text", state.text.trim());
  if (state.upload) made.set("upload", state.upload);
  if (state.similar) made.set("similar", state.similar);
  for (const name of ["like", "unlike"]) for (const id of state[name]) made.append(name, id);
  return `/api/search?${made}`;
}
