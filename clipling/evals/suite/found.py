"""What every evaluator of a suite is, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from clipling.evals.suite.dataset import Dataset
from clipling.evals.suite.subject import Subject

PAIRS, LABELLED = "pairs", "labelled"


@dataclass(kw_only=True)
class Found:
    """What one evaluator found of one model on one dataset.

    metrics: by name; fractions, but for those whose name says a unit (`latency_ms`) or that have none (`temperature`, `nll`).
    items: float64 [n] for those metrics that are the mean over n items (pictures, captions, queries): what intervals and paired
        comparisons of two models resample. The order depends on the dataset and the settings alone.
    units: int64 [n] for those items that are not independent: items of one number are drawn together (captions of a picture).
    details: JSON-able, for the report: curves, tables, rows of the dataset to be shown.
    notes: what a reader must know to read the numbers, a sentence each.
    """

    metrics: dict[str, float]
    items: dict[str, np.ndarray] = field(default_factory=dict)
    units: dict[str, np.ndarray] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Evaluation(Protocol):
    """An evaluator with its settings: a frozen dataclass whose fields, all with defaults, are what a suite file may set.

    task: its name in suite files and in results.
    takes: the kinds of dataset it can read.
    version: raised when equal settings give other numbers; results of another version are made again.
    headline: metrics for the table of the report, the most telling first.
    lower: metrics of which less is better.
    """

    task: ClassVar[str]
    takes: ClassVar[frozenset[str]]
    version: ClassVar[int]
    headline: ClassVar[tuple[str, ...]]
    lower: ClassVar[frozenset[str]]

    def skipped(self, dataset: Dataset) -> str | None:
        """Why it says nothing on this dataset (of a kind it takes), a clause such as "it names no groups"; None when it does."""
        ...

    def __call__(self, subject: Subject, dataset: Dataset) -> Found:
        """Raises UserError for features that are not finite and for settings that do not fit the dataset."""
        ...


def floats(values: Mapping[str, Any]) -> dict[str, float]:
    """Plain floats, so that numpy scalars never reach a JSON file."""
    return {name: float(value) for name, value in values.items()}
