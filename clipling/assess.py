"""One model on one dataset: opens both, measures, writes the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clipling.data.classes import LabelledImages, is_labelled, open_labelled
from clipling.data.pairs import Pairs
from clipling.data.source import open_pairs
from clipling.evals.evaluators import Retrieval, ZeroShot
from clipling.evals.results import CLASSIFICATION, RETRIEVAL, Result, weights_hash, write_result
from clipling.models.dual import Student
from clipling.models.hub import open_student
from clipling.store import read_json, write_json


def assess(
    model: str,
    data: str,
    task: str = "auto",
    *,
    classes: Path | None = None,
    templates: Path | None = None,
    columns: dict[str, str | None] | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Recall both ways on pairs, or zero-shot accuracy on labelled pictures. `out`: a .json file or a folder.

    Returns what CLIP_benchmark's result file holds, and more (see clipling.evals.results).
    """
    if task == "auto":
        task = "zeroshot" if classes or templates or is_labelled(data) else "retrieval"
    source = open_labelled(data, classes=classes, templates=templates) if task == "zeroshot" else open_pairs(data, **(columns or {}))
    student = open_student(model)
    result = _zero_shot(student, source) if isinstance(source, LabelledImages) else _retrieval(student, source)
    result.model, result.pretrained = describe(model)
    result.model_hash = weights_hash(model_folder(model))
    result.preprocessing = dict(student.preprocess_cfg)
    result.budget = budget(model, student)
    if out is not None and out.suffix == ".json":
        write_json(out, result.content())
    elif out is not None:
        write_result(result, out)
    return result.content()


def _retrieval(student: Student, pairs: Pairs) -> Result:
    evaluator = Retrieval(pairs)
    found = evaluator.measure(*evaluator.features(student))
    metrics = found.recall(evaluator.ks)
    intervals = {name: tuple(pair) for name, pair in found.intervals(evaluator.ks).items()}
    size = {"pairs": len(pairs), "captions": len(pairs.captions), "bad_rows": len(pairs.problems)}
    return Result(
        dataset=pairs.name, model="", task=RETRIEVAL, metrics=metrics, intervals=intervals, size=size, data_hash=pairs.fingerprint
    )


def _zero_shot(student: Student, labelled: LabelledImages) -> Result:
    evaluator = ZeroShot(labelled)
    metrics = dict(evaluator(student))
    size = {"images": len(labelled), "classes": len(labelled.classnames), "bad_rows": len(labelled.problems)}
    return Result(
        dataset=labelled.name,
        model="",
        task=CLASSIFICATION,
        metrics=metrics,
        prompts=evaluator.templates,
        size=size,
        data_hash=labelled.fingerprint,
    )


def model_folder(model: str) -> Path:
    folder = Path(model.removeprefix("local-dir:"))
    return folder / "model" if (folder / "model").is_dir() else folder


def describe(model: str) -> tuple[str, str]:
    """(name, pretrained) for the result: the recipe of a run, an open_clip name and tag, or a folder's name."""
    summary = Path(model) / "summary.json"
    if summary.is_file():
        content = read_json(summary)
        return str(content["name"]), f"seed{content['seed']}"
    name, _, tag = model.removeprefix("local-dir:").partition("@")
    return Path(name).name, tag


def budget(model: str, student: Student) -> dict[str, float]:
    sizes = student.sizes()
    made: dict[str, float] = {"parameters": sizes["total"], "parameters_without_token_rows": sizes["total_without_token_rows"]}
    summary = Path(model) / "summary.json"
    if summary.is_file():
        content = read_json(summary)
        made |= {"samples_seen": content["samples_seen"], "seconds": content["seconds"]}
    return made
