"""Banks in the layout of clip-retrieval (github.com/rom1504/clip-retrieval), both ways.

    img_emb/img_emb_0.npy     features, one row for every image-caption row
    text_emb/text_emb_0.npy
    metadata/metadata_0.parquet   image_path, caption and whatever else

That layout has one caption a row: a picture with several captions is repeated there, and becomes one pair again here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from clipling.data.pairs import Pairs
from clipling.errors import UserError
from clipling.guides.rows import save_array, unit
from clipling.guides.stored import FORMAT, MANIFEST, PAIRS_FILE, VALID_FILE, Bank, captions_digest, shard_name, write_pairs_file
from clipling.store import atomic_produce, write_json

PART_ROWS = 500_000
UNIT_ENOUGH = 1e-3  # what rounding to fp16 does to a norm is less


def write_clip_retrieval(bank: Bank, pairs: Pairs, out: Path | str) -> None:
    """Writes the features of `pairs` with their captions; `image_path` is the pair's key, `image_hash` a further column.

    Raises UserError when the bank is not of these pairs, or `out` exists.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} exists and is not empty. Choose another folder.")
    rows = bank.join(pairs)
    pair = np.repeat(np.arange(len(pairs)), np.diff(rows.offsets))
    parts = -(-len(pair) // PART_ROWS)
    width = len(str(parts))
    for part in range(parts):
        captions = np.arange(part * PART_ROWS, min(len(pair), (part + 1) * PART_ROWS))
        name, of = str(part).zfill(width), pair[captions]
        features = {"img_emb": rows.image[of], "text_emb": rows.text[captions]}
        for kind, values in features.items():
            save_array(out / kind / f"{kind}_{name}.npy", values)
        table = pa.table(
            {
                "image_path": [pairs.keys[i] for i in of.tolist()],
                "caption": [pairs.captions[i] for i in captions.tolist()],
                "image_hash": [pairs.hashes[i] for i in of.tolist()],
            }
        )
        atomic_produce(out / "metadata" / f"metadata_{name}.parquet", lambda path, table=table: pq.write_table(table, path))


def read_clip_retrieval(folder: Path | str, out: Path | str, encoder: str = "clip-retrieval", licence: str = "not stated") -> Bank:
    """Makes a bank in the folder `out` from features in that layout; rows of one `image_path` become one pair.

    encoder: what made the features, for the manifest. The bank joins a source whose keys are the image paths; pictures are
    compared where there is a column `image_hash`. Features are held in memory on the way.
    Raises UserError when the folder is not of that layout, or `out` exists.
    """
    folder, out = Path(folder), Path(out)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} exists and is not empty. Choose another folder.")
    columns, image, text = _read(folder)
    order, counts, first = _grouped(columns["image_path"])
    keys = [columns["image_path"][i] for i in first]
    hashes = [columns["image_hash"][i] or "" for i in first] if "image_hash" in columns else [""] * len(first)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    captions = [columns["caption"][i] or "" for i in order]
    digests = [captions_digest(captions[offsets[i] : offsets[i + 1]]) for i in range(len(keys))]
    image, text = image[first], text[order]
    valid = (image != 0).any(axis=1)
    valid[np.repeat(np.arange(len(keys)), counts)[~(text != 0).any(axis=1)]] = False
    save_array(out / shard_name("image", 0), image)
    save_array(out / shard_name("text", 0), text)
    save_array(out / VALID_FILE, valid)
    write_pairs_file(out / PAIRS_FILE, keys, hashes, digests, counts)
    described: dict[str, Any] = {"encoder": encoder, "weights": "", "licence": licence}
    manifest = {
        "format": FORMAT,
        "source": str(folder),
        "pairs": len(keys),
        "captions": len(captions),
        "pairs_fingerprint": "",
        "image": {**described, "dim": image.shape[1], "preprocess": {}},
        "text": {**described, "dim": text.shape[1]},
        "views": None,
        "block": None,
        "licences": {encoder: licence},
        "shards": {"image": 1, "text": 1, "views": 0},
        "invalid": {"count": int((~valid).sum()), "first": [keys[i] for i in np.flatnonzero(~valid)[:5]]},
    }
    write_json(out / MANIFEST, manifest)
    return Bank.open(out)


def _read(folder: Path) -> tuple[dict[str, list], np.ndarray, np.ndarray]:
    """Metadata columns, and features of both kinds as fp16 unit rows."""
    import pyarrow.parquet as pq

    files = sorted((folder / "metadata").glob("metadata_*.parquet"))
    if not files:
        raise UserError(
            f"{folder} is not of clip-retrieval's layout: no metadata/metadata_*.parquet. Expected also img_emb/ and text_emb/."
        )
    columns: dict[str, list] = {}
    image, text = [], []
    for file in files:
        part = file.stem.removeprefix("metadata_")
        table = pq.read_table(file)
        missing = {"image_path", "caption"} - set(table.column_names)
        if missing:
            raise UserError(f"{file} has no column {', '.join(sorted(missing))}; it has {', '.join(table.column_names)}")
        wanted = [name for name in ("image_path", "caption", "image_hash") if name in table.column_names]
        for name in wanted:
            columns.setdefault(name, []).extend(table.column(name).to_pylist())
        for kind, parts in (("img_emb", image), ("text_emb", text)):
            parts.append(_features(folder / kind / f"{kind}_{part}.npy", table.num_rows))
    if any(len(values) != len(columns["image_path"]) for values in columns.values()):
        raise UserError(f"the files of {folder / 'metadata'} do not all have the same columns")
    return columns, np.concatenate(image), np.concatenate(text)


def _features(file: Path, rows: int) -> np.ndarray:
    try:
        found = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}. A bank needs image and text features.") from error
    if found.ndim != 2 or len(found) != rows:
        raise UserError(f"{file} has shape {found.shape}, but its metadata has {rows} rows")
    norms = np.linalg.norm(found.astype(np.float32), axis=1)
    off = (np.abs(norms - 1) > UNIT_ENOUGH) & (norms > 0)
    made = found.astype(np.float32)
    made[off] = unit(made[off])
    return made.astype(np.float16)


def _grouped(paths: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows by path in the order in which the paths first occur: row order [n], rows of each path [P], first row of each [P]."""
    number: dict[str, int] = {}
    group = np.array([number.setdefault(path, len(number)) for path in paths], dtype=np.int64)
    order = np.argsort(group, kind="stable")
    counts = np.bincount(group, minlength=len(number))
    return order, counts, order[np.cumsum(counts) - counts]
