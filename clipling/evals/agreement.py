"""How closely a student agrees with its teacher on held-out photos: what distillation without captions can be judged by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from clipling.data.pairs import Pairs
from clipling.errors import UserError
from clipling.evals.evaluators import _Pictures, _Tokens
from clipling.evals.retrieval import TIE, ranks, units
from clipling.models.dual import Student

_BLOCK_BYTES = 64 << 20


class Agreement:
    """An evaluator: the student against a frozen teacher, over P photos and, where given, T texts.

    Both see the photos by their own preprocessing and the texts by their own tokens. With one embedding size for both,
    features are compared with each other (i runs over photos; ties count as their expectation under random order):

        teacher_cosine     mean cosine of student feature i and teacher feature i
        image_match@1      share of photos whose student feature has its own teacher feature nearest, of those of all photos
        text_cosine, text_match@1    the same of texts

    Whatever the sizes, what the two spaces say is compared:

        neighbour_match@1  share of photos for which both have the same nearest other photo
        text_choice@1      share of photos for which both have the same nearest text

    The teacher itself scores 1 in all of them, as long as it tells the photos apart. Photos of equal bytes and equal texts are
    each other's right answers. Captions of `photos` are not looked at. Teacher features are made at the first call, and kept.

    Raises UserError for fewer than two photos.
    """

    def __init__(self, photos: Pairs, teacher: Student, texts: Sequence[str] | None = None, *, batch: int = 256, name: str = "agreement"):
        if len(photos) < 2:
            raise UserError(f"{photos.name}: agreement with a teacher needs at least 2 held-out photos; there are {len(photos)}")
        self.name, self.photos, self.teacher, self.batch = name, photos, teacher, batch
        self.texts = list(texts or ())
        self._pictures, self._tokens = _Pictures(photos), _Tokens(self.texts)
        self._taught: tuple[np.ndarray, np.ndarray | None] | None = None

    def chance(self) -> dict[str, float]:
        """What a student that knows nothing scores on average, of the measures that have such a level."""
        photos, texts = len(self.photos), len(self.texts)
        levels = {"image_match@1": 1 / photos, "neighbour_match@1": 1 / (photos - 1)}
        return levels | ({"text_match@1": 1 / texts, "text_choice@1": 1 / texts} if texts else {})

    def taught(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The teacher's (image float32 [P, d_t], text float32 [T, d_t] or None), unit rows."""
        if self._taught is None:
            image = self.teacher.encode_images_in_batches(self._pictures(self.teacher), self.batch)
            text = self.teacher.encode_texts_in_batches(self.texts, self.batch) if self.texts else None
            self._taught = image, text
        return self._taught

    def __call__(self, student: Student) -> Iterator[tuple[str, float]]:
        image_t, text_t = self.taught()
        image = student.encode_images_in_batches(self._pictures(student), self.batch)
        text = None if text_t is None else self._tokens.features(student, self.batch)
        for who, found in (("teacher", (image_t, text_t)), ("student", (image, text))):
            if any(rows is not None and not np.isfinite(rows).all() for rows in found):
                raise UserError(
                    f"the {who}'s features are not finite, so nothing can be compared. Its weights are damaged, or its rate too high."
                )
        if student.embed_dim == image_t.shape[1]:
            yield "teacher_cosine", mean_cosine(image, image_t)
            yield "image_match@1", match(image, image_t, units(self.photos.hashes, len(image)))
            if text is not None:
                yield "text_cosine", mean_cosine(text, text_t)
                yield "text_match@1", match(text, text_t, units(self.texts, len(text)))
        yield "neighbour_match@1", same_choice((image, image), (image_t, image_t), others=True)
        if text is not None:
            yield "text_choice@1", same_choice((image, text), (image_t, text_t))


def mean_cosine(student: np.ndarray, teacher: np.ndarray) -> float:
    """Mean over rows of the cosine of `student [n, d]` and `teacher [n, d]`; exactly 1 of equal rows."""
    s, t = student.astype(np.float64), teacher.astype(np.float64)
    dots = [(x * y).sum(1) for x, y in ((s, t), (s, s), (t, t))]
    return float((dots[0] / np.maximum(np.sqrt(dots[1] * dots[2]), 1e-12)).mean())


def match(student: np.ndarray, teacher: np.ndarray, same: np.ndarray) -> float:
    """Share of rows of `student [n, d]` whose nearest row of `teacher [n, d]` has the same class `same [n]`."""
    return float(ranks(student, teacher, same, same).hits(1).mean())


def same_choice(student: tuple[np.ndarray, np.ndarray], teacher: tuple[np.ndarray, np.ndarray], others: bool = False) -> float:
    """Share of queries for which student and teacher have the same nearest candidate.

    Each is (queries [n, d], candidates [m, d]) in a space of its own. others: the queries are the candidates, and a row is no
    candidate of its own. Where the teacher has several nearest, any is right; of several of the student's, their share counts.
    """
    rows = [tuple(torch.from_numpy(np.asarray(part, np.float64)) for part in side) for side in (student, teacher)]
    queries, candidates = len(student[0]), len(student[1])
    block = max(1, _BLOCK_BYTES // (8 * candidates))
    shares = []
    for start in range(0, queries, block):
        ours, right = (_nearest(q[start : start + block], c, start if others else None) for q, c in rows)
        shares.append((ours & right).sum(1) / ours.sum(1))
    return float(torch.cat(shares).double().mean())


def _nearest(queries: Tensor, candidates: Tensor, first: int | None) -> Tensor:
    """bool [b, m]: the nearest candidates of each query, several where they are tied. `first`: the row number of query 0."""
    scores = queries @ candidates.T
    scores.masked_fill_(~torch.isfinite(scores), -torch.inf)
    allowed = torch.ones_like(scores, dtype=torch.bool)
    if first is not None:
        b = torch.arange(len(queries))
        allowed[b, b + first] = False
        scores.masked_fill_(~allowed, -torch.inf)
    return (scores >= scores.amax(1, keepdim=True) - TIE) & allowed
