"""How much a model leans on the background: accuracy on each class's easiest and hardest group of pictures.

The protocol of CounterAnimal (Do CLIPs Always Generalize Better than ImageNet Models?, arXiv 2403.11497) for any groups: backgrounds,
cameras, places. Letters: n pictures, C classes, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from clipling.errors import UserError
from clipling.evals.intervals import bootstrap, percentiles
from clipling.evals.retrieval import ranks
from clipling.evals.suite.calibration import halves
from clipling.evals.suite.dataset import Dataset
from clipling.evals.suite.found import LABELLED, Found, floats
from clipling.evals.suite.subject import Subject


def discover_groups(acc: np.ndarray, n: np.ndarray, n_min: int) -> tuple[np.ndarray, np.ndarray]:
    """(common, counter), int64 [C]: of every class the groups with the highest and the lowest accuracy.

    acc, n: [C, G] accuracy and number of pictures. Groups with fewer than `n_min` pictures do not count; a class
    that has not two others gets -1 and -1. The two always differ: of equal groups common is the first, counter the last.
    """
    enough = n >= max(1, n_min)
    highest = np.where(enough, acc, -np.inf).argmax(1)
    lowest = acc.shape[1] - 1 - np.where(enough, acc, np.inf)[:, ::-1].argmin(1)
    two = enough.sum(1) >= 2
    return np.where(two, highest, -1), np.where(two, lowest, -1)


@dataclass(frozen=True)
class Cells:
    """Right answers by half, class and group; pictures without a group are left out of it.

    hits: float64 [n]. cell: int64 [n], (half * C + class) * G + group; -1 for none. acc, n: [2, C, G], accuracy 0 where n is 0.
    """

    hits: np.ndarray
    cell: np.ndarray
    acc: np.ndarray
    n: np.ndarray

    @classmethod
    def of(cls, hits: np.ndarray, labels: np.ndarray, group: np.ndarray, second: np.ndarray, shape: tuple[int, int]) -> Cells:
        """hits, labels, group (-1 for none), second (half): [n]; shape: (C, G)."""
        cell = np.where(group >= 0, (second * shape[0] + labels) * shape[1] + group, -1)
        some, size = cell >= 0, 2 * shape[0] * shape[1]
        n = np.bincount(cell[some], minlength=size)
        total = np.bincount(cell[some], weights=hits[some], minlength=size)
        acc = total / np.maximum(n, 1)
        return cls(hits, cell, acc.reshape(2, *shape), n.reshape(2, *shape))

    def hits_of(self, half: int, label: int, group: int) -> np.ndarray:
        """float64 [m]: of the pictures of one cell."""
        return self.hits[self.cell == (half * self.acc.shape[1] + label) * self.acc.shape[2] + group]


@dataclass(frozen=True)
class Drops:
    """Accuracies on the discovered groups. All have [2, D] entries: the half that the groups were discovered on, class `classes[j]`."""

    classes: np.ndarray  # [D] those with two groups that are large enough
    common_group: np.ndarray
    counter_group: np.ndarray
    common: np.ndarray  # accuracy on the other half
    counter: np.ndarray
    same: np.ndarray  # common - counter on the half of the discovery

    @classmethod
    def of(cls, cells: Cells, least: int) -> Drops:
        """Discovery on each half, scored on the other; a group counts when it has `least` pictures of the class in each half."""
        size = cells.n.min(0)
        pairs = [discover_groups(cells.acc[half], size, least) for half in (0, 1)]
        classes = np.flatnonzero(pairs[0][0] >= 0)
        common, counter = (np.stack([pair[side][classes] for pair in pairs]) for side in (0, 1))
        own, other = np.array([[0], [1]]), np.array([[1], [0]])
        same = cells.acc[own, classes, common] - cells.acc[own, classes, counter]
        return cls(classes, common, counter, cells.acc[other, classes, common], cells.acc[other, classes, counter], same)

    @property
    def gap(self) -> np.ndarray:
        """float64 [D]: how much worse each class does on its counter group, mean of both directions."""
        return (self.common - self.counter).mean(0)

    def interval(self, cells: Cells, samples: int = 2000) -> tuple[float, float]:
        """95 % percentile bootstrap of the mean gap: pictures drawn within half, class and group, the discovered groups fixed."""
        total, seed = np.zeros(samples), 0
        for j, label in enumerate(self.classes):
            for half in (0, 1):
                for groups, sign in ((self.common_group, 1.0), (self.counter_group, -1.0)):
                    # A seed for each cell: with one seed, cells of one size would draw the same places.
                    total += sign * bootstrap(cells.hits_of(1 - half, label, groups[half, j]), samples=samples, seed=seed)
                    seed += 1
        return percentiles(total / (2 * len(self.classes)))


def group_accuracies(hits: np.ndarray, groups: Sequence[str]) -> list[dict[str, Any]]:
    """[{group, accuracy, count}] by name, "" for pictures without a group; weighted by count they give the overall accuracy."""
    names, number = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    count, total = np.bincount(number), np.bincount(number, weights=hits)
    return [{"group": str(g), "accuracy": float(t / c), "count": int(c)} for g, t, c in zip(names, total, count)]


@dataclass(frozen=True)
class Backgrounds:
    """Accuracy on the common and the counter group of every class, and the gap; positive when the counter group does worse.

    Groups chosen on the pictures that are then scored overstate the gap (regression to the mean). So the two groups of a class
    are discovered on one half of the pictures (by key) and scored on the other, both ways round, and the mean is given.
    `gap_same_half` is discovered and scored on the same half; it is never smaller. `worst_gap` is the largest of the class gaps:
    a choice again, so it overstates.

    Settings:
        least: pictures that a group needs, of the class and in each half.
    """

    task: ClassVar[str] = "backgrounds"
    takes: ClassVar[frozenset[str]] = frozenset({LABELLED})
    version: ClassVar[int] = 1
    headline: ClassVar[tuple[str, ...]] = ("gap", "common", "counter", "worst_gap")
    lower: ClassVar[frozenset[str]] = frozenset({"gap", "worst_gap", "gap_same_half"})

    least: int = 5

    def __post_init__(self) -> None:
        if self.least < 1:
            raise UserError(f"backgrounds: least is {self.least}; expected a whole number from 1, such as 5")

    def skipped(self, dataset: Dataset) -> str | None:
        if dataset.groups is None:
            return "it names no groups"
        drops = Drops.of(_cells(np.zeros(len(dataset)), dataset)[0], self.least)
        return None if len(drops.classes) else f"no class has two groups of {self.least} pictures or more in each half"

    def __call__(self, subject: Subject, dataset: Dataset) -> Found:
        classes = subject.classes(dataset)
        hits = ranks(subject.images(dataset), classes, dataset.labelled.labels, np.arange(len(classes))).hits(1)
        cells, names = _cells(hits, dataset)
        drops = Drops.of(cells, self.least)
        metrics = {
            "common": drops.common.mean(),
            "counter": drops.counter.mean(),
            "gap": drops.gap.mean(),
            "worst_gap": drops.gap.max(),
            "gap_same_half": drops.same.mean(),
        }
        details = {
            "classes": _classes(drops, cells, dataset.labelled.classnames, names),
            "groups": group_accuracies(hits, dataset.groups),
            "gap_interval": list(drops.interval(cells)),
        }
        return Found(metrics=floats(metrics), details=details, notes=self._notes(drops, dataset))

    def _notes(self, drops: Drops, dataset: Dataset) -> list[str]:
        notes = ["The groups of a class are discovered on one half of the pictures and scored on the other; both ways round, averaged."]
        present = len(np.unique(dataset.labelled.labels))
        if present > len(drops.classes):
            few = f"two groups of {self.least} pictures or more in each half"
            notes.append(f"{present - len(drops.classes)} of {present} classes have not {few} and are left out.")
        without = sum(not group for group in dataset.groups)
        if without:
            notes.append(f"{without} of {len(dataset)} pictures have no group.")
        return notes


def _cells(hits: np.ndarray, dataset: Dataset) -> tuple[Cells, list[str]]:
    """(cells, group names [G])"""
    if len(dataset.groups) != len(dataset):
        raise UserError(f"{dataset.name} has {len(dataset)} pictures and {len(dataset.groups)} groups; expected one group for each picture")
    names = sorted(set(dataset.groups) - {""})
    number = {name: g for g, name in enumerate(names)}
    group = np.array([number.get(name, -1) for name in dataset.groups], dtype=np.int64)
    shape = (len(dataset.labelled.classnames), max(1, len(names)))
    return Cells.of(hits, dataset.labelled.labels, group, halves(dataset.source.keys), shape), names


def _classes(drops: Drops, cells: Cells, classnames: Sequence[str], names: Sequence[str]) -> list[dict[str, Any]]:
    """The table of classes, the largest gap first; where the halves disagree, both groups are named, the first half's first.

    The counts are those of the pictures that were scored, of both directions.
    """
    rows = []
    for j in np.argsort(-drops.gap, kind="stable"):
        label = drops.classes[j]
        row: dict[str, Any] = {"name": classnames[label], "gap": float(drops.gap[j])}
        for side, group, accuracy in (("common", drops.common_group, drops.common), ("counter", drops.counter_group, drops.counter)):
            row[side] = float(accuracy[:, j].mean())
            row[f"{side}_group"] = " / ".join(dict.fromkeys(names[g] for g in group[:, j]))
            row[f"{side}_count"] = int(sum(cells.n[1 - half, label, group[half, j]] for half in (0, 1)))
        rows.append(row)
    return rows
