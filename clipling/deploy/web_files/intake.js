// Files as they are dropped, pasted or picked.

// Kinds that some browsers give no type for: they are tried, and listed where the browser cannot read them.
const PICTURE = /\.(jpe?g|png|webp|gif|bmp|avif|heic|heif|tiff?|jxl|ico)$/i;

export const isPicture = (file) => (file.type.startsWith("image/") ? !file.type.includes("svg") : PICTURE.test(file.name));

/** A photo's path inside what was dropped, and its identity: the same file is not indexed twice. */
export function described(file, path = file.webkitRelativePath || file.name) {
  return { file, path, name: file.name, id: `${path}|${file.size}|${file.lastModified}` };
}

/** Every file of a drop, folders opened, as an async iterator of {file, path, name, id}. Call it inside of the drop event. */
export function dropped(transfer) {
  // The entries are gone as soon as the event is over: taken now, read later.
  const entries = [...transfer.items].filter((item) => item.kind === "file").map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile());
  return walk(entries.filter(Boolean));
}

async function* walk(entries) {
  for (const entry of entries) {
    if (entry instanceof File) yield described(entry);
    else if (entry.isFile) {
      const file = await new Promise((resolve) => entry.file(resolve, () => resolve(null)));
      if (file) yield described(file, entry.fullPath.slice(1));
    } else yield* walk(await children(entry));
  }
}

async function children(folder) {
  const found = [];
  for (const reader = folder.createReader(); ;) {
    // A reader hands out a hundred entries at a time.
    const some = await new Promise((resolve) => reader.readEntries(resolve, () => resolve([])));
    if (!some.length) return found.sort((a, b) => a.name.localeCompare(b.name));
    found.push(...some);
  }
}

/** The first picture of a paste or drop, or null. */
export function firstPicture(transfer) {
  return [...transfer.files].find(isPicture) ?? null;
}
