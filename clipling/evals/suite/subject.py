"""A model under evaluation: its features, made once and kept on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from clipling.data.pixels import Pixels
from clipling.data.views import eval_pixels
from clipling.engine.runtime import Runtime
from clipling.errors import UserError
from clipling.evals.suite.dataset import Dataset
from clipling.evals.zeroshot import class_features
from clipling.models.dual import Student
from clipling.store import atomic_produce, cache_dir

FORMAT = 1  # part of the name of cached features: raise it when equal inputs would give others
BLOCK = 1024  # rows of a file of features: what a kill can lose


class Change(Protocol):
    """A picture before preprocessing, changed: a corruption, for example. `name` says all that decides what comes out."""

    name: str

    def __call__(self, picture: Image.Image, key: str) -> Image.Image: ...


class Subject:
    """A student with names for results and features cached by (model, preprocessing, pictures or texts, change).

    model_hash: of weights, config and tokenizer (identity.model_hash); "" for a model whose features are not to be cached.
    runtime: of several processes each makes its share of the blocks of features, and all read all of them from the cache; so all must
        ask for the same features in the same order. Features that are not cached, every process makes itself.
    """

    def __init__(
        self,
        student: Student,
        name: str,
        *,
        pretrained: str = "",
        model_hash: str = "",
        spec: str = "",
        budget: dict[str, float] | None = None,
        batch: int = 128,
        cache: Path | None = None,
        runtime: Runtime | None = None,
        progress: Callable[[str, int, int], Any] | None = None,
    ) -> None:
        self.student, self.name, self.pretrained, self.model_hash, self.spec = student, name, pretrained, model_hash, spec
        self.budget = dict(budget or {})
        self.batch = batch
        self.cache = (cache or cache_dir()) / "features"
        self.runtime = runtime or Runtime()
        self.progress = progress or (lambda what, done, count: None)

    @property
    def scale(self) -> float:
        """What cosines are multiplied by: exp of the learned logit_scale. Raises UserError where that is not finite."""
        found = float(self.student.logit_scale.detach().exp())
        if not math.isfinite(found):
            raise self._not_finite("logit_scale")
        return found

    def _not_finite(self, what: str) -> UserError:
        return UserError(
            f"{self.name} gives {what} that are not finite, so nothing can be measured or predicted. "
            "Its weights are damaged: train it again, at a lower rate."
        )

    def images(self, dataset: Dataset, rows: np.ndarray | None = None, change: Change | None = None) -> np.ndarray:
        """Unit rows float32 [n, d] of the pictures `rows` (default: all), memory-mapped where they are cached.

        Raises UserError for features that are not finite.
        """
        rows = np.arange(len(dataset)) if rows is None else np.asarray(rows, dtype=np.int64)
        what = f"{dataset.name}{f', {change.name}' if change else ''}"
        key = ("image", self._preprocessing(), change.name if change else "", *(dataset.hashes[i] for i in rows))
        # The changed picture may depend on its key (a corruption's random draw does).
        if change is not None:
            key = (*key, *(dataset.source.keys[i] for i in rows))
        make = self._encoder(dataset, rows, change)
        return self._cached(key, len(rows), make, what)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit rows float32 [T, d]. Raises UserError for features that are not finite."""

        def make(part: slice) -> np.ndarray:
            return self.student.encode_texts_in_batches(list(texts[part]), self.batch)

        return self._cached(("text", *texts), len(texts), make, "texts")

    def classes(self, dataset: Dataset, templates: Sequence[str] | None = None) -> np.ndarray:
        """Unit rows float32 [C, d]: the prompt ensemble of a labelled dataset, by its own templates or by these."""
        return self.prompted(dataset.labelled.classnames, templates or dataset.labelled.templates)

    def prompted(self, names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
        """Unit rows float32 [C, d]: the prompt ensemble of these names."""
        return class_features(_Texts(self), names, list(templates))

    def _encoder(self, dataset: Dataset, rows: np.ndarray, change: Change | None) -> Callable[[slice], np.ndarray]:
        student = self.student
        if change is None:
            opened: list[Pixels] = []  # opened when first asked for: cached features need no pixels

            def of_source(part: slice) -> np.ndarray:
                if not opened:
                    # Of several processes each decodes its own rows only, and keeps no pixels.
                    limit = {} if self.runtime.world == 1 else {"limit_bytes": 0}
                    opened.append(Pixels.open(dataset.source, student.image_size, dict(student.preprocess_cfg), **limit))
                return student.encode_images_in_batches(_Some(opened[0], rows[part]), self.batch)

            return of_source

        def one(i: int) -> np.ndarray:
            return eval_pixels(change(dataset.source.image(int(i)), dataset.source.keys[i]), dict(student.preprocess_cfg))

        def changed(part: slice) -> np.ndarray:
            parts = []
            with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
                for few in _batches(rows[part], self.batch):
                    pixels = np.stack(list(pool.map(one, few)))
                    parts.append(student.encode_images_in_batches(pixels, self.batch))
            return np.concatenate(parts)

        return changed

    def _cached(self, key: tuple[str, ...], count: int, make: Callable[[slice], np.ndarray], what: str) -> np.ndarray:
        """The rows that `make` gives, block by block; a block that is on disk is not made again."""
        digest = blake2b(digest_size=16)
        for text in (str(FORMAT), self.model_hash, *key):
            data = text.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "little") + data)
        folder = self.cache / digest.hexdigest()
        if self.model_hash and self.runtime.world > 1:
            for number, part in enumerate(_parts(count)):
                if number % self.runtime.world == self.runtime.rank:
                    self._block(folder, number, part, count, make, what)
            self.runtime.wait()
        blocks = [self._block(folder, number, part, count, make, what) for number, part in enumerate(_parts(count))]
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks or [np.empty((0, self.student.embed_dim), np.float32)])

    def _block(self, folder: Path, number: int, part: slice, count: int, make: Callable[[slice], np.ndarray], what: str) -> np.ndarray:
        """The rows of one block: from its file, or made and kept there."""
        path = folder / f"{number:06d}.npy"
        found = _read(path, (part.stop - part.start, self.student.embed_dim)) if self.model_hash else None
        if found is not None:
            return found
        self.progress(what, part.start, count)
        made = make(part)
        if not np.isfinite(made).all():
            raise self._not_finite(f"features ({what})")
        if not self.model_hash:
            return made
        atomic_produce(path, lambda temporary: _save(temporary, made))
        kept = _read(path, made.shape)
        return made if kept is None else kept

    def _preprocessing(self) -> str:
        return json.dumps([self.student.image_size, self.student.preprocess_cfg], sort_keys=True)


class _Some:
    """Some rows of the pixels of a source, as `encode_images_in_batches` wants them."""

    def __init__(self, pixels: Pixels, rows: np.ndarray) -> None:
        self.pixels, self.rows = pixels, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self.pixels[self.rows[rows]]


class _Texts:
    """A subject as `class_features` wants a student: texts in, cached features out."""

    def __init__(self, subject: Subject) -> None:
        self.encode_texts_in_batches = subject.texts


def _parts(count: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]


def _batches(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The rows of a file, memory-mapped; None when it is absent, or is not what was written: that was finite."""
    try:
        found = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == tuple(shape) and found.dtype == np.float32 and np.isfinite(found).all() else None


def _save(path: Path, rows: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, rows)
