"""How each number of a page was made: what a model's results have in common once, and the rest result by result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clipling.evals.public import public
from clipling.evals.report import flat
from clipling.evals.results import Result
from clipling.evals.suite.compared import ModelResults

Facts = list[tuple[str, str]]


@dataclass(frozen=True)
class Made:
    """One result: its facts that are not common to its model, and every metric as the file has it."""

    dataset: str
    task: str
    facts: Facts
    metrics: Facts


@dataclass(frozen=True)
class Origin:
    model: ModelResults
    common: Facts
    results: list[Made]


def origins(models: Sequence[ModelResults]) -> list[Origin]:
    found = []
    for model in models:
        each = [_facts(result) for result in model.results]
        shared = set.intersection(*(set(facts) for facts in each)) if each else set()
        made = [
            Made(result.dataset, result.task, [fact for fact in facts if fact not in shared], _metrics(result))
            for result, facts in zip(model.results, each)
        ]
        found.append(Origin(model, [fact for fact in (each[0] if each else []) if fact in shared], made))
    return found


def _facts(result: Result) -> Facts:
    made = dict(result.made)
    first: dict[str, Any] = {
        "command": made.pop("command", ""),
        "date": made.pop("date", ""),
        "seconds": made.pop("seconds", ""),
        "model": " ".join(filter(None, (result.model, result.pretrained))),
        "model, SHA-256": result.model_hash,
        "data": public(result.spec),
        "data, hash": result.data_hash,
        "language": result.language,
        "size": result.size,
        "settings": result.settings,
        "prompts": " · ".join(result.prompts),
        "preprocessing": result.preprocessing,
    }
    return [*flat(first), *flat(made)]


def _metrics(result: Result) -> Facts:
    """Fractions as they are in the file, so that nothing is rounded twice."""
    made = []
    for name, value in result.metrics.items():
        ends = result.intervals.get(name)
        made.append((name, f"{value:.6g}" + (f" ({ends[0]:.6g} to {ends[1]:.6g})" if ends else "")))
    return made
