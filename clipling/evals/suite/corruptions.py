"""Robustness to common corruptions: noise, blur, weather and compression at five severities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b
from threading import Lock
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from clipling.errors import UserError, near
from clipling.evals.corruptions import CORRUPTIONS, FAMILY, SEVERITIES, SMALLEST, VERSION, corrupt
from clipling.evals.retrieval import ranks, retrieval
from clipling.evals.retrieval import units as unit_numbers
from clipling.evals.suite.dataset import Dataset
from clipling.evals.suite.found import LABELLED, PAIRS, Found, floats
from clipling.evals.suite.subject import Subject

FEW = 100  # pairs below which recall@10 would be near 1 whatever the model: recall@1 is taken
LONGEST = 8  # longer side in shorter sides: of a longer picture only the middle is seen
MEMORY = 256 << 20  # bytes of resized pictures that are kept between corruptions


@dataclass(frozen=True)
class Corruptions:
    """What is left of accuracy (or recall) on corrupted pictures: Hendrycks and Dietterich 2019, arXiv 1903.12261.

    Every picture is resized to a shorter side of `size` px (bicubic, up or down) and corrupted there; then it goes through the
    model's own preprocessing. So models of any input size see the same corruption of the same picture, as with ImageNet-C; noise on
    the model's own pixels would be another, heavier one for a model of small inputs. The consequence for small pictures, such as those
    of CIFAR-10: they are enlarged first, and a model of 32 px averages much of the noise away again. Severities are not CIFAR-10-C's.

    The clean pictures go the same way, so `kept` is the effect of corruption alone, and `clean` may differ a little from the
    zero-shot accuracy of the same pictures. Nothing is divided by AlexNet's errors, as the paper's mCE is.

    corruptions: names of clipling.evals.corruptions.
    severities: from 1 (light) to 5 (heavy).
    sample: pictures to measure on, chosen by key (see Dataset.sample); None for all. Each costs 76 passes with all settings.
    size: shorter side in pixels at which pictures are corrupted; the corruptions are made for 224.
    """

    corruptions: tuple[str, ...] = tuple(CORRUPTIONS)
    severities: tuple[int, ...] = SEVERITIES
    sample: int | None = 256
    size: int = 224

    task: ClassVar[str] = "corruptions"
    takes: ClassVar[frozenset[str]] = frozenset({PAIRS, LABELLED})
    version: ClassVar[int] = 1
    headline: ClassVar[tuple[str, ...]] = ("corrupted", "kept")
    lower: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        for name in self.corruptions:
            if name not in CORRUPTIONS:
                raise UserError(f"corruptions has {name!r}. {near(name, CORRUPTIONS)}")
        if not self.corruptions or len(set(self.corruptions)) < len(self.corruptions):
            raise UserError(f"corruptions is {list(self.corruptions)}; expected at least one name, and each once")
        if not self.severities or len(set(self.severities)) < len(self.severities) or not set(self.severities) <= set(SEVERITIES):
            raise UserError(f"severities is {list(self.severities)}; expected whole numbers from 1 to 5, each once")
        if self.sample is not None and self.sample < 1:
            raise UserError(f"sample is {self.sample}; expected a number of pictures, or null for all")
        if self.size < SMALLEST:
            raise UserError(f"size is {self.size}; expected {SMALLEST} px at least, 224 to compare with what others publish")

    def skipped(self, dataset: Dataset) -> str | None:
        if dataset.kind == LABELLED:
            return None
        return "it has no captions" if dataset.pairs.unpaired or not dataset.pairs.captions else None

    def __call__(self, subject: Subject, dataset: Dataset) -> Found:
        rows = dataset.sample(self.sample)
        measure, score, units = (_accuracy if dataset.kind == LABELLED else _recall)(subject, dataset, rows)
        resized = replace(dataset, source=Resized(dataset, self.size))

        def cell(corruption: str | None, severity: int) -> np.ndarray:
            return score(subject.images(resized, rows, Corrupted(corruption, severity, self.size)))

        clean = cell(None, 0)
        cells = np.stack([[cell(name, severity) for severity in self.severities] for name in self.corruptions])  # [C, S, n]
        items = {"clean": clean, "corrupted": cells.mean((0, 1))}
        items |= {f"severity_{s}": cells[:, k].mean(0) for k, s in enumerate(self.severities)}
        items |= {f"corrupted/{name}": cells[c].mean(0) for c, name in enumerate(self.corruptions)}
        metrics = floats({name: values.mean() for name, values in items.items()})
        if metrics["clean"] > 0:
            metrics["kept"] = metrics["corrupted"] / metrics["clean"]
        return Found(
            metrics=metrics,
            items=items,
            units={} if units is None else dict.fromkeys(items, units),
            details=self._details(measure, len(rows), cells.mean(2)),
            notes=self._notes(len(rows), len(dataset), measure, metrics),
        )

    def _details(self, measure: str, pictures: int, curves: np.ndarray) -> dict[str, Any]:
        return {
            "measure": measure,
            "pictures": pictures,
            "severities": list(self.severities),
            "curves": {name: [float(v) for v in curve] for name, curve in zip(self.corruptions, curves)},
            "families": {name: FAMILY[name] for name in self.corruptions},
        }

    def _notes(self, pictures: int, of: int, measure: str, metrics: dict[str, float]) -> list[str]:
        every = f"all {of}" if pictures == of else f"a sample of {pictures} of {of}"
        notes = [
            f"Measured on {every} pictures, resized to a shorter side of {self.size} px, the clean ones too; {measure} among these alone."
        ]
        if "frost" in self.corruptions:
            notes.append("Frost is drawn, where ImageNet-C has photographs: not comparable number by number.")
        if "kept" not in metrics:
            notes.append("Nothing is right on clean pictures, so there is no share that is kept.")
        return notes


@dataclass(frozen=True)
class Corrupted:
    """The change of a picture: resized to a shorter side of `size` px, then corrupted (None: resized only)."""

    corruption: str | None
    severity: int
    size: int

    @property
    def name(self) -> str:
        how = f"{self.corruption} {self.severity}" if self.corruption else "clean"
        return f"{how} at {self.size} px, version {VERSION}"

    def __call__(self, picture: Image.Image, key: str) -> Image.Image:
        picture = at_size(picture, self.size)
        if self.corruption is None:
            return picture
        name = f"{self.corruption} {self.severity} {key}".encode("utf-8", "surrogatepass")
        seed = int.from_bytes(blake2b(name, digest_size=8).digest(), "little")
        return Image.fromarray(corrupt(np.asarray(picture), self.corruption, self.severity, seed))


def at_size(picture: Image.Image, size: int) -> Image.Image:
    """The picture with a shorter side of `size` px (bicubic), and of very long ones the middle; as it is when it has that already."""
    width, height = picture.size
    short = min(width, height)
    cut = [min(side, LONGEST * short) for side in (width, height)]
    wanted = tuple(min(max(size, round(side * size / short)), LONGEST * size) for side in cut)
    if wanted == picture.size:
        return picture
    left, top = ((side - kept) / 2 for side, kept in zip((width, height), cut))
    return picture.resize(wanted, Image.Resampling.BICUBIC, box=(left, top, left + cut[0], top + cut[1]))


class Resized:
    """A dataset's source whose pictures are resized once, not once a corruption. Of many, only as many as fit into MEMORY are kept."""

    def __init__(self, dataset: Dataset, size: int) -> None:
        self.source, self.size = dataset.source, size
        self.keys, self.hashes = dataset.source.keys, dataset.hashes
        self._kept: dict[int, np.ndarray] = {}
        self._room, self._lock = MEMORY, Lock()  # pictures are asked for by several threads

    def __len__(self) -> int:
        return len(self.keys)

    def image(self, i: int) -> Image.Image:
        """The upright RGB picture at `size`. Raises UserError or ImageError."""
        if i in self._kept:
            return Image.fromarray(self._kept[i])
        picture = at_size(self.source.image(i), self.size)
        pixels = np.asarray(picture)
        with self._lock:
            if i not in self._kept and pixels.nbytes <= self._room:
                self._kept[i] = pixels
                self._room -= pixels.nbytes
        return picture


