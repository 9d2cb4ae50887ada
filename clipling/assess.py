"""One model on one dataset: opens both, measures, writes the result."""

from __future__ import annotations

import os
from dataclasses import astuple
from pathlib import Path
from typing import Any

from clipling.data import index
from clipling.data.classes import LabelledImages, is_labelled, open_labelled
from clipling.data.pairs import Pairs
from clipling.data.reading import Options
from clipling.data.source import open_pairs, resolve
from clipling.engine.runtime import Runtime
from clipling.errors import UserError
from clipling.evals.evaluators import Retrieval
from clipling.evals.identity import model_hash
from clipling.evals.public import public
from clipling.evals.results import CLASSIFICATION, RETRIEVAL, Result, weights_hash, write_result
from clipling.evals.suite.dataset import Dataset
from clipling.evals.suite.subject import Subject
from clipling.evals.zeroshot import zero_shot
from clipling.models.dual import Student
from clipling.models.hub import open_student
from clipling.store import read_json, write_json

BATCH = 256


def assess(
    model: str,
    data: str,
    task: str = "auto",
    *,
    classes: Path | None = None,
    templates: Path | None = None,
    columns: dict[str, str | None] | None = None,
    out: Path | None = None,
    runtime: Runtime | None = None,
) -> dict[str, Any]:
    """Recall both ways on pairs, or zero-shot accuracy on labelled pictures. `out`: a .json file or a folder.

    runtime: of several processes, which share the features by the cache; the first one writes `out`.
    Returns what CLIP_benchmark's result file holds, and more (see clipling.evals.results).
    """
    if task == "auto":
        task = "zeroshot" if classes or templates or is_labelled(data) else "retrieval"
    given = [f"--{name.replace('_', '-')}" for name, value in (columns or {}).items() if value is not None]
    if task == "zeroshot" and given:
        raise UserError(
            f"{' and '.join(given)} would be ignored: zero-shot reads classes, not columns. Leave it out, or add --task retrieval."
        )
    runtime = runtime or Runtime()
    with runtime.first_before_others():
        source = open_labelled(data, classes=classes, templates=templates) if task == "zeroshot" else open_pairs(data, **(columns or {}))
    student = open_student(model)
    weights = weights_hash(model_folder(model))
    subject = Subject(student, model, model_hash=model_hash(student, weights), batch=BATCH, runtime=runtime)
    result = _zero_shot(subject, source) if isinstance(source, LabelledImages) else _retrieval(subject, source)
    result.model, result.pretrained = describe(model)
    result.model_hash = weights
    result.preprocessing = dict(student.preprocess_cfg)
    result.budget = budget(model, student)
    result.warnings = seen_in_training(model, source)
    if out is not None and runtime.first:
        write_json(out, result.content()) if out.suffix == ".json" else write_result(result, out)
    return result.content()


def _retrieval(subject: Subject, pairs: Pairs) -> Result:
    evaluator = Retrieval(pairs)
    found = evaluator.measure(subject.images(Dataset(pairs.name, pairs)), subject.texts(pairs.captions))
    metrics = found.recall(evaluator.ks)
    intervals = {name: tuple(pair) for name, pair in found.intervals(evaluator.ks).items()}
    size = {"pairs": len(pairs), "captions": len(pairs.captions), "bad_rows": len(pairs.problems)}
    return Result(
        dataset=public(pairs.name), model="", task=RETRIEVAL, metrics=metrics, intervals=intervals, size=size, data_hash=pairs.fingerprint
    )


def _zero_shot(subject: Subject, labelled: LabelledImages) -> Result:
    dataset = Dataset(labelled.name, labelled)
    metrics = zero_shot(subject.images(dataset), labelled.labels, subject.classes(dataset))
    size = {"images": len(labelled), "classes": len(labelled.classnames), "bad_rows": len(labelled.problems)}
    return Result(
        dataset=public(labelled.name),
        model="",
        task=CLASSIFICATION,
        metrics=metrics,
        prompts=list(labelled.templates),
        size=size,
        data_hash=labelled.fingerprint,
    )


def seen_in_training(model: str, source: Pairs | LabelledImages) -> list[str]:
    """A warning when pictures of `source` were trained on by the run `model`; none where its training source cannot be had."""
    recipe = Path(model.removeprefix("local-dir:")) / "recipe.yaml"
    if not recipe.is_file():
        return []
    try:
        from clipling.recipe import from_yaml
        from clipling.run import open_data

        data = from_yaml(recipe).data
        options = Options(data.image_column, data.caption_column, data.group, data.separator)
        if not all(_indexed(spec, options) for spec in (data.source, data.val) if spec):
            return []
        trained = set(open_data(data).train.hashes) - {""}
        if not source.hashes:
            _ = source.fingerprint  # labelled pictures are hashed when first asked for
        count = sum(found in trained for found in source.hashes)
    except Exception:  # whatever is wrong with the old source, the measurement stands
        return []
    if not count:
        return []
    return [f"{count} of the {len(source)} pictures here were trained on by this model: the numbers say nothing about new pictures."]


def _indexed(spec: str, options: Options) -> bool:
    """Whether a source can be opened without looking at every picture again: the index that open_pairs keeps is there."""
    if spec.startswith("demo:"):
        return True
    parts = [resolve(part.strip()) for part in spec.split("::")]
    return index.load(index.index_path([(kind, *map(str, paths)) for kind, paths in parts], astuple(options), os.getcwd())) is not None


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
    stages = (
        [read_json(path) for path in sorted(Path(model).glob("stage-*/summary.json"))] if (Path(model) / "compress.json").is_file() else []
    )
    summary = Path(model) / "summary.json"
    for content in [read_json(summary)] if summary.is_file() else stages:  # a compression's stages add up
        for key in ("samples_seen", "seconds"):
            made[key] = made.get(key, 0) + content[key]
    return made
