"""Where datasets lie on this machine: remembered beside the caches, so that neither results nor pages hold a path."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from clipling.data.classes import LabelledImages
from clipling.data.pairs import Pairs
from clipling.errors import UserError
from clipling.evals.results import Result
from clipling.evals.suite.dataset import Dataset
from clipling.evals.suite.plan import DatasetSpec
from clipling.evals.suite.plan_file import located
from clipling.store import cache_dir, read_json, write_json


def remember(dataset: Dataset, spec: DatasetSpec) -> None:
    """Keeps where a dataset lies, and how it is read, by its fingerprint."""
    write_json(_path(dataset.source.fingerprint), asdict(located(spec, Path.cwd())))


def reopened(result: Result) -> Pairs | LabelledImages | None:
    """The source that a result was made on, as it was described then; None where this machine does not remember it."""
    try:
        content: dict[str, Any] = read_json(_path(result.data_hash))
        spec = DatasetSpec(**{**content, "outside": (), "descriptions": None, "groups": None, "queries": None})
    except (UserError, TypeError):
        return None
    return spec.open(result.dataset).source


def _path(fingerprint: str) -> Path:
    return cache_dir() / "sources" / f"{fingerprint}.json"
