"""What a model is not tuned on, measured beside what it is: forgetting, seen while it happens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from clipling.errors import UserError
from clipling.evals.evaluators import Evaluator

PREFIX = "watch/"


class Watch:
    """An evaluator whose metrics are those of another under `watch/<name>/`.

    So they are written at each evaluation and never taken for the run's own: the best checkpoint is chosen among metrics
    without the prefix, unless one with it is named in full.

    Raises UserError for a name that would make the metric's ambiguous.
    """

    def __init__(self, name: str, evaluator: Evaluator) -> None:
        if not name or "/" in name or name != name.strip():
            raise UserError(f"a watched set is called {name!r}; give it a name without '/' and without blanks around it")
        self.name, self.evaluator = name, evaluator

    def __call__(self, student: Any) -> Iterator[tuple[str, float]]:
        for metric, value in self.evaluator(student):
            yield f"{PREFIX}{self.name}/{metric}", value


def watched(metrics: dict[str, float]) -> dict[str, dict[str, float]]:
    """The metrics of every watched set by its name, out of those of one evaluation."""
    found: dict[str, dict[str, float]] = {}
    for full, value in metrics.items():
        if full.startswith(PREFIX):
            name, _, metric = full.removeprefix(PREFIX).partition("/")
            found.setdefault(name, {})[metric] = value
    return found


def kept(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    """What is left of every watched metric: now / before, by its full name; those that were 0 before are left out."""
    return {full: now[full] / value for full, value in before.items() if full.startswith(PREFIX) and full in now and value}
