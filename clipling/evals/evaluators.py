"""Evaluators: made once over a set of pictures, called with a student as often as wanted.

An evaluator has a `name` and yields (metric, fraction). Pixels are prepared once (on disk), tokens once a student.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from clipling.data.pixels import Pixels
from clipling.errors import UserError
from clipling.evals.retrieval import KS, RetrievalRanks, retrieval
from clipling.evals.zeroshot import class_features, zero_shot


class Evaluator(Protocol):
    """What the engine is handed."""

    name: str

    def __call__(self, student: Any) -> Iterator[tuple[str, float]]: ...


class _Pictures:
    """The pixels of `source` (Pairs or LabelledImages) as a student's own preprocessing gives them, prepared once."""

    def __init__(self, source: Any) -> None:
        self.source = source
        self.opened: dict[str, Pixels] = {}

    def __call__(self, student: Any) -> Pixels:
        key = json.dumps(student.preprocess_cfg, sort_keys=True)
        if key not in self.opened:
            self.opened[key] = Pixels.open(self.source, student.image_size, dict(student.preprocess_cfg))
        return self.opened[key]


class _Tokens:
    """Token ids of fixed texts, kept for the student that asked last (tokenizers differ between students)."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)
        self.owner: weakref.ref | None = None
        self.tokens: Tensor | None = None

    def features(self, student: Any, batch: int) -> np.ndarray:
        """float32 [T, d], unit rows."""
        if self.tokens is None or self.owner is None or self.owner() is not student:
            self.tokens, self.owner = student.tokenise(self.texts).to(torch.int32), weakref.ref(student)
        parts = []
        with student.evaluating():
            for start in range(0, len(self.texts), batch):
                parts.append(student.encode_text(self.tokens[start : start + batch].long()).float().cpu().numpy())
        return np.concatenate(parts)


class Retrieval:
    """Recall of captions and pictures both ways over `pairs`, which need captions.

    `groups`: pictures of one group are right answers to each other's captions (drawings of one concept).
    """

    def __init__(
        self,
        pairs: Any,
        *,
        ks: Sequence[int] = KS,
        groups: bool = True,
        batch: int = 256,
        name: str = "retrieval",
    ) -> None:
        if not pairs.captions or pairs.unpaired:
            raise UserError(f"{pairs.name} has no captions, so nothing can be retrieved by text. Give pairs with captions.")
        self.name, self.pairs, self.ks, self.batch = name, pairs, tuple(ks), batch
        self.positives = list(pairs.groups) if groups and any(pairs.groups) else None
        self._pictures, self._tokens = _Pictures(pairs), _Tokens(pairs.captions)

    def features(self, student: Any) -> tuple[np.ndarray, np.ndarray]:
        """(image float32 [P, d], text float32 [T, d]), unit rows, in the order of the pairs and their captions."""
        return student.encode_images_in_batches(self._pictures(student), self.batch), self._tokens.features(student, self.batch)

    def measure(self, image: np.ndarray, text: np.ndarray) -> RetrievalRanks:
        """Ranks of features that `features` made."""
        return retrieval(image, text, self.pairs.offsets, self.positives)

    def __call__(self, student: Any) -> Iterator[tuple[str, float]]:
        yield from self.measure(*self.features(student)).recall(self.ks).items()


class ZeroShot:
    """Zero-shot accuracy over labelled pictures; `templates` and `classnames` replace those of the source."""

    def __init__(
        self,
        labelled: Any,
        *,
        classnames: Sequence[str] | None = None,
        templates: Sequence[str] | None = None,
        batch: int = 256,
        name: str = "zeroshot",
    ) -> None:
        self.name, self.labelled, self.batch = name, labelled, batch
        self.classnames = list(classnames if classnames is not None else labelled.classnames)
        self.templates = list(templates if templates is not None else labelled.templates)
        if len(self.classnames) != len(labelled.classnames):
            raise UserError(
                f"{len(self.classnames)} class names are given for {labelled.name}, which has {len(labelled.classnames)} "
                "classes. Give one name a class, in the order of the source."
            )
        self._pictures = _Pictures(labelled)

    def __call__(self, student: Any) -> Iterator[tuple[str, float]]:
        image = student.encode_images_in_batches(self._pictures(student), self.batch)
        text = class_features(student, self.classnames, self.templates)
        yield from zero_shot(image, self.labelled.labels, text).items()
