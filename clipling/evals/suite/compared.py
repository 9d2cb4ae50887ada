"""What the report of a suite is made of: results by model, and how the first model compares with the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from clipling.evals.results import Result

Role = Literal["model", "untrained", "ready"]
Tone = Literal["gain", "loss", "plain"]


@dataclass(frozen=True)
class ModelResults:
    """One model: what it is called on the page, its colour number (`plots.colour`), one result a (dataset, task).

    label: differs between the models of a page. role: a model of the user, its untrained start, or a ready-made reference.
    places: the folder that each result, by (dataset, task), was read from: its per-item values lie there.
    """

    label: str
    colour: int
    results: list[Result]
    role: Role = "model"
    places: Mapping[tuple[str, str], Path] = field(default_factory=dict)

    @property
    def hashes(self) -> frozenset[str]:
        """Of the model: one, as a rule."""
        return frozenset(r.model_hash for r in self.results if r.model_hash)

    @property
    def start_of(self) -> frozenset[str]:
        """The hashes of the models whose untrained start this is."""
        return frozenset(owner for r in self.results for owner in r.made.get("start_of", ()))


@dataclass(frozen=True)
class Gap:
    """A metric of model `a` minus that of model `b` on the same items: a fraction, with its 95 % interval over items."""

    dataset: str
    task: str
    metric: str
    a: str
    b: str
    mean: float
    low: float
    high: float
    items: int


@dataclass(frozen=True)
class Comparison:
    """The first thing the page says. `tone` is its look; `points` belong to it, `warnings` weaken it."""

    tone: Tone
    title: str
    text: str
    points: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
