"""The shape of the shared embedding space: gap, alignment, uniformity, effective rank, hubness."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from clipling.errors import UserError
from clipling.evals.retrieval import TIE
from clipling.evals.suite.dataset import Dataset
from clipling.evals.suite.found import LABELLED, PAIRS, Found, floats
from clipling.evals.suite.subject import Subject

SPECTRUM = 64  # singular values that are shown
BINS = 20
_BLOCK_BYTES = 32 << 20


@dataclass(frozen=True)
class Geometry:
    """How pictures and texts lie in their shared space. Texts are the captions, or the class prompts of labelled pictures.

    modality_gap: the Euclidean distance between the mean picture and the mean text (Liang et al. 2022, arXiv 2203.02053, section 2).
    alignment: the mean squared distance of a picture from its text; uniformity: the log of the mean of exp(-2 d^2) over the pairs of
    rows of one modality (Wang and Isola 2020, arXiv 2005.10242, section 4.1, alpha = 2 and t = 2). Less is better in both.
    effective_rank: exp of the entropy of the normalised singular values (Roy and Vetterli 2007), of the centred features: the common
    direction of a modality is what modality_gap and uniformity tell, and would hide the rest. 0 when all rows are equal.
    hubness_skew: the skewness of how often a candidate is among the k nearest of a query (Radovanovic et al. 2010, JMLR 11, section
    2.1), searching pictures by texts (`_image`) and texts by pictures (`_text`). 0 when all candidates are found equally often.
    hub_share_image: the share of texts whose nearest picture is among the 1 % of pictures that are nearest most often.

    sample: pictures, chosen by a hash of their keys; all captions of them are read. None for all. k: neighbours for hubness; at most
    half of the candidates are taken.
    """

    sample: int | None = 4096
    k: int = 10

    task: ClassVar[str] = "geometry"
    takes: ClassVar[frozenset[str]] = frozenset({PAIRS, LABELLED})
    version: ClassVar[int] = 1
    headline: ClassVar[tuple[str, ...]] = ("modality_gap", "alignment", "uniformity_image", "effective_rank_image", "hubness_skew_image")
    lower: ClassVar[frozenset[str]] = frozenset(
        ["modality_gap", "alignment", "uniformity_image", "uniformity_text", "hubness_skew_image", "hubness_skew_text", "hub_share_image"]
    )

    def __post_init__(self) -> None:
        if self.sample is not None and self.sample < 2:
            raise UserError(f"sample is {self.sample}; expected a number of pictures from 2 on, or null for all")
        if self.k < 1:
            raise UserError(f"k is {self.k}; expected a number of neighbours from 1 on")

    def skipped(self, dataset: Dataset) -> str | None:
        rows = dataset.sample(self.sample)
        if dataset.kind == LABELLED:
            texts, what = len(dataset.labelled.classnames), "classes"
        else:
            texts, what = int(np.diff(dataset.pairs.offsets)[rows].sum()), "captions"
        if not texts:
            return f"it has no {what}"
        return f"{len(rows)} pictures and {texts} {what} are too few to have a shape" if min(len(rows), texts) < 2 else None

    def __call__(self, subject: Subject, dataset: Dataset) -> Found:
        rows = dataset.sample(self.sample)
        image = np.asarray(subject.images(dataset, rows), dtype=np.float64)
        text, owner, answer = _texts(subject, dataset, rows)
        apart = ((image[owner] - text[answer]) ** 2).sum(1)
        values = {"image": spectrum(image), "text": spectrum(text)}
        found_image, nearest_image = occurrences(text, image, self.k), occurrences(text, image, 1)
        metrics = {
            "modality_gap": np.linalg.norm(image.mean(0) - text.mean(0)),
            "alignment": apart.mean(),
            "uniformity_image": uniformity(image),
            "uniformity_text": uniformity(text),
            "effective_rank_image": effective_rank(values["image"]),
            "effective_rank_text": effective_rank(values["text"]),
            "hubness_skew_image": skewness(found_image),
            "hubness_skew_text": skewness(occurrences(image, text, self.k)),
        }
        if len(text) >= len(image):  # with fewer texts than pictures, few pictures answer all of them in any space
            metrics["hub_share_image"] = hub_share(nearest_image)
        details: dict[str, Any] = {f"spectrum_{name}": [float(v) for v in some[:SPECTRUM]] for name, some in values.items()}
        details["occurrence_image"] = _histogram(found_image)
        details |= {"pictures": len(image), "texts": len(text), "k_image": _k(self.k, len(image)), "k_text": _k(self.k, len(text))}
        return Found(
            metrics=floats(metrics),
            items={"alignment": apart},
            units={"alignment": rows[owner]} if dataset.kind == PAIRS else {},
            details=details,
            notes=_notes(dataset, len(image), len(text), image.shape[1]),
        )


def _texts(subject: Subject, dataset: Dataset, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(texts float64 [T, d], owner [n], answer [n]): picture owner[j] of `rows` and text answer[j] belong together."""
    if dataset.kind == LABELLED:
        classes = np.asarray(subject.classes(dataset), dtype=np.float64)
        return classes, np.arange(len(rows)), np.asarray(dataset.labelled.labels)[rows]
    pairs = dataset.pairs
    captions = [caption for row in rows for caption in pairs.captions_of(int(row))]
    owner = np.repeat(np.arange(len(rows)), np.diff(pairs.offsets)[rows])
    return np.asarray(subject.texts(captions), dtype=np.float64), owner, np.arange(len(captions))


