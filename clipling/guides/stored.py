"""A bank as it lies on disk, and its rows in the order of a source."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from clipling.data.pairs import Pairs
from clipling.errors import UserError
from clipling.guides.rows import Rows, damaged, reading, segment_means
from clipling.store import atomic_produce

FORMAT = 1
MANIFEST = "manifest.json"
PAIRS_FILE = "pairs.parquet"
VALID_FILE = "valid.npy"
# What is asked of a manifest, by part ("" is the whole).
KEYS = {
    "": ("pairs", "captions", "pairs_fingerprint", "image", "text", "views", "licences", "shards"),
    "image": ("encoder", "weights", "dim", "preprocess"),
    "text": ("encoder", "weights", "dim"),
    "shards": ("image", "text", "views"),
    "views": ("count", "seed", "augment"),
    "licences": (),
}


@dataclass(frozen=True)
class BankRows:
    """A bank joined to a source of P pairs and T captions: row i is pair i.

    image: [P, d_I]. text: [T, d_T]. offsets: int64 [P + 1], caption rows of pair i are offsets[i] ... offsets[i + 1].
    valid: bool [P], False where the picture or a caption has no features: such a pair is never a neighbour, never a
    query and gets no guidance. views: [P * K, d_I], row i * K + v is view v of pair i; None without views.
    as_built: whether the source has the bank's own pairs in the bank's own order.
    """

    image: Rows
    text: Rows
    offsets: np.ndarray
    valid: np.ndarray
    manifest: dict[str, Any]
    views: Rows | None = None
    as_built: bool = False

    def __len__(self) -> int:
        return len(self.valid)

    @property
    def dims(self) -> dict[str, int]:
        return {"image": self.image.dim, "text": self.text.dim}

    @cached_property
    def text_mean(self) -> np.ndarray:
        """fp16 [P, d_T]: unit mean of each pair's caption rows."""
        return segment_means(self.text, self.offsets)

    def centred(self, rows: np.ndarray) -> BankRows:
        """The same rows less the mean of the training pairs `rows`, made unit again.

        Pooled features of a network lie in a narrow cone; what all of them share says nothing about neighbours. The mean
        is that of training rows only, so nothing of what is held out is seen.
        """
        rows = np.asarray(rows, dtype=np.int64)
        rows = rows[self.valid[rows]]
        return self.less(self.image.mean(rows), self.text.mean(caption_rows(self.offsets, rows)))

    def less(self, image: np.ndarray, text: np.ndarray) -> BankRows:
        """The same rows less these means, [d_I] and [d_T], made unit again."""
        views = None if self.views is None else self.views.less(image)
        return replace(self, image=self.image.less(image), text=self.text.less(text), views=views)

    def warm(self) -> None:
        """Reads the features once, so that look-ups come from memory."""
        for rows in (self.image, self.text, self.views):
            if rows is not None:
                rows.warm()


