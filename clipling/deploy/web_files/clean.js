// What is done to a text before its tokenizer sees it, as the runtime's cleaning does: the rule is `clean` of clipling.json.
// The repair of text that was decoded in a wrong encoding (ftfy's fix_encoding) is left out: nobody types that.

const BLANKS = /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/gu; // what Python's str.split() splits at
const PUNCTUATION = /[!-/:-@[-`{-~]/g;
const LIGATURES = { "Ĳ": "IJ", "ĳ": "ij", "ŉ": "ʼn", "Ǳ": "DZ", "ǲ": "Dz", "ǳ": "dz", "Ǆ": "DŽ", "ǅ": "Dž", "ǆ": "dž", "Ǉ": "LJ", "ǈ": "Lj",
  "ǉ": "lj", "Ǌ": "NJ", "ǋ": "Nj", "ǌ": "nj", "ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "ſt", "ﬆ": "st" };
const LIGATURE = new RegExp(`[${Object.keys(LIGATURES).join("")}]`, "gu");
const ENTITY = /&#?[0-9A-Za-z]{1,24};/g;
const REFERENCE = /&(#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[^\t\n\f <&#;]{1,32};?)/gu;

/** The function of a rule: lower, whitespace, canonicalize or none. entities: HTML's names, with their semicolons where they have one. */
export function cleaner(rule, entities) {
  const mend = mender(entities);
  const whitespace = (text) => fold(mend(text));
  const rules = {
    none: (text) => text,
    whitespace,
    lower: (text) => whitespace(text).toLowerCase(),
    canonicalize: (text) => fold(mend(text).replaceAll("_", " ").replace(PUNCTUATION, "").toLowerCase()),
  };
  return rules[rule];
}

const fold = (text) => text.replace(BLANKS, " ").replace(/^ | $/g, "");

function mender(entities) {
  const table = new Map(Object.entries(entities));
  const unescape = (text) => text.replace(REFERENCE, (whole, body) => reference(whole, body, table));
  const named = withCapitals(table, unescape);
  return (text) => unescape(unescape(fixed(text, named, unescape)));
}

/** Line by line until nothing changes; entities are left alone from the first line with `<`, which may be HTML. */
function fixed(text, named, unescape) {
  let plain = true;
  return text.split(/(?<=\n)/).map((line) => {
    plain &&= !line.includes("<");
    for (let old; old !== line;) {
      old = line;
      if (plain) line = line.replace(ENTITY, (entity) => named.get(entity) ?? numeric(entity, unescape));
      line = characters(line).normalize("NFC");
    }
    return line;
  }).join("");
}

function numeric(entity, unescape) {
  const made = entity.startsWith("&#") ? unescape(entity) : entity;
  return made.includes(";") ? entity : made;
}

const windows = new TextDecoder("windows-1252");

function characters(text) {
  return text
    .replace(/[\x80-\x9f]/g, (c) => windows.decode(Uint8Array.of(c.charCodeAt(0))))
    .replace(LIGATURE, (c) => LIGATURES[c])
    .replace(/[\uff01-\uffef]/g, (c) => c.normalize("NFKC"))
    .replaceAll("\u3000", " ")
    .replace(/[\u201c-\u201f]/g, '"')
    .replace(/[\u02bc\u2018-\u201b]/g, "'")
    .replace(/\r\n|[\r\u2028\u2029\x85]/g, "\n")
    .replace(/\p{Surrogate}/gu, "\ufffd")
    .replace(/\x1b\[[\d;]*[a-zA-Z]/g, "")
    .replace(/[\0-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]/g, "");
}

/** Python's html.unescape for one reference. */
function reference(whole, body, table) {
  if (body[0] !== "#") {
    if (table.has(body)) return table.get(body);
    const points = Array.from(body);
    for (let length = points.length - 1; length > 1; length--) {
      const start = points.slice(0, length).join("");
      if (table.has(start)) return table.get(start) + points.slice(length).join("");
    }
    return whole;
  }
  const digits = body.replace(";", "");
  const code = /[xX]/.test(body[1]) ? parseInt(digits.slice(2), 16) : parseInt(digits.slice(1), 10);
  if (code === 0 || (code >= 0xd800 && code <= 0xdfff) || code > 0x10ffff) return "\ufffd";
  if (code >= 0x80 && code <= 0x9f) return windows.decode(Uint8Array.of(code));
  const dropped = (code < 0x20 && ![9, 10, 12, 13].includes(code)) || code === 0x7f || (code >= 0xfdd0 && code <= 0xfdef) || (code & 0xfffe) === 0xfffe;
  return dropped ? "" : String.fromCodePoint(code);
}

/** The names that end in a semicolon, and those that are all lower case also in capitals, where HTML has no such name. */
function withCapitals(table, unescape) {
  const found = new Map();
  for (const [name, text] of table) {
    if (!name.endsWith(";")) continue;
    found.set(`&${name}`, text);
    const capitals = `&${name.toUpperCase()}`;
    if (name === name.toLowerCase() && unescape(capitals) === capitals) found.set(capitals, text.toUpperCase());
  }
  return found;
}