def uniformity(rows: np.ndarray) -> float:
    """log of the mean of exp(-2 |x - y|^2) over the distinct pairs of `rows [n, d]`: 0 when all are equal. Exact, block by block."""
    count, total = len(rows), 0.0
    if count < 2:
        raise ValueError("uniformity needs two rows or more")
    norms = (rows**2).sum(1)
    for part in _blocks(count, count):
        # Columns from this block on: each pair once, but for the block with itself, whose upper triangle is taken.
        rest = slice(part.start, count)
        squared = norms[part, None] + norms[None, rest] - 2.0 * (rows[part] @ rows[rest].T)
        total += float(np.triu(np.exp(-2.0 * np.clip(squared, 0.0, None)), k=1).sum())
    return math.log(total / (count * (count - 1) / 2))


def spectrum(rows: np.ndarray) -> np.ndarray:
    """Singular values of the centred `rows [n, d]`, largest first, divided by their sum; empty when all rows are equal.

    Values that stand for less than 1e-6 a row are rounding of fp32 features and are left out.
    """
    centred = rows - rows.mean(0)
    gram = (centred.T @ centred if len(rows) >= rows.shape[1] else centred @ centred.T) / len(rows)
    values = np.sqrt(np.clip(np.linalg.eigvalsh(gram)[::-1], 0.0, None))
    values = values[values > TIE]
    return values / values.sum() if len(values) else values


def effective_rank(values: np.ndarray) -> float:
    """exp of the entropy of normalised singular values, between 1 and their number; 0 for none."""
    return float(np.exp(-(values * np.log(values)).sum())) if len(values) else 0.0


def occurrences(queries: np.ndarray, candidates: np.ndarray, k: int) -> np.ndarray:
    """float64 [C]: how often each candidate is among the k nearest (at most half of the candidates) of `queries [Q, d]`, by inner product.

    Candidates that are tied (1e-6) for the last places share them: their expectation under random order.
    """
    k, found = _k(k, len(candidates)), np.zeros(len(candidates))
    for part in _blocks(len(queries), len(candidates)):
        scores = queries[part] @ candidates.T
        last = np.partition(scores, len(candidates) - k, axis=1)[:, len(candidates) - k, None]
        ahead, level = scores > last + TIE, np.abs(scores - last) <= TIE
        share = (k - ahead.sum(1)) / level.sum(1)
        found += ahead.sum(0) + share @ level
    return found


def skewness(values: np.ndarray) -> float:
    """The third standardised moment of `values [n]` (of the population); 0 when all are equal."""
    apart = values - values.mean()
    spread = math.sqrt(float((apart**2).mean()))
    return float((apart**3).mean()) / spread**3 if spread > 1e-9 * max(1.0, float(np.abs(values).max())) else 0.0


def hub_share(nearest: np.ndarray, share: float = 0.01) -> float:
    """The part of all first places that the `share` of candidates with the most of them (at least one) has. `nearest [C]`: counts."""
    most = max(1, math.ceil(share * len(nearest)))
    return float(np.sort(nearest)[-most:].sum() / nearest.sum())


def _k(k: int, candidates: int) -> int:
    # Among as many neighbours as there are candidates each one is found by every query, and nothing is a hub.
    return max(1, min(k, candidates // 2))


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    size = max(1, _BLOCK_BYTES // (8 * columns))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _histogram(values: np.ndarray) -> dict[str, list]:
    counts, edges = np.histogram(values, bins=BINS, range=(0.0, max(1.0, float(values.max()))))
    return {"edges": [float(e) for e in edges], "counts": [int(c) for c in counts]}


def _notes(dataset: Dataset, pictures: int, texts: int, width: int) -> list[str]:
    notes = ["These numbers describe: a smaller gap, or a higher rank, does not by itself make a better model."]
    if pictures < len(dataset):
        notes.append(
            f"Measured on {pictures:,} of {len(dataset):,} pictures, chosen by a hash of their keys; hubness depends on their number."
        )
    for count, what in ((pictures, "picture"), (texts, "text")):
        if count <= width:
            notes.append(f"With {count:,} {what}s their effective rank can be {count - 1:,} at most.")
    if texts < pictures:
        notes.append("There are fewer texts than pictures: hub_share_image is left out, and hubness_skew_image rests on few queries.")
    return notes
