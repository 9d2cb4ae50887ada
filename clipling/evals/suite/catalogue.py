"""Every evaluator by its task, and the suites made of them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from clipling.errors import UserError, near
from clipling.evals.checked import mistake
from clipling.evals.results import SUITE_TASKS
from clipling.evals.suite.found import Evaluation

# task -> "module:class" below clipling.evals.suite, in the order in which they run: what is quick and telling comes first.
EVALUATIONS: dict[str, str] = {
    "zeroshot_classification": "zeroshot_classification:ZeroShotClassification",
    "zeroshot_retrieval": "zeroshot_retrieval:ZeroShotRetrieval",
    "queries": "queries:OwnQueries",
    "cost": "cost:Cost",
    "calibration": "calibration:Calibration",
    "geometry": "geometry:Geometry",
    "prompt_sensitivity": "prompt_sensitivity:PromptSensitivity",
    "descriptions": "descriptions:Descriptions",
    "compositionality": "compositionality:Compositionality",
    "backgrounds": "backgrounds:Backgrounds",
    "outside": "outside:Outside",
    "linear_probe": "linear_probe:LinearProbe",
    "knn": "knn:KNN",
    "corruptions": "corruptions:Corruptions",
    "attacks": "attacks:Attacks",
}
assert set(EVALUATIONS) == set(SUITE_TASKS)
QUICK = ("zeroshot_classification", "zeroshot_retrieval", "queries", "cost", "calibration", "geometry")
RELIABILITY = ("calibration", "prompt_sensitivity", "backgrounds", "outside", "corruptions")
SUITES: dict[str, tuple[str, ...]] = {
    "quick": QUICK,
    "reliability": ("zeroshot_classification", "zeroshot_retrieval", *RELIABILITY),
    "full": tuple(EVALUATIONS),
}


def evaluation(task: str, settings: Mapping[str, Any] | None = None) -> Evaluation:
    """The evaluator of a task with its settings. Raises UserError for an unknown task or setting, and for bad values."""
    if task not in EVALUATIONS:
        raise UserError(f"there is no evaluator {task!r}. {near(task, EVALUATIONS)}")
    module, _, name = EVALUATIONS[task].partition(":")
    kind = getattr(importlib.import_module(f"clipling.evals.suite.{module}"), name)
    return _validated(kind, task, dict(settings or {}))


def _validated(kind: Any, task: str, settings: dict[str, Any]) -> Evaluation:
    from dataclasses import fields

    from pydantic import TypeAdapter, ValidationError

    known = [f.name for f in fields(kind)]
    for key in settings:
        if key not in known:
            raise UserError(f"{task} has no setting {key!r}. {near(key, known) if known else 'It has none.'}")
    try:
        return TypeAdapter(kind).validate_python(settings)
    except ValidationError as error:
        raise UserError(f"{task}.{mistake(kind, error)}") from error