Score = Callable[[np.ndarray], np.ndarray]  # features [n, d] -> values of items float64 [m], whose mean is the measure


def _accuracy(subject: Subject, dataset: Dataset, rows: np.ndarray) -> tuple[str, Score, None]:
    """Whether each picture's class is the nearest."""
    text, labels = subject.classes(dataset), np.asarray(dataset.labelled.labels)[rows]
    return "acc1", lambda image: ranks(image, text, labels, np.arange(len(text))).hits(1), None


def _recall(subject: Subject, dataset: Dataset, rows: np.ndarray) -> tuple[str, Score, np.ndarray | None]:
    """Recall among the sample's pictures and captions: the mean of both directions, shared out among the pictures.

    The value of a picture is half its own hit and half the mean hit of its captions, weighted such that the mean over pictures is
    the mean of the two recalls when some have more captions than others, too.
    """
    pairs = dataset.pairs.subset(rows)
    if not pairs.captions:
        raise UserError(f"none of the {len(rows)} sampled pictures of {dataset.name} has a caption; raise `sample`, or set it to null")
    text = subject.texts(pairs.captions)
    groups = list(pairs.groups) if any(pairs.groups) else None
    unit, owner = unit_numbers(groups, len(pairs)), np.repeat(np.arange(len(pairs)), np.diff(pairs.offsets))
    asked = np.isin(unit, unit[owner])  # the pictures that have a right answer
    k = 10 if len(pairs) >= FEW else 1

    def score(image: np.ndarray) -> np.ndarray:
        found = retrieval(image, text, pairs.offsets, groups)
        by_text = np.bincount(owner, weights=found.t2i.hits(k), minlength=len(pairs))
        return (found.i2t.hits(k) / 2 + by_text * (asked.sum() / len(text)) / 2)[asked]

    return f"recall@{k}", score, None if groups is None else unit[asked]
