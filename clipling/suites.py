"""Suites on models: opens them, measures them beside their untrained start and what could be had ready-made, writes the report."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipling.assess import budget, describe, model_folder, seen_in_training
from clipling.errors import UserError, near
from clipling.evals.results import CLASSIFICATION, RETRIEVAL, Result, read_results, weights_hash
from clipling.evals.suite import judge
from clipling.evals.suite.compared import Comparison, ModelResults
from clipling.evals.suite.dataset import Dataset
from clipling.evals.suite.plan import DatasetSpec, Plan, named_plan, read_plan
from clipling.evals.suite.run import Outcome, run_plan
from clipling.evals.suite.subject import Subject
from clipling.models.dual import Student
from clipling.models.hub import new_student, open_student
from clipling.store import read_json

BESIDE = frozenset({CLASSIFICATION, RETRIEVAL, "queries"})
"""What is measured of the untrained start and of ready-made models: the numbers that verdicts are about."""
ROLES = ("model", "untrained", "ready")


@dataclass(frozen=True)
class Beside:
    """What is measured beside the model. ready: models by name; None looks for one in the hub's cache."""

    untrained: bool = True
    ready: tuple[str, ...] | None = None


def plan_of(suite: str, specs: Sequence[DatasetSpec]) -> Plan:
    """A suite by name on these datasets, or a .yaml file that names its own."""
    if not suite.endswith((".yaml", ".yml")):
        return named_plan(suite, specs)
    if specs:
        raise UserError(f"{suite} names its own datasets, so --data would be ignored. Leave it out, or add it to the file.")
    return read_plan(Path(suite))


def run_suite(
    model: str, plan: Plan, out: Path, *, beside: Beside | None = None, pictures: bool = True, say: Callable[[str], Any] = lambda line: None
) -> dict[str, Any]:
    """Measures `model` by `plan`, with what stands beside it, and writes `out/report.html`.

    Results that are there already, of the same weights, data and settings, are kept. Returns the table, what was skipped and why,
    and the verdict, JSON-able.
    """
    from clipling.models import ready

    beside = beside or Beside()
    opened: dict[str, Dataset] = {}
    main = subject_of(model)
    made = run_plan(main, plan, out, opened=opened, warnings=lambda d: seen_in_training(model, d.source), say=say)
    outcomes = {"model": made}
    if beside.untrained:
        start = start_of(model, main.student)
        if start.model_hash != main.model_hash:
            outcomes["untrained"] = _beside(start, plan, out, opened, "untrained", say)
    chosen = beside.ready if beside.ready is not None else tuple(ready.cached()[:1])
    for number, name in enumerate(chosen):
        outcomes[f"ready {number}"] = _beside(subject_of(name), plan, out, opened, "ready", say)
    written = report([out], out / "report.html", pictures=pictures, first=_identity(made.results[0]))
    return {**written, **_as_json(main, made, outcomes, plan)}


def _beside(subject: Subject, plan: Plan, out: Path, opened: dict[str, Dataset], role: str, say: Callable[[str], Any]) -> Outcome:
    """Results of other roles live in a folder of their own, so that CLIP_benchmark's tools see one model a folder."""
    return run_plan(subject, plan, out / role, opened=opened, tasks=BESIDE, say=say)


def subject_of(model: str, name: str | None = None) -> Subject:
    """The model as a subject: named by its run, its folder or its open_clip name, and by its weights."""
    student = open_student(model)
    shown, tag = describe(model)
    found = weights_hash(model_folder(model)) or state_hash(student)
    tag = tag if "@" in model else f"{tag}-{found[:8]}".strip("-")
    return Subject(student, name or _telling(model, shown), pretrained=tag, model_hash=found, spec=model, budget=budget(model, student))


def _telling(model: str, shown: str) -> str:
    """A folder that is just called `model` is named by the folder above."""
    parts = Path(model.removeprefix("local-dir:")).parts
    return parts[-2] if shown == "model" and len(parts) > 1 else shown


