"""Runs a plan on one model: a result file for each dataset and evaluator, and none is made twice."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from clipling.data.classes import open_labelled
from clipling.environment import environment
from clipling.errors import UserError
from clipling.evals.intervals import interval
from clipling.evals.results import Result, read_result, write_result
from clipling.evals.suite.dataset import Dataset
from clipling.evals.suite.found import Evaluation, Found
from clipling.evals.suite.plan import Plan
from clipling.evals.suite.subject import Subject
from clipling.store import atomic_produce

ITEMS = "items"
MEASURED_HERE = frozenset({"cost"})
"""Tasks whose numbers depend on the machine: an existing result is kept only when it was made on the same one."""


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
    say: Callable[[str], Any] = lambda line: None,
) -> Outcome:
    """Measures `subject` by `plan`; results go to `out`, per-item values to `out/items`.

    opened: datasets that are open already, and will be added to: several models share them. warnings: what weakens results on a
    dataset. tasks: only these. Raises UserError at the first evaluator that cannot go on; what was finished stays.
    """
    made, opened = Outcome(), {} if opened is None else opened
    for name, spec in plan.datasets.items():
        if name not in opened:
            opened[name] = spec.open(name)
        dataset = opened[name]
        warned = warnings(dataset) if warnings else []
        for evaluation in plan.evaluations:
            if (tasks is not None and evaluation.task not in tasks) or dataset.kind not in evaluation.takes:
                continue
            reason = evaluation.skipped(dataset)
            if reason:
                made.skipped.append((name, evaluation.task, reason))
                continue
            result, kept = _one(subject, dataset, evaluation, out, warned, say)
            made.results.append(result)
            made.kept += kept
    if not made.results and tasks is None:
        why = "; ".join(f"{task} on {name}: {reason}" for name, task, reason in made.skipped) or "no evaluator takes these datasets"
        raise UserError(f"nothing could be measured: {why}")
    return made


def _one(
    subject: Subject, dataset: Dataset, evaluation: Evaluation, out: Path, warned: list[str], say: Callable[[str], Any]
) -> tuple[Result, bool]:
    settings = {"version": evaluation.version, **asdict(evaluation)}  # type: ignore[call-overload]
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
        spec=dataset.spec,
        settings=_plain(settings),
    )
    found_here = environment()
    result.made = {"inputs": inputs(dataset, evaluation), "machine": found_here["machine"]}
    path = out / result.filename()
    known = _existing(path, result)
    if known is not None:
        known.warnings = result.warnings
        return known, True
    say(f"{subject.name}: {evaluation.task} on {dataset.name}")
    began = time.perf_counter()
    found = evaluation(subject, dataset)
    _fill(result, found)
    result.made |= {
        "seconds": round(time.perf_counter() - began, 3),
        "command": _command(),
        **{key: found_here[key] for key in ("commit", "packages", "date", "python")},
    }
    _save_items(out / ITEMS / f"{path.stem}.npz", found)
    write_result(result, out)
    return result, False


def _fill(result: Result, found: Found) -> None:
    bad = [name for name, value in found.metrics.items() if not np.isfinite(value)]
    if bad:
        raise UserError(f"{result.task} on {result.dataset} gave no finite number for {', '.join(bad)}: its input cannot be measured so")
    result.metrics, result.details, result.notes = found.metrics, found.details, list(found.notes)
    result.intervals = {name: interval(values, found.units.get(name)) for name, values in found.items.items() if len(values)}


def inputs(dataset: Dataset, evaluation: Evaluation) -> str:
    """A hash of what a dataset holds beside its pictures and captions or classes, and of the source that an evaluator learns from."""
    digest = blake2b(digest_size=16)
    parts: list[Any] = [dataset.descriptions, list(dataset.groups or ()), [o.source.fingerprint for o in dataset.outside]]
    if dataset.kind == "labelled":
        parts.append(list(dataset.labelled.templates))
    if dataset.queries is not None:
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
    """The result at `path` when it was made of the same weights, data and settings."""
    try:
        found = read_result(path)
    except UserError:
        return None
    same = all(
        getattr(found, name) == getattr(wanted, name) for name in ("model_hash", "data_hash", "settings", "prompts", "preprocessing")
    )
    same = same and bool(wanted.model_hash) and found.made.get("inputs") == wanted.made["inputs"] and "seconds" in found.made
    if wanted.task in MEASURED_HERE:
        same = same and found.made.get("machine") == wanted.made["machine"]
    return found if same else None


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


def _save_items(path: Path, found: Found) -> None:
    """float32 would do for hits, but not for differences of nDCG: fp64, compressed."""
    if not found.items:
        path.unlink(missing_ok=True)
        return
    arrays = {f"value:{name}": np.asarray(values, np.float64) for name, values in found.items.items()}
    arrays |= {f"unit:{name}": np.asarray(unit, np.int64) for name, unit in found.units.items() if name in found.items}

    def save(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)

    atomic_produce(path, save)


def read_items(out: Path, result: Result) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """(values [n], units [n] or None) by metric; empty where the file is absent or damaged."""
    path = out / ITEMS / f"{Path(result.filename()).stem}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except Exception:  # a damaged archive raises many kinds; without items there are no paired differences, that is all
        return {}
    return {
        name.removeprefix("value:"): (v, found.get(f"unit:{name.removeprefix('value:')}"))
        for name, v in found.items()
        if name.startswith("value:")
    }


def _command() -> str:
    """The command line, paths cut to their last part: results are shown to others."""
    parts = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return " ".join(Path(part).name if part.startswith("/") else part for part in parts)
