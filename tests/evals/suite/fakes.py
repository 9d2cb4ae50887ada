"""Stand-ins for the suite's tests: a subject whose features are written down, and datasets without picture files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from clipling.data.classes import DEFAULT_TEMPLATES, LabelledImages
from clipling.data.pairs import Location, Pairs, Row, hash_bytes
from clipling.errors import UserError
from clipling.evals.suite.dataset import Dataset
from clipling.evals.zeroshot import class_features as prompt_ensemble

Images = np.ndarray | Mapping[str, np.ndarray] | Callable[[Dataset, np.ndarray, Any], np.ndarray]
Texts = np.ndarray | Mapping[str, Sequence[float]] | Callable[[list[str]], np.ndarray]


class FakeSubject:
    """A subject with the methods of `Subject`, and features as they are given (made unit rows, float32).

    image_features: [P, d] for every row of the dataset; or such arrays by the dataset's name; or a function of
        (dataset, rows, change) that gives [n, d]. The first two ignore `change`.
    text_features: a row by text; or a function of the texts that gives [T, d]; or [T, d] for exactly the texts asked for.
    class_features: [C, d] for `classes`, whatever the templates; without it they are made of `text_features` by prompts.
    asked: what was asked for, in order: ("images", dataset name, rows, change) and ("texts", texts).
    """

    def __init__(
        self,
        image_features: Images,
        text_features: Texts | None = None,
        class_features: np.ndarray | None = None,
        scale: float = 100.0,
        *,
        name: str = "fake",
        student: Any = None,
    ) -> None:
        self.image_features, self.text_features, self.class_features = image_features, text_features, class_features
        self.scale, self.name, self.student = float(scale), name, student
        self.pretrained, self.model_hash, self.spec, self.budget, self.batch = "", "", "", {}, 128
        self.asked: list[tuple] = []

    def images(self, dataset: Dataset, rows: np.ndarray | None = None, change: Any = None) -> np.ndarray:
        rows = np.arange(len(dataset)) if rows is None else np.asarray(rows, dtype=np.int64)
        self.asked.append(("images", dataset.name, rows.tolist(), change))
        if callable(self.image_features):
            return unit(self.image_features(dataset, rows, change))
        found = self.image_features[dataset.name] if isinstance(self.image_features, Mapping) else self.image_features
        assert len(found) == len(dataset), f"{len(found)} rows of features for {len(dataset)} pictures of {dataset.name}"
        return unit(np.asarray(found)[rows])

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        texts = list(texts)
        self.asked.append(("texts", texts))
        assert self.text_features is not None, "this subject has no text features"
        if callable(self.text_features):
            return unit(self.text_features(texts))
        if isinstance(self.text_features, Mapping):
            return unit([self.text_features[text] for text in texts])
        assert len(self.text_features) == len(texts), f"{len(self.text_features)} rows of features for {len(texts)} texts"
        return unit(self.text_features)

    def classes(self, dataset: Dataset, templates: Sequence[str] | None = None) -> np.ndarray:
        if self.class_features is not None:
            assert len(self.class_features) == len(dataset.labelled.classnames)
            return unit(self.class_features)
        return prompt_ensemble(_Texts(self), dataset.labelled.classnames, list(templates or dataset.labelled.templates))


class _Texts:
    def __init__(self, subject: FakeSubject) -> None:
        self.encode_texts_in_batches = subject.texts


def unit(rows: Any) -> np.ndarray:
    """float32 unit rows, as a subject gives them; refuses what is not finite, as a subject does."""
    rows = np.asarray(rows, dtype=np.float64)
    if not np.isfinite(rows).all():
        raise UserError("the features are not finite")
    return (rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)).astype(np.float32)


def with_cosines(cosines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(images [n, C + 1], classes [C, C + 1]), unit rows whose cosines are `cosines [n, C]` (a row's norm is at most 1).

    For probabilities p at scale s take the cosines log(p) / s plus any constant of a row.
    """
    cosines = np.asarray(cosines, dtype=np.float64)
    rest = 1.0 - (cosines**2).sum(1, keepdims=True)
    assert (rest >= -1e-12).all(), "the rows of cosines must have norm 1 at most: raise the scale"
    classes = np.eye(cosines.shape[1], cosines.shape[1] + 1)
    return np.hstack([cosines, np.sqrt(np.clip(rest, 0, None))]), classes


def labelled_dataset(
    n: int,
    classes: int | Sequence[str] = 3,
    labels: Sequence[int] | np.ndarray | None = None,
    *,
    name: str = "toy",
    templates: Sequence[str] | None = None,
    hashes: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    **beside: Any,
) -> Dataset:
    """`n` labelled pictures without files: labels 0, 1, ..., C - 1, 0, ... unless given, hashes that differ unless given.

    `classes` is a count or the names; `beside` goes to Dataset (groups, outside, descriptions, ...).
    """
    names = [f"class {c}" for c in range(classes)] if isinstance(classes, int) else list(classes)
    source = LabelledImages(
        name=name,
        keys=list(keys) if keys is not None else [f"{i:05d}.png" for i in range(n)],
        locations=[Location(f"{name}/none/{i}.png") for i in range(n)],
        labels=np.asarray(labels if labels is not None else np.arange(n) % len(names), dtype=np.int64),
        classnames=names,
        templates=list(templates or DEFAULT_TEMPLATES),
        hashes=list(hashes) if hashes is not None else [hash_bytes(f"{name}/{i}".encode()) for i in range(n)],
    )
    assert len(source.labels) == len(source.keys) == len(source.hashes) == n
    return Dataset(name=name, source=source, **beside)


def pairs_dataset(
    captions: Sequence[str | Sequence[str]],
    *,
    name: str = "toy",
    groups: Sequence[str] | None = None,
    hashes: Sequence[str] | None = None,
    extras: Sequence[dict] | None = None,
    **beside: Any,
) -> Dataset:
    """Pairs without picture files: a caption or a list of captions for each picture.

    `groups` are those of the pairs (a product); `beside` goes to Dataset, whose own `groups` can be given with `replace`.
    """
    rows = [
        Row(
            key=f"{i:05d}.png",
            captions=[some] if isinstance(some, str) else list(some),
            location=Location(f"{name}/none/{i}.png"),
            group=groups[i] if groups is not None else "",
            extras=extras[i] if extras is not None else {},
        )
        for i, some in enumerate(captions)
    ]
    hashes = list(hashes) if hashes is not None else [hash_bytes(f"{name}/{i}".encode()) for i in range(len(rows))]
    return Dataset(name=name, source=Pairs.from_rows(name, rows, hashes), **beside)
