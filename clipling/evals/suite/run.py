"""Runs a plan on one model: a result file for each dataset and evaluator, and none is made twice."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from clipling.data.classes import open_labelled
from clipling.environment import environment
from clipling.errors import UserError
from clipling.evals.intervals import interval
from clipling.evals.public import public, public_command
from clipling.evals.results import Result, read_result, write_result
from clipling.evals.suite.catalogue import EVALUATIONS
from clipling.evals.suite.dataset import Dataset
from clipling.evals.suite.found import Evaluation, Found
from clipling.evals.suite.items import ITEMS, lengths, read_items, save_items
from clipling.evals.suite.plan import Plan
from clipling.evals.suite.plan_file import SOURCES
from clipling.evals.suite.sources import remember
from clipling.evals.suite.subject import Subject

MEASURED_HERE = frozenset({"cost"})
"""Tasks whose numbers depend on the machine: an existing result is kept only when it was made on the same one."""
SAME = ("dataset", "model", "pretrained", "language", "model_hash", "data_hash", "settings", "prompts", "preprocessing")
"""What an existing result must share with the wanted one to be kept."""
READS = {"descriptions": "descriptions", "backgrounds": "groups", "outside": "outside", "queries": "queries"}
"""What beside pictures and captions or classes a task reads of a dataset; a task that is not among the catalogue's reads all."""


@dataclass
class Outcome:
    """What a suite made: results in order, how many were there already, and what did not apply (dataset, task, reason)."""

    results: list[Result] = field(default_factory=list)
    kept: int = 0
    skipped: list[tuple[str, str, str]] = field(default_factory=list)


def run_plan(
    subject: Subject,
    plan: Plan,
    out: Path,
    *,
    opened: dict[str, Dataset] | None = None,
    warnings: Callable[[Dataset], list[str]] | None = None,
    tasks: frozenset[str] | None = None,
    start_of: str = "",
    say: Callable[[str], Any] = lambda line: None,
) -> Outcome:
    """Measures `subject` by `plan`; results go to `out`, per-item values to `out/items`.

    With several processes (`subject.runtime`) all call this; features are shared out, and the first process writes the results.

    opened: datasets that are open already, and will be added to: several models share them. warnings: what weakens results on a
    dataset. tasks: only these. start_of: the hash of the model whose untrained start `subject` is. Raises UserError at the first
    evaluator that cannot go on; what was finished stays.
    """
    made, opened = Outcome(), {} if opened is None else opened
    for name, spec in plan.datasets.items():
        if name not in opened:
            with subject.runtime.first_before_others():
                opened[name] = spec.open(name)
            remember(opened[name], spec)
        dataset = opened[name]
        warned = [*(warnings(dataset) if warnings else []), *weaknesses(dataset)]
        for evaluation in plan.evaluations:
            if (tasks is not None and evaluation.task not in tasks) or dataset.kind not in evaluation.takes:
                continue
            reason = evaluation.skipped(dataset)
            if reason:
                made.skipped.append((name, evaluation.task, reason))
                continue
            result, kept = _one(subject, dataset, evaluation, out, warned, start_of, say)
            made.results.append(result)
            made.kept += kept
    if not made.results and tasks is None:
        why = "; ".join(f"{task} on {name}: {reason}" for name, task, reason in made.skipped) or "no evaluator takes these datasets"
        raise UserError(f"nothing could be measured: {why}")
    return made


def _one(
    subject: Subject, dataset: Dataset, evaluation: Evaluation, out: Path, warned: list[str], start_of: str, say: Callable[[str], Any]
) -> tuple[Result, bool]:
    settings = {"version": evaluation.version, **asdict(evaluation)}  # type: ignore[call-overload]
    # What a path leads to is in `inputs`: the same pictures elsewhere are the same setting.
    settings |= {key: public(settings[key]) for key in SOURCES if settings.get(key)}
    result = Result(
        dataset=dataset.name,
        model=subject.name,
        pretrained=subject.pretrained,
        task=evaluation.task,
        language=dataset.language,
        metrics={},
        prompts=list(dataset.labelled.templates) if dataset.kind == "labelled" else [],
        preprocessing=dict(subject.student.preprocess_cfg),
        data_hash=dataset.source.fingerprint,
        model_hash=subject.model_hash,
        budget=subject.budget,
        size=_size(dataset),
        warnings=list(warned),
        spec=public(dataset.spec),
        family=dataset.family,
        settings=_plain(settings),
    )
    found_here = environment()
    result.made = {"inputs": inputs(dataset, evaluation), "machine": found_here["machine"]}
    path, runtime = out / result.filename(), subject.runtime
    known = _existing(path, result)
    if runtime.any(runtime.first and known is not None):  # what the first process sees: all must go the same way
        return _updated(known or result, result, start_of, out if runtime.first else None), True
    if not runtime.first:  # helps with the features; the first process measures and writes
        if evaluation.task not in MEASURED_HERE:
            evaluation(subject, dataset)
        runtime.wait()
        return result, False
    say(f"{subject.name}: {evaluation.task} on {dataset.name}")
    began = time.perf_counter()
    found = evaluation(subject, dataset)
    _fill(result, found)
    result.made |= {
        "seconds": round(time.perf_counter() - began, 3),
        "command": public_command(sys.argv[0], sys.argv[1:]),
        "items": lengths(found),
        **({"start_of": [start_of]} if start_of else {}),
        **{key: found_here[key] for key in ("commit", "packages", "date", "python")},
    }
    save_items(out / ITEMS / f"{path.stem}.npz", found)
    write_result(result, out)
    runtime.wait()
    return result, False