class Bank:
    """Features of a source's pictures and captions by frozen encoders, in a folder. Open with `Bank.open`.

    image: [P, d_I] and text: [T, d_T], fp16 rows read where needed. offsets int64 [P + 1], valid bool [P], keys [P],
    image_hashes [P], caption_hashes [P] ("" where unknown), views [P * K, d_I] or None, manifest.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.image = Rows.open(self._files("image"))
        self.text = Rows.open(self._files("text"))
        self.views = Rows.open(self._files("views")) if manifest["views"] else None
        with reading(folder / VALID_FILE):
            self.valid: np.ndarray = np.load(folder / VALID_FILE, allow_pickle=False)
        with reading(folder / PAIRS_FILE):
            self.keys, self.image_hashes, self.caption_hashes, self.offsets = read_pairs_file(folder / PAIRS_FILE)
        self._check()

    @classmethod
    def open(cls, folder: Path | str) -> Bank:
        """Raises UserError when the folder is not a finished bank, or a file of it is not what was written."""
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"there is no bank at {folder}. `clipling bank SOURCE --out {folder}` builds one.")
        if not (folder / MANIFEST).is_file():
            raise UserError(f"{folder} is not a finished bank: it has no {MANIFEST}. `clipling bank SOURCE --out {folder}` continues it.")
        return cls(folder, read_manifest(folder / MANIFEST))

    def __len__(self) -> int:
        return len(self.keys)

    def _check(self) -> None:
        """Raises UserError unless the files hold what the manifest says."""
        manifest, (pairs, captions) = self.manifest, (self.manifest["pairs"], self.manifest["captions"])
        rows = {"image": (self.image, pairs, "image"), "text": (self.text, captions, "text")}
        if self.views is not None:
            rows["views"] = (self.views, pairs * manifest["views"]["count"], "image")
        for kind, (found, count, side) in rows.items():
            if found.shape != (count, manifest[side]["dim"]):
                files = shard_name(kind, 0) if len(found.shards) == 1 else f"{shard_name(kind, 0)} ..."
                raise damaged(self.folder / files, f"holds {list(found.shape)}, but {MANIFEST} says {[count, manifest[side]['dim']]}")
        if self.valid.shape != (pairs,) or self.valid.dtype != bool:
            raise damaged(self.folder / VALID_FILE, f"holds {self.valid.dtype} {list(self.valid.shape)}, but {MANIFEST} says {pairs} pairs")
        held = len(self.keys), int(self.offsets[-1])
        if held != (pairs, captions):
            raise damaged(self.folder / PAIRS_FILE, f"holds {held} pairs and captions, but {MANIFEST} says {(pairs, captions)}")

    def _files(self, kind: str) -> list[Path]:
        return [self.folder / shard_name(kind, i) for i in range(self.manifest["shards"][kind])]

    def join(self, pairs: Pairs) -> BankRows:
        """The bank's rows in the order of `pairs`, which may be a part of the source that it was built from.

        Raises UserError when pairs are missing in the bank, or have other pictures or captions there: how many, and
        the keys of the first five.
        """
        if self.manifest["pairs_fingerprint"] == pairs.fingerprint:
            return BankRows(self.image, self.text, self.offsets, self.valid, self.manifest, self.views, as_built=True)
        index = self._index(pairs)
        count = self.offsets[index + 1] - self.offsets[index]
        offsets = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
        views, k = self.views, (self.manifest["views"] or {}).get("count", 0)
        if views is not None:
            views = views.at((index[:, None] * k + np.arange(k)).reshape(-1))
        text = self.text.at(caption_rows(self.offsets, index))
        return BankRows(self.image.at(index), text, offsets, self.valid[index], self.manifest, views)

    def _index(self, pairs: Pairs) -> np.ndarray:
        """The bank's row of each pair, int64 [P]."""
        place = {key: i for i, key in enumerate(self.keys)}
        index = np.array([place.get(key, -1) for key in pairs.keys], dtype=np.int64)
        wrong: dict[str, list[str]] = {"missing": [], "with another picture": [], "with other captions": []}
        for i, row in enumerate(index.tolist()):
            if row < 0:
                wrong["missing"].append(pairs.keys[i])
            elif differ(self.image_hashes[row], pairs.hashes[i]):
                wrong["with another picture"].append(pairs.keys[i])
            elif differ(self.caption_hashes[row], captions_digest(pairs.captions_of(i))):
                wrong["with other captions"].append(pairs.keys[i])
        if any(wrong.values()):
            counts = ", ".join(f"{len(keys)} {what}" for what, keys in wrong.items() if keys)
            first = ", ".join([key for keys in wrong.values() for key in keys][:5])
            raise UserError(
                f"the bank {self.folder} was built from another source: of {len(pairs)} pairs {counts} (first: {first}). "
                "Pictures that `clipling data pack` re-encoded count as others. "
                f"Give the bank of this source, or build one: clipling bank {pairs.name} --out FOLDER"
            )
        return index


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a bank. Raises UserError when it is of another format, or lacks what every manifest has."""
    with reading(path):
        found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise damaged(path, "is no manifest")
    if found.get("format") != FORMAT:
        raise UserError(
            f"the bank {path.parent} has format {found.get('format')}; this version reads {FORMAT}. "
            "Remove the folder and build the bank again."
        )
    for part, keys in KEYS.items():
        held = found.get(part) if part else found
        if part == "views" and held is None:
            continue
        missing = [key for key in keys if key not in held] if isinstance(held, dict) else [part]
        if missing:
            raise damaged(path, f"says nothing of {', '.join(f'{part}.{key}' if part and part != key else key for key in missing)}")
    sides = [found["image"]["dim"], found["text"]["dim"], found["shards"]["image"], found["shards"]["text"]]
    views = [found["shards"]["views"], found["views"]["count"]] if found["views"] else []
    numbers = [found["pairs"], found["captions"], *sides, *views]
    if not all(isinstance(number, int) and number >= 1 for number in numbers):
        raise damaged(path, f"has numbers that no bank has ({', '.join(map(repr, numbers))})")
    return found


def differ(one: str, other: str) -> bool:
    """Whether two digests are known and different."""
    return bool(one) and bool(other) and one != other


def shard_name(kind: str, number: int) -> str:
    return f"{kind}-{number:05d}.npy"


def caption_rows(offsets: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The caption numbers of the given pairs, one pair after the other, int64."""
    pairs = np.asarray(pairs, dtype=np.int64)
    first, count = offsets[pairs], offsets[pairs + 1] - offsets[pairs]
    place = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return np.repeat(first, count) + place


def captions_digest(captions: Sequence[str]) -> str:
    """Hexadecimal blake2b of 128 bits of captions in their order."""
    total = hashlib.blake2b(digest_size=16)
    for caption in captions:
        data = caption.encode("utf-8", "surrogatepass")
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()


def write_pairs_file(path: Path, keys: list[str], image_hashes: list[str], caption_hashes: list[str], counts: np.ndarray) -> None:
    """Keys, digests and numbers of captions as parquet, atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {"key": keys, "image_hash": image_hashes, "caption_hash": caption_hashes, "captions": np.asarray(counts, dtype=np.int64)},
        schema=pa.schema([("key", pa.string()), ("image_hash", pa.string()), ("caption_hash", pa.string()), ("captions", pa.int64())]),
    )
    atomic_produce(path, lambda temporary: pq.write_table(table, temporary))


def read_pairs_file(path: Path) -> tuple[list[str], list[str], list[str], np.ndarray]:
    """Keys, image hashes, caption hashes and offsets int64 [P + 1]."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Arrow's own pool and threads would hold some 13 MB for the rest of the process, for a few thousand keys.
    pool = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        with pq.ParquetFile(path) as file:
            table = file.read(use_threads=False)
    finally:
        pa.set_memory_pool(pool)
    keys, image_hashes, caption_hashes = (table.column(name).to_pylist() for name in ("key", "image_hash", "caption_hash"))
    counts = table.column("captions").to_numpy()
    return keys, image_hashes, caption_hashes, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
