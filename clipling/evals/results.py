"""Results as JSON that CLIP_benchmark's tools read, with what is needed to believe and repeat a number.

Metrics are fractions. Retrieval stands under our names (`i2t_recall@5`) and under CLIP_benchmark's
(`text_retrieval_recall@5`); `build` of CLIP_benchmark makes its table from a folder of these files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from clipling.errors import UserError
from clipling.store import read_json, write_json

RETRIEVAL = "zeroshot_retrieval"
CLASSIFICATION = "zeroshot_classification"
SUITE_TASKS = (
    RETRIEVAL, CLASSIFICATION, "linear_probe", "knn", "queries", "descriptions", "calibration", "corruptions", "outside",
    "prompt_sensitivity", "backgrounds", "attacks", "compositionality", "geometry", "cost",
)  # fmt: skip
TASKS = SUITE_TASKS


@dataclass(kw_only=True)
class Result:
    """One model on one dataset."""

    __pydantic_config__: ClassVar[dict[str, bool]] = {"allow_inf_nan": False}

    dataset: str
    model: str
    task: str
    metrics: dict[str, float]
    pretrained: str = ""
    language: str = "en"
    prompts: list[str] = field(default_factory=list)
    """Templates of a zero-shot classification."""
    preprocessing: dict[str, Any] = field(default_factory=dict)
    data_hash: str = ""
    """Fingerprint of the pairs, or of the labelled pictures."""
    model_hash: str = ""
    """SHA-256 of weights, config and tokenizer (subjects.model_hash); of a result without a suite, of the weights file."""
    budget: dict[str, float] = field(default_factory=dict)
    """samples_seen, seconds, parameters: what the model cost."""
    size: dict[str, int] = field(default_factory=dict)
    """pairs and captions, or images and classes."""
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """95 % bootstrap intervals over pairs, by metric."""
    warnings: list[str] = field(default_factory=list)
    """What makes the numbers worth less, such as pictures that the model was trained on."""
    spec: str = ""
    """The source, its path cut to the last part: results are shown to others."""
    family: str = ""
    """What datasets share that are one in several languages."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the evaluator, with its version."""
    details: dict[str, Any] = field(default_factory=dict)
    """Curves, tables and rows for a report."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know to read the numbers."""
    made: dict[str, Any] = field(default_factory=dict)
    """How to make the number again: command, date, packages, machine, seconds."""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task is {self.task!r}; expected one of {', '.join(TASKS)}")

    def filename(self) -> str:
        """CLIP_benchmark's `{dataset}_{pretrained}_{model}_{language}_{task}.json`, safe as a file name of at most 240 bytes."""
        parts = ((self.dataset, 80), (self.pretrained, 40), (self.model, 60), (self.language, 16))
        return "_".join([*(safe(name, most) for name, most in parts), self.task]) + ".json"

    def content(self) -> dict[str, Any]:
        """What the file holds."""
        own = {name: value for name, value in vars(self).items() if name != "metrics"}
        return {**own, "metrics": {**self.metrics, **benchmark_names(self.metrics)}}


def benchmark_names(metrics: Mapping[str, float]) -> dict[str, float]:
    """The same values under CLIP_benchmark's names: what is retrieved comes first (i2t retrieves text)."""
    theirs = {"i2t_recall@": "text_retrieval_recall@", "t2i_recall@": "image_retrieval_recall@"}
    return {name.replace(ours, other): value for name, value in metrics.items() for ours, other in theirs.items() if name.startswith(ours)}


def write_result(result: Result, folder: Path) -> Path:
    """Writes the result under its own name in `folder`, atomically, and returns the path."""
    path = Path(folder) / result.filename()
    write_json(path, result.content())
    return path


def read_result(path: Path) -> Result:
    """Reads a result, ours or CLIP_benchmark's (whose metrics get our names too). Raises UserError for anything else."""
    content = read_json(path)
    needed = ("dataset", "model", "task", "metrics")
    missing = [key for key in needed if not isinstance(content, dict) or key not in content]
    if missing:
        raise UserError(f"{path} is not a result file: {', '.join(missing)} is missing. Expected what `clipling eval` writes.")
    if content["task"] not in TASKS:
        raise UserError(f"{path}: task is {content['task']!r}; clipling reads {', '.join(TASKS)}")
    known = {name: content[name] for name in Result.__dataclass_fields__ if content.get(name) is not None}
    if isinstance(known.get("metrics"), dict):
        known["metrics"] = _our_names(known["metrics"])
    return _shaped(known, path)


def _shaped(known: Mapping[str, Any], path: Path) -> Result:
    """A result whose parts are of the kinds that they must be. Raises UserError naming the part that is not."""
    from pydantic import TypeAdapter, ValidationError

    from clipling.evals.checked import mistake

    try:
        return TypeAdapter(Result).validate_python(known)
    except ValidationError as error:
        raise UserError(f"{path} is damaged: {mistake(Result, error)}. Make it again with `clipling eval`.") from error


def read_results(folder: Path) -> list[Result]:
    """All results of a folder in the order of their names; none when there is no such folder."""
    return [read_result(path) for path in sorted(Path(folder).glob("*.json"))]


def _our_names(metrics: Mapping[str, Any]) -> dict[str, float]:
    ours = {"text_retrieval_recall@": "i2t_recall@", "image_retrieval_recall@": "t2i_recall@"}
    found = {}
    for name, value in metrics.items():
        if not isinstance(value, int | float):  # CLIP_benchmark writes null for what it could not compute
            continue
        for theirs, other in ours.items():
            name = name.replace(theirs, other) if name.startswith(theirs) else name
        found[name] = float(value)
    return found


def weights_hash(model_folder: Path) -> str:
    """SHA-256 of `open_clip_model.safetensors` in a model folder; empty when there is none."""
    path = Path(model_folder) / "open_clip_model.safetensors"
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def safe(name: str, most: int = 80) -> str:
    """A name as part of a file name: letters, digits, `-`, `.` and `@`; one of more than `most` bytes is cut, with a hash of all of it."""
    made = "".join(c if c.isalnum() or c in "-.@" else "-" for c in name).strip(".-")
    data = made.encode()
    if len(data) <= most:
        return made
    tail = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{data[: most - 9].decode(errors='ignore')}-{tail}"
