"""Pictures decoded once: the uint8 pixels of a source at one size, memory-mapped, resumable, the same every time.

A cache entry is a folder of `pixels.npy` and `aspect.npy`, written block by block in place; `done` holds one byte for
each block and is replaced atomically after the block is on disk, so a kill at any instant loses at most one block.
Two processes that build the same entry write the same bytes to the same places, so they do not disturb each other.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import PIL
from PIL import Image

from clipling.data.images import ImageError, decode_fast, size_and_format
from clipling.data.pairs import hash_bytes
from clipling.data.views import WHOLE, eval_pixels, render
from clipling.errors import UserError
from clipling.store import atomic_produce, atomic_write, cache_dir, disk_error, write_json

FORMAT = 1  # part of the name of a cache entry: raise it when the same settings would give other pixels
BLOCK = 256
LIMIT_BYTES = 16 * 2**30


class Pictures(Protocol):
    """What has pixels: `Pairs` and `LabelledImages` (whose hashes may be an empty list: they are computed then)."""

    keys: Sequence[str]
    hashes: Sequence[str]

    def image(self, i: int) -> Image.Image: ...

    def image_bytes(self, i: int) -> bytes: ...


class Pixels:
    """uint8 [P, size, size, 3] of a source: `pixels[rows]` is [n, size, size, 3]; `len(pixels)` is P.

    stored: True when the pixels are on disk, False when `pixels[rows]` decodes the pictures (same values).
    how: "squash", or the relevant settings of a preprocess_cfg.
    """

    def __init__(self, pictures: Pictures, size: int, how: str | dict[str, Any], folder: Path, stored: bool, fast: bool = False) -> None:
        """Use `Pixels.open`."""
        self.pictures = pictures
        self.size = size
        self.how = how
        self.folder = folder
        self.stored = stored
        self.fast = fast
        self._array: np.ndarray | None = None
        self._aspect: np.ndarray | None = None

    @classmethod
    def open(
        cls,
        pictures: Pictures,
        size: int,
        how: Mapping[str, Any] | str = "squash",
        limit_bytes: int = LIMIT_BYTES,
        threads: int | None = None,
        block: int = BLOCK,
        progress: Callable[[int, int], Any] | None = None,
        decode: Literal["exact", "fast"] = "exact",
    ) -> Pixels:
        """The pixels of `pictures` at `size`, made in the cache folder on the first call and found there afterwards.

        how: "squash" resizes the whole picture to a square (bicubic), as training wants it: crops are boxes of the
            whole source. A preprocess_cfg gives `eval_pixels`, as evaluation wants it.
        limit_bytes: sources that would take more are decoded on demand instead.
        progress: called with (pictures done, pictures in all).
        decode: "fast" for pictures that are only trained on (see `images.decode_fast`): squashed ones. Evaluation, banks and whatever
            is joined by hash to pictures wants "exact" pixels, which differ from the fast ones by a level or two.
        Raises UserError when a picture can no longer be read, or the cache folder cannot be written.
        """
        settings = _settings(size, how)
        if decode == "fast":
            if how != "squash":
                raise ValueError("fast decoding is for training: evaluation (a preprocess_cfg) needs exact pixels")
            settings["decode"] = "fast"
        folder = cache_dir() / "pixels" / _entry_name(pictures, settings)
        stored = len(pictures.keys) * size * size * 3 <= limit_bytes
        pixels = cls(pictures, size, settings if isinstance(how, Mapping) else "squash", folder, stored, decode == "fast")
        if stored and not pixels._finished():
            _Build(pixels, block).run(threads or min(8, os.cpu_count() or 1), progress)
            write_json(folder / "manifest.json", {"count": len(pixels), "settings": settings, "format": FORMAT})
        return pixels

    def __len__(self) -> int:
        return len(self.pictures.keys)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self), self.size, self.size, 3

    def __getitem__(self, rows: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 [n, size, size, 3], a copy; one row number gives [size, size, 3]."""
        if not self.stored:
            numbers = np.arange(len(self))[rows]
            if numbers.ndim == 0:
                return self.decode(int(numbers))[0]
            return np.stack([self.decode(int(i))[0] for i in numbers]) if len(numbers) else np.zeros((0, *self.shape[1:]), np.uint8)
        if self._array is None:
            self._array = np.asarray(np.load(self.folder / "pixels.npy", mmap_mode="r"))
        found = self._array[rows]
        return found.copy() if isinstance(rows, int | np.integer | slice) else found  # a list of rows copies by itself

    @property
    def aspect(self) -> np.ndarray:
        """Width / height of what the stored squares show, float64 [P].

        That is the source picture's for squashed pixels, and 1 where `how` cuts or pads to a square.
        """
        if self._aspect is None:
            if not self.stored and not self._intact("aspect.npy"):
                found = np.array([self._header_aspect(i) for i in range(len(self))], dtype=np.float64)
                atomic_produce(self.folder / "aspect.npy", lambda path: _save(path, found))
            self._aspect = np.load(self.folder / "aspect.npy")
        return self._aspect

    def decode(self, i: int) -> tuple[np.ndarray, float]:
        """Pixels [size, size, 3] and aspect of picture i, from the picture itself."""
        try:
            if self.fast:
                found, (width, height) = decode_fast(self.pictures.image_bytes(i), self.size)
                return render(found, np.array(WHOLE), False, self.size), width / height
            image = self.pictures.image(i)
        except ImageError as error:
            raise UserError(
                f"the picture of {self.pictures.keys[i]!r} could be read when the source was opened and cannot be read "
                f"now ({error}). Open the source again."
            ) from error
        if self.how == "squash":
            cfg = {"size": self.size, "resize_mode": "squash"}
            return eval_pixels(image, cfg), image.width / image.height
        keeps_all = self.how["resize_mode"] == "squash"
        return eval_pixels(image, self.how), image.width / image.height if keeps_all else 1.0

    def _header_aspect(self, i: int) -> float:
        """The aspect without decoding the picture."""
        if self.how != "squash" and self.how["resize_mode"] != "squash":
            return 1.0
        width, height, _ = size_and_format(self.pictures.image_bytes(i))
        return width / height

    def _finished(self) -> bool:
        return self._whole() and (self.folder / "manifest.json").exists()

    def _whole(self) -> bool:
        """Whether both files are there as they were laid out; which of their blocks are filled is another matter."""
        return self._intact("pixels.npy") and self._intact("aspect.npy")

    def _intact(self, name: str) -> bool:
        """Whether a file has the header and the size that it was given."""
        shape, dtype = (self.shape, np.uint8) if name == "pixels.npy" else ((len(self),), np.float64)
        header = _header(shape, dtype)
        try:
            with open(self.folder / name, "rb") as file:
                return file.read(len(header)) == header and os.fstat(file.fileno()).st_size == _file_bytes(shape, dtype)
        except OSError:
            return False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None, "_aspect": None}  # workers map the files themselves