def _updated(known: Result, wanted: Result, start_of: str, out: Path | None) -> Result:
    """A result that is kept, with what may change without a new measurement: warnings, and whose start its model is. out: where it is
    written again."""
    before = known.content()
    owners = list(known.made.get("start_of", []))
    known.warnings, known.budget, known.spec, known.family = wanted.warnings, wanted.budget, wanted.spec, wanted.family
    if start_of and start_of not in owners:
        known.made = {**known.made, "start_of": [*owners, start_of]}
    if out is not None and known.content() != before:
        write_result(known, out)
    return known


def weaknesses(dataset: Dataset) -> list[str]:
    """What weakens the numbers on labelled pictures: classes without a picture, and two of one name."""
    if dataset.kind != "labelled":
        return []
    names, said = dataset.labelled.classnames, []
    seen = set(dataset.labelled.labels.tolist())
    empty = [name for c, name in enumerate(names) if c not in seen]
    if empty:
        said.append(f"{len(empty)} of {len(names)} classes have no picture here: {_some(empty)}.")
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        said.append(f"Several classes have one name, so they cannot be told apart: {_some(twice)}.")
    return said


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _fill(result: Result, found: Found) -> None:
    bad = [name for name, value in found.metrics.items() if not np.isfinite(value)]
    if bad:
        raise UserError(f"{result.task} on {result.dataset} gave no finite number for {', '.join(bad)}: its input cannot be measured so")
    result.metrics, result.details, result.notes = found.metrics, found.details, list(found.notes)
    result.intervals = {name: interval(values, found.units.get(name)) for name, values in found.items.items() if len(values)}


def inputs(dataset: Dataset, evaluation: Evaluation) -> str:
    """A hash of what an evaluator reads of a dataset beside pictures and captions or classes, and of the source that it learns from."""
    digest = blake2b(digest_size=16)
    own = READS.get(evaluation.task, "" if evaluation.task in EVALUATIONS else None)
    parts: list[Any] = [list(dataset.labelled.templates) if dataset.kind == "labelled" else []]
    if own in ("descriptions", None):
        parts.append(dataset.descriptions)
    if own in ("groups", None):
        parts.append(list(dataset.groups or ()))
    if own in ("outside", None):
        parts.append([other.source.fingerprint for other in dataset.outside])
    if own in ("queries", None) and dataset.queries is not None:
        try:
            parts.append(dataset.queries.read_bytes())
        except OSError as error:
            raise UserError(f"{dataset.queries} cannot be read: {error}") from error
    if train := getattr(evaluation, "train", None):
        parts.append(open_labelled(train, classes=getattr(evaluation, "train_classes", None)).fingerprint)
    for part in parts:
        digest.update(repr(part).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _existing(path: Path, wanted: Result) -> Result | None:
    """The result at `path` when it was made of the same weights, data and settings, and its per-item values are there."""
    try:
        found = read_result(path)
    except UserError:
        return None
    same = all(getattr(found, name) == getattr(wanted, name) for name in SAME)
    same = same and bool(wanted.model_hash) and found.made.get("inputs") == wanted.made["inputs"] and "seconds" in found.made
    if wanted.task in MEASURED_HERE:
        same = same and found.made.get("machine") == wanted.made["machine"]
    items = {name: len(values) for name, (values, _) in read_items(path.parent, found).items()} if same else {}
    return found if same and items == found.made.get("items") else None


def _plain(value: Any) -> Any:
    """As JSON reads it back, so that settings of a file and of now can be compared."""
    if isinstance(value, Mapping):
        return {str(key): _plain(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(below) for below in value]
    return value


def _size(dataset: Dataset) -> dict[str, int]:
    bad = {"bad_rows": len(dataset.source.problems)}
    if dataset.kind == "labelled":
        return {"images": len(dataset), "classes": len(dataset.labelled.classnames), **bad}
    return {"pairs": len(dataset), "captions": len(dataset.pairs.captions), **bad}
