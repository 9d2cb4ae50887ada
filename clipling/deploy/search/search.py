"""`clipling.Search(INDEX)`: asks an index from Python. Without torch."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clipling.deploy.search.catalogue import Catalogue, Shown
from clipling.deploy.search.opening import FOLDER, fingerprint, open_model
from clipling.deploy.search.ranking import Ranking, open_ranking
from clipling.deploy.search.refine import refined
from clipling.errors import UserError

TEMPLATE = "a photo of a {c}."
_TEXTS = 4096  # embeddings of texts that are kept


class Result(NamedTuple):
    """A picture of an answer. id: its number. key: its place below the indexed folder. score: the cosine to the query."""

    id: int
    key: str
    score: float
    path: str


class NotThere(UserError):
    """A picture that is not in the index."""


class Search:
    """An open index; may be used from several threads.

    search = clipling.Search("index")
    search.query("red bicycle", k=10)
    """

    def __init__(self, index: Path | str, *, model: Any = None, threads: int | None = None) -> None:
        """threads: of one call of the model. model: an opened one, in place of the index's own.

        Raises UserError when `index` is none, or holds no picture yet.
        """
        self.folder = Path(index)
        self._catalogue = Catalogue(self.folder)
        self._lock = threading.Lock()
        self.fingerprint, root = self._catalogue.about("fingerprint"), self._catalogue.about("root")
        if self.fingerprint is None or root is None or not self._catalogue.count():
            raise UserError(f"{index} holds no picture yet: let clipling search index finish first")
        self.root = Path(os.fsdecode(bytes.fromhex(root)))
        self.model_name = self._catalogue.about("model") or ""
        if model is None:
            if fingerprint(self.folder / FOLDER) != self.fingerprint:
                raise UserError(f"{index} was interrupted while it was made anew: run clipling search index --overwrite again")
            model = open_model(self.folder / FOLDER, threads)
        self.model = model
        self._texts = Recent(_TEXTS)
        self._seen = self._catalogue.version()
        self.ranking = self._rank()

    def __len__(self) -> int:
        return len(self.ranking)

    @property
    def finished(self) -> str | None:
        """When indexing ended, in UTC; None while it has never."""
        with self._lock:
            return self._catalogue.about("finished")

    def _rank(self) -> Ranking:
        return open_ranking(self.folder, *self._catalogue.embeddings())

    def refresh(self) -> bool:
        """Takes in what was indexed since; True when anything changed. Another model's embeddings are not taken in."""
        with self._lock:
            version = self._catalogue.version()
            if version == self._seen or self._catalogue.about("fingerprint") != self.fingerprint or not self._catalogue.count():
                return False
            ranking, self._seen = self._rank(), version
        self.ranking = ranking
        return True

    def query(self, text: str, k: int = 10, like: Sequence[int] = (), unlike: Sequence[int] = ()) -> list[Result]:
        """The `k` pictures nearest to a text, moved towards results (by number) that were liked, away from others."""
        return self._results(*self.nearest(self.vector([self.text(text)], like, unlike), k, without=unlike))

    def similar(self, picture: Any, k: int = 10, like: Sequence[int] = (), unlike: Sequence[int] = ()) -> list[Result]:
        """The `k` pictures nearest to one: the number of a result (which is left out), or a path, bytes or PIL picture."""
        known = isinstance(picture, int | np.integer)
        asked = self.embedding(int(picture)) if known else self.picture(picture)
        without = [*unlike, *([int(picture)] if known else [])]
        return self._results(*self.nearest(self.vector([asked], like, unlike), k, without=without))

    def labels(self, numbers: Sequence[int], labels: Sequence[str], template: str = TEMPLATE) -> np.ndarray:
        """Zero-shot probabilities [pictures, labels] of pictures of the index: the softmax over the labels."""
        rows = np.stack([self.embedding(number) for number in numbers]) if len(numbers) else np.zeros((0, self.ranking.embeddings.shape[1]))
        return self.probabilities(rows, labels, template)

    def probabilities(self, rows: np.ndarray, labels: Sequence[str], template: str = TEMPLATE) -> np.ndarray:
        """As `labels`, of embeddings [n, d]."""
        texts = np.stack([self.text(template.replace("{c}", label)) for label in labels])
        logits = float(self.model.logit_scale) * (rows.astype(np.float64) @ texts.T)
        logits -= logits.max(axis=1, keepdims=True)
        return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    def vector(self, asked: Sequence[np.ndarray], like: Sequence[int] = (), unlike: Sequence[int] = ()) -> np.ndarray:
        """[d]: see refine.py. Raises UserError where nothing is asked for."""
        try:
            return refined(asked, [self.embedding(i) for i in like], [self.embedding(i) for i in unlike])
        except ValueError as error:
            raise UserError(str(error)) from error

    def nearest(self, vector: np.ndarray, k: int, without: Sequence[int] = ()) -> tuple[np.ndarray, np.ndarray]:
        """(numbers, cosines) of the `k` nearest pictures, best first."""
        return self.ranking.search(vector, k, without)

    def text(self, text: str) -> np.ndarray:
        """The unit embedding [d] of a text."""
        return self._texts.get(text, lambda: _unit(self.model.encode_text([text])))

    def picture(self, picture: Any) -> np.ndarray:
        """The unit embedding [d] of a picture that need not be in the index."""
        return _unit(self.model.encode_image([picture]))

    def embedding(self, number: int) -> np.ndarray:
        """Of a picture of the index. Raises NotThere."""
        found = self.ranking.embedding(number)
        if found is None:
            raise NotThere(f"the index has no picture {number}")
        return found

    def shown(self, numbers: Sequence[int]) -> list[Shown]:
        """Size, format and files of pictures; without those that the index no longer has."""
        with self._lock:
            return self._catalogue.shown(map(int, numbers))

    def thumbnail(self, number: int) -> bytes:
        """WebP. Raises NotThere."""
        with self._lock:
            found = self._catalogue.thumbnail(number) if 0 < number < 2**62 else None
        if found is None:
            raise NotThere(f"the index has no picture {number}")
        return found

    def _results(self, numbers: np.ndarray, scores: np.ndarray) -> list[Result]:
        score = dict(zip(numbers.tolist(), scores.tolist(), strict=True))
        return [Result(s.id, s.files[0].key, score[s.id], str(self.root / s.files[0].path)) for s in self.shown(numbers)]


def _unit(rows: np.ndarray) -> np.ndarray:
    row = np.asarray(rows, dtype=np.float32)[0]
    length = float(np.linalg.norm(row))
    if not np.isfinite(length) or length == 0:
        raise UserError("the model has no finite embedding for this query")
    return row / length


class Recent:
    """The values of the keys that were asked for last. One lock; making a value twice at the same time does no harm."""

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._held: OrderedDict[Any, Any] = OrderedDict()

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        value = make()
        with self._lock:
            self._held[key] = value
            while len(self._held) > self._most:
                self._held.popitem(last=False)
        return value
