"""How much a graph loses against another: cosine of the embeddings, recall both ways, zero-shot accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from clipling.deploy.samples import Labelled, Samples
from clipling.evals.intervals import interval
from clipling.evals.retrieval import ranks, retrieval
from clipling.evals.zeroshot import prompts

Encode = Callable[[Any], np.ndarray]


@dataclass(frozen=True)
class Cosine:
    """Of the rows of two models. centred: the mean after the reference's mean row was taken from both.

    Embeddings of a tower often lie in a narrow cone, where even strangers have a cosine near 1; centred, strangers are near 0.
    """

    mean: float
    least: float
    centred: float
    rows: int


@dataclass(frozen=True)
class Drop:
    """One measure of both models over the same queries, as fractions. low, high: 95 % paired bootstrap interval of the drop; chance: what
    guessing reaches; units: pictures that the queries are of (captions of one picture are not independent), 0 for one a query."""

    reference: float
    here: float
    drop: float
    low: float
    high: float
    queries: int
    chance: float = 0.0
    units: int = 0

    def tells(self, allowed: float) -> bool:
        """Whether there is more to lose than the gate allows, by two standard errors as well: a model whose recall may fall to chance
        without being refused is not judged by it."""
        error = math.sqrt(max(self.reference * (1 - self.reference), self.chance * (1 - self.chance)) / max(self.units or self.queries, 1))
        return self.reference - self.chance > max(2 * error, allowed)


@dataclass(frozen=True)
class Embedded:
    """What a model made of the samples. None where there is nothing of the kind."""

    pixels: np.ndarray  # of the calibration pictures
    texts: np.ndarray
    images: np.ndarray | None = None  # of the measured pairs
    captions: np.ndarray | None = None
    pictures: np.ndarray | None = None  # of the measured pictures with classes
    classes: np.ndarray | None = None


def cosine(here: np.ndarray, reference: np.ndarray) -> Cosine:
    """Of rows [n, d]. A row that is not finite counts as cosine -1."""
    here, reference = np.asarray(here, np.float64), np.asarray(reference, np.float64)
    plain, centre = _cosines(here, reference), reference.mean(axis=0)
    apart = len(reference) > 1
    centred = _cosines(here - centre, reference - centre).mean() if apart else plain.mean()
    return Cosine(float(plain.mean()), float(plain.min()), float(centred), len(reference))


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    found = (a * b).sum(axis=1) / np.maximum(lengths, 1e-300)
    return np.where(np.isfinite(found), found, -1.0)


def embed(samples: Samples, side: str, image: Encode, text: Encode, only: str | None = None) -> dict[str, np.ndarray]:
    """The parts of `Embedded` that the tower `side` (image or text) makes, or `only` the one named."""
    pairs, labelled = samples.retrieval, samples.labelled
    if side == "image":
        parts = {"pixels": lambda: image(samples.pixels)}
        parts |= {"images": lambda: image(pairs.pixels)} if pairs else {}
        parts |= {"pictures": lambda: image(labelled.pixels)} if labelled else {}
    else:
        parts = {"texts": lambda: text(samples.texts)}
        parts |= {"captions": lambda: text(pairs.captions)} if pairs else {}
        parts |= {"classes": lambda: class_rows(labelled, text)} if labelled else {}
    return {name: make() for name, make in parts.items() if only in (None, name)}


def class_rows(labelled: Labelled, text: Encode) -> np.ndarray:
    """Unit rows [C, d] of the classes: the mean over the templates."""
    rows = text(prompts(labelled.classnames, labelled.templates)).astype(np.float64)
    mean = rows.reshape(len(labelled.classnames), len(labelled.templates), -1).mean(axis=1)
    return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)


def drops(samples: Samples, here: Embedded, reference: Embedded, k: int) -> dict[str, Drop]:
    """What `here` loses: `i2t_recall@k`, `t2i_recall@k` and `acc1`, where the samples have pairs and classes."""
    found: dict[str, Drop] = {}
    if samples.retrieval is not None:
        made = [retrieval(e.images, e.captions, samples.retrieval.offsets, samples.retrieval.groups) for e in (here, reference)]
        for name in (f"i2t_recall@{k}", f"t2i_recall@{k}"):
            (mine, unit), (theirs, _) = (one.hits(name) for one in made)
            found[name] = replace(drop(mine, theirs, unit), chance=min(1.0, k / len(samples.retrieval.pixels)))
    if samples.labelled is not None:
        labels, number = samples.labelled.labels, np.arange(len(samples.labelled.classnames))
        mine, theirs = (ranks(e.pictures, e.classes, labels, number).hits(1) for e in (here, reference))
        found["acc1"] = replace(drop(mine, theirs), chance=1 / len(samples.labelled.classnames))
    return found


def drop(here: np.ndarray, reference: np.ndarray, unit: np.ndarray | None = None) -> Drop:
    """Of hits [q], query by query; queries of one `unit` are resampled together."""
    lost = np.asarray(reference, np.float64) - np.asarray(here, np.float64)
    low, high = interval(lost, unit)
    units = 0 if unit is None else len(np.unique(unit))
    return Drop(float(np.mean(reference)), float(np.mean(here)), float(lost.mean()), low, high, len(lost), units=units)
