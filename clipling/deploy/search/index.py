"""Makes an index and keeps it up to date: what is new is encoded, what moved is found again, what has gone is dropped."""

from __future__ import annotations

import io
import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from clipling.data.images import ImageError, decode, size_and_format
from clipling.data.problems import Problems
from clipling.deploy.search.catalogue import FORMAT, Catalogue, File, Picture
from clipling.deploy.search.ranking import EXACT_UP_TO, write_graph
from clipling.deploy.search.sources import Found, look, read
from clipling.errors import UserError

# One call of the model, and one transaction: as many pictures, or pixels (a phone's photo has 12 million), or files.
PICTURES, PIXELS, FILES = 32, 48_000_000, 512
THUMBNAIL = 384  # px, the longer side
_LOCK = "lock.sqlite"
Progress = Callable[[int, int], None]  # files done, files in all


class Encoder(Protocol):
    """What is needed of a model; `clipling.load` gives one."""

    def encode_image(self, images: list[Image.Image]) -> np.ndarray: ...

    def encode_text(self, texts: list[str]) -> np.ndarray: ...


@dataclass
class Prepared:
    """A file that was read: its picture where it has to be encoded (None: known), or what is wrong with it."""

    file: File
    hash: str = ""
    image: Image.Image | None = None
    format: str = ""
    webp: bytes = b""
    problem: str | None = None