class _Build:
    """Fills a cache entry block by block, beginning with the first block that is not done."""

    def __init__(self, pixels: Pixels, block: int) -> None:
        self.pixels = pixels
        self.block = block
        self.blocks = -(-len(pixels) // block)

    def run(self, threads: int, progress: Callable[[int, int], Any] | None) -> None:
        folder, count = self.pixels.folder, len(self.pixels)
        whole = self.pixels._whole()
        done = self._read_done() if whole else bytearray(self.blocks)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not whole:  # else a kill would leave right headers, and marks of blocks that were lost
                for name in ("manifest.json", "done"):
                    (folder / name).unlink(missing_ok=True)
            with (
                _InPlace(folder / "pixels.npy", self.pixels.shape, np.uint8) as squares,
                _InPlace(folder / "aspect.npy", (count,), np.float64) as aspects,
                ThreadPoolExecutor(threads) as pool,
            ):
                for number in range(self.blocks):
                    rows = range(number * self.block, min(count, (number + 1) * self.block))
                    if not done[number]:
                        made = list(pool.map(self.pixels.decode, rows))
                        squares.write(rows.start, np.stack([square for square, _ in made]))
                        aspects.write(rows.start, np.array([aspect for _, aspect in made]))
                        done[number] = 1
                        atomic_write(folder / "done", json.dumps({"block": self.block, "done": done.hex()}))
                    if progress:
                        progress(rows.stop, count)
        except OSError as error:
            raise disk_error(error, folder) from error

    def _read_done(self) -> bytearray:
        """One byte a block, 1 when its rows are on disk; nothing is taken over from another division into blocks."""
        fresh = bytearray(self.blocks)
        try:
            saved = json.loads((self.pixels.folder / "done").read_text())
            marks, block = bytearray.fromhex(saved["done"]), saved["block"]
        except (OSError, ValueError, KeyError, TypeError):
            return fresh
        return marks if block == self.block and len(marks) == self.blocks else fresh


class _InPlace:
    """A .npy file of a known shape whose rows are written in any order.

    Written with plain writes, not through a memory map: on a full disk a map ends in a bus error, a write in an error
    that can be explained.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: type) -> None:
        self._header = _header(shape, dtype)
        self._row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * np.dtype(dtype).itemsize
        self._file = open(path, "r+b" if path.exists() else "x+b")  # noqa: SIM115 - closed by __exit__
        self._file.write(self._header)
        self._file.truncate(_file_bytes(shape, dtype))

    def write(self, row: int, values: np.ndarray) -> None:
        self._file.seek(len(self._header) + row * self._row_bytes)
        self._file.write(values.tobytes())
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> _InPlace:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _header(shape: tuple[int, ...], dtype: type) -> bytes:
    buffer = io.BytesIO()
    described = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()


def _file_bytes(shape: tuple[int, ...], dtype: type) -> int:
    return len(_header(shape, dtype)) + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def _save(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, array)


def _settings(size: int, how: Mapping[str, Any] | str) -> dict[str, Any]:
    """What decides the pixels. Mean and deviation do not, so models that differ only there share the pixels."""
    if isinstance(how, str):
        if how != "squash":
            raise ValueError(f"how is {how!r}; expected 'squash' or a preprocess_cfg")
        return {"size": size, "resize_mode": "squash", "interpolation": "bicubic", "fill_color": 0}
    given = how.get("size", size)
    if given not in (size, [size, size], (size, size)):
        raise ValueError(f"preprocess_cfg.size is {given} but pixels of size {size} were asked for")
    return {
        "size": size,
        "resize_mode": how.get("resize_mode") or "shortest",
        "interpolation": how.get("interpolation") or "bicubic",
        "fill_color": how.get("fill_color") or 0,
    }


def _entry_name(pictures: Pictures, settings: dict[str, Any]) -> str:
    """A digest of the pictures' bytes in their order, the settings, and what decoded them."""
    hashes = pictures.hashes or [hash_bytes(pictures.image_bytes(i)) for i in range(len(pictures.keys))]
    digest = hashlib.blake2b(json.dumps([FORMAT, PIL.__version__, settings], sort_keys=True).encode(), digest_size=16)
    digest.update("".join(hashes).encode())
    return digest.hexdigest()