def start_of(model: str, student: Student) -> Subject:
    """The weights that training began with, where a run says so; otherwise random ones of the same architecture."""
    config, seed, init = student.local_config, 0, None
    summary, recipe = Path(model) / "summary.json", Path(model) / "recipe.yaml"
    if summary.is_file() and recipe.is_file():
        from clipling.recipe import from_yaml
        from clipling.starts import real_init

        read = from_yaml(recipe)
        seed = int(read_json(summary)["seed"])
        init = None if "pruned" in config else real_init(read)
    try:
        made = new_student(config, seed=seed, init=init)
    except UserError:  # what it began with is gone: random weights then
        made, init = new_student(config, seed=seed), None
    found = state_hash(made)
    name = f"{_telling(model, describe(model)[0])}, {'start' if init else 'random weights'}"
    return Subject(made.eval(), name, pretrained=found[:8], model_hash=found, spec="", budget={"parameters": made.sizes()["total"]})


def state_hash(student: Student) -> str:
    """SHA-256 over names and values of all weights, for models that were not read from a file of ours."""
    digest = hashlib.sha256()
    for name, value in sorted(student.stock_state().items()):
        digest.update(name.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def report(folders: Sequence[Path], out: Path, *, pictures: bool = True, first: str | None = None, credits: str = "") -> dict[str, Any]:
    """One page for the results in these folders. `first`: the label of the model that the others are compared with."""
    from clipling.evals.suite.page import write_page

    found = [group for folder in folders for group in read_models(folder)]
    if not any(model.role == "model" for model, _ in found):
        places = ", ".join(map(str, folders))
        raise UserError(f"{places}: no results. Make some with: clipling eval MODEL --suite quick --data SRC --out DIR")
    found.sort(key=lambda pair: (first not in (pair[0].label, _short(pair[0].label)), ROLES.index(pair[0].role)))
    if first is not None and first not in (found[0][0].label, _short(found[0][0].label)):
        raise UserError(f"--first {first!r} is none of the models. {near(first, [_short(model.label) for model, _ in found])}")
    names = _names([model.label for model, _ in found])
    models = [replace(model, label=name, colour=number) for number, ((model, _), name) in enumerate(zip(found, names))]
    comparison = judge.compare(models, {name: folder for name, (_, folder) in zip(names, found)})
    write_page(out, models, comparison, pictures=pictures, credits=credits)
    return {"report": str(out), "verdict": verdict_text(comparison), "tone": comparison.tone, "warnings": comparison.warnings}


def _names(labels: Sequence[str]) -> list[str]:
    """Labels without the hash of the weights, where they differ without it. Raises UserError for a label that is there twice."""
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"the results of {label} are given twice; give every folder once")
    short = [_short(label) for label in labels]
    return [few if short.count(few) == 1 else label for few, label in zip(short, labels)]


def _short(label: str) -> str:
    return re.sub(r"[ -][0-9a-f]{8}$", "", label)


def read_models(folder: Path) -> list[tuple[ModelResults, Path]]:
    """The models whose results are in a folder, and in its folders `untrained` and `ready`."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder of results. Make one with: clipling eval MODEL --suite quick --data SRC --out {folder}")
    made = []
    for role, place in (("model", folder), ("untrained", folder / "untrained"), ("ready", folder / "ready")):
        groups: dict[str, list[Result]] = {}
        for result in read_results(place):
            groups.setdefault(_identity(result), []).append(result)
        made += [(ModelResults(label, 0, results, role), place) for label, results in groups.items()]
    return made


def _identity(result: Result) -> str:
    return f"{result.model} {result.pretrained}".strip()


def verdict_text(comparison: Comparison) -> str:
    return "\n".join([f"{comparison.title}: {comparison.text}", *(f"- {line}" for line in (*comparison.points, *comparison.warnings))])


def _as_json(main: Subject, made: Outcome, outcomes: dict[str, Outcome], plan: Plan) -> dict[str, Any]:
    return {
        "model": main.name,
        "suite": plan.name,
        "kept": sum(o.kept for o in outcomes.values()),
        "made": sum(len(o.results) - o.kept for o in outcomes.values()),
        "skipped": [{"dataset": d, "task": t, "reason": reason} for d, t, reason in made.skipped],
        "results": [
            {"dataset": r.dataset, "task": r.task, "metrics": r.metrics, "intervals": r.intervals, "notes": r.notes} for r in made.results
        ],
    }
