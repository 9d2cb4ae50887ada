"""What the report of a suite is made of: results by model, and how the first model compares with the others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from clipling.evals.results import Result

Role = Literal["model", "untrained", "ready"]
Tone = Literal["gain", "loss", "plain"]


@dataclass(frozen=True)
class ModelResults:
    """One model: what it is called on the page, its colour number (`plots.colour`), one result a (dataset, task).

    label: differs between the models of a page. role: a model of the user, its untrained start, or a ready-made reference.
    """

    label: str
    colour: int
    results: list[Result]
    role: Role = "model"


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