def update(
    model: Encoder,
    about: dict[str, str],
    images: str,
    out: Path,
    *,
    overwrite: bool = False,
    threads: int | None = None,
    progress: Progress = lambda done, total: None,
    exact_up_to: int = EXACT_UP_TO,
) -> dict[str, Any]:
    """Brings the index in `out` to what `images` holds now, and says what changed.

    Args:
        about: what tells the model: `fingerprint` (an index takes one model only), `model` and whatever else serving it needs.
        images: see `sources.look`.
        threads: for reading and decoding.

    A kill at any instant leaves an index that can be served, of what was done so far; the same call goes on from there.

    Raises:
        UserError: another model's or another folder's index, no pictures, a full disk, another process at work.
    """
    begun = time.monotonic()
    with _alone(out):
        found = look(images, out)
        catalogue = Catalogue(out, write=True)
        try:
            _claim(catalogue, about, found, overwrite)
            counts = _take_in(model, catalogue, found, threads or os.cpu_count() or 1, progress)
            counts["removed"] = _drop_gone(catalogue, found)
            ranked = write_graph(out, *catalogue.embeddings(), exact_up_to)
            with catalogue.change():
                catalogue.set_about(
                    {"finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **{k: str(v) for k, v in ranked.items()}}
                )
            problems = _list_problems(catalogue, found, out)
            pictures = catalogue.count()
        finally:
            catalogue.close()
    listed = {"problems": str(out / "problems.tsv")} if problems else {}
    return {
        "index": str(out), "images": str(found.root), "files": len(found.files), "pictures": pictures, **counts,
        "broken": problems, **listed, **ranked, "seconds": round(time.monotonic() - begun, 2),
    }  # fmt: skip


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Holds the folder for this process; the system lets go when the process dies, however it dies."""
    from clipling.store import disk_error

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, out) from error
    lock = None
    try:
        lock = sqlite3.connect(out / _LOCK, timeout=0, isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        if lock is not None:
            lock.close()
        if "locked" in str(error):
            raise UserError(f"another process is indexing into {out}. Wait for its end, or choose another --out.") from None
        raise UserError(f"{out} cannot be written: {error}. Choose another folder with --out.") from error
    try:
        yield
    finally:
        lock.close()


def refuse_another_model(catalogue: Catalogue, about: dict[str, str]) -> None:
    """Raises UserError when the index holds embeddings of a model other than `about`'s."""
    if catalogue.about("fingerprint") not in (None, about["fingerprint"]):
        raise UserError(
            f"{catalogue.path.parent} was made with another model ({catalogue.about('model')}), whose embeddings cannot be compared "
            f"with those of {about['model']}. Choose another --out, or make it anew with --overwrite."
        )


def _claim(catalogue: Catalogue, about: dict[str, str], found: Found, overwrite: bool) -> None:
    """Refuses an index of another model or folder; a folder that was moved is no other."""
    root = catalogue.about("root")
    if not overwrite:
        refuse_another_model(catalogue, about)
        if root not in (None, os.fsencode(found.root).hex()) and os.path.isdir(bytes.fromhex(root)):
            raise UserError(
                f"{catalogue.path.parent} is the index of {os.fsdecode(bytes.fromhex(root))}, not of {found.root}. "
                "Choose another --out, or make it anew with --overwrite."
            )
    with catalogue.change():
        if overwrite:
            catalogue.clear()
        # A path need not be UTF-8, which is what SQLite's texts are.
        catalogue.set_about({"format": FORMAT, **about, "root": os.fsencode(found.root).hex()})


def _take_in(model: Encoder, catalogue: Catalogue, found: Found, threads: int, progress: Progress) -> dict[str, int]:
    stored, known = catalogue.files(), catalogue.known()
    todo = [file for file in found.files if file.changed < 0 or stored.get(file.key) != file.state]
    counts = {"unchanged": len(found.files) - len(todo), "encoded": 0, "recognised": 0}
    done = len(found.files) - len(todo)
    progress(done, len(found.files))
    batch: list[Prepared] = []
    with ThreadPoolExecutor(threads) as pool:
        for prepared in _ahead(pool, lambda file: _prepare(found.root, file, known), todo, 2 * threads):
            batch.append(prepared)
            if _full(batch):
                _store(model, catalogue, batch, known, counts)
                done += len(batch)
                progress(done, len(found.files))
                batch = []
    if batch:
        _store(model, catalogue, batch, known, counts)
        progress(done + len(batch), len(found.files))
    return counts


def _ahead(pool: ThreadPoolExecutor, work: Callable[[File], Prepared], items: Iterable[File], window: int) -> Iterator[Prepared]:
    """Results in order, at most `window` of them made ahead: pictures are large. What is waiting is dropped at an error."""
    waiting: deque = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _prepare(root: Path, file: File, known: dict[str, int]) -> Prepared:
    try:
        data = read(root, file)
        hashed = blake2b(data, digest_size=16).hexdigest()
        if hashed in known:
            return Prepared(file, hashed)
        image = decode(data)
        return Prepared(file, hashed, image, size_and_format(data)[2], thumbnail(image))
    except ImageError as error:
        return Prepared(file, problem=str(error))
    except (OSError, MemoryError) as error:
        # It may be readable next time, with nothing about the file changed.
        again = replace(file, changed=-1)
        return Prepared(again, problem=f"cannot be read: {getattr(error, 'strerror', None) or error or 'not enough memory'}")


def thumbnail(image: Image.Image) -> bytes:
    """WebP of at most 384 px a side."""
    shrink = min(1.0, THUMBNAIL / max(image.size))
    size = (max(1, round(image.width * shrink)), max(1, round(image.height * shrink)))
    small = image if size == image.size else image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    held = io.BytesIO()
    small.save(held, "WEBP", quality=80, method=2)
    return held.getvalue()


def _full(batch: list[Prepared]) -> bool:
    sizes = [p.image.width * p.image.height for p in batch if p.image is not None]
    return len(sizes) >= PICTURES or sum(sizes) >= PIXELS or len(batch) >= FILES


def _store(model: Encoder, catalogue: Catalogue, batch: list[Prepared], known: dict[str, int], counts: dict[str, int]) -> None:
    """Encodes what is new in a batch and writes all of it in one transaction; `known` and `counts` follow after it."""
    new = {p.hash: p for p in batch if p.image is not None and p.hash not in known}
    rows = np.asarray(model.encode_image([p.image for p in new.values()]), dtype=np.float32) if new else ()
    bad = {hashed for hashed, row in zip(new, rows, strict=True) if not np.isfinite(row).all() or not row.any()}
    added: dict[str, int] = {}
    with catalogue.change():
        for (hashed, p), row in zip(new.items(), rows, strict=True):
            if hashed not in bad:
                unit = row / np.linalg.norm(row)
                added[hashed] = catalogue.add_picture(Picture(hashed, *p.image.size, p.format, unit, p.webp))
        for p in batch:
            problem = "the model's embedding of it is not finite" if p.hash in bad else p.problem
            catalogue.put_file(p.file, known.get(p.hash, added.get(p.hash)), problem)
    counts["encoded"] += len(added)
    counts["recognised"] += sum(p.problem is None and p.hash not in bad for p in batch) - len(added)
    known.update(added)


def _drop_gone(catalogue: Catalogue, found: Found) -> int:
    """Last, so that a renamed file finds its picture, however often the work was interrupted."""
    gone = catalogue.files().keys() - {file.key for file in found.files}
    with catalogue.change():
        catalogue.drop_files(gone)
        catalogue.drop_pictures_without_files()
    return len(gone)


def _list_problems(catalogue: Catalogue, found: Found, out: Path) -> int:
    """Writes problems.tsv, or removes it; how many there are."""
    listed = Problems(str(found.root), [("broken", key, problem) for key, problem in catalogue.problems()])
    listed.extend(Problems(rows=[("refused", where, why) for where, why in found.refused]))
    if len(listed):
        listed.write(out / "problems.tsv")
    else:
        (out / "problems.tsv").unlink(missing_ok=True)
    return len(listed)
