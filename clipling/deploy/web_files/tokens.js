// Texts to token ids: the cleaning of clean.js, then tokenizer.json.
import { Tokenizer } from "./vendor/tokenizers.min.js";
import { cleaner } from "./clean.js";

/** A function from texts to rows of ids of equal length. side: the `text` part of clipling.json. */
export function openTokens(json, entities, side) {
  const clean = cleaner(side.clean, entities);
  // A tokenizer that lowers case does so letter by letter; JavaScript lowers a last capital sigma to another letter than the others.
  const prepared = lowers(json.normalizer) ? (text) => clean(text).replaceAll("Σ", "σ") : clean;
  // The library adds start and end only where they are in the vocabulary, and cuts nothing: both are done here.
  const tokenizer = new Tokenizer(json, {});
  const before = side.start === null ? [] : [side.start];
  const after = side.end === null ? [] : [side.end];
  const room = side.context_length - before.length - after.length;
  return (texts) => {
    const rows = texts.map((text) => [...before, ...tokenizer.encode(prepared(text), { add_special_tokens: false }).ids.slice(0, room), ...after]);
    const length = side.fixed_length ? side.context_length : Math.max(1, ...rows.map((row) => row.length));
    return rows.map((row) => [...row, ...Array(length - row.length).fill(side.pad)]);
  };
}

function lowers(normalizer) {
  if (!normalizer) return false;
  return normalizer.type === "Lowercase" || normalizer.lowercase === true || (normalizer.normalizers ?? []).some(lowers);
}
