"""A suite file: datasets, evaluators and their settings in YAML, with every mistake named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from clipling.errors import UserError, near
from clipling.evals.checked import mistake
from clipling.evals.suite.catalogue import EVALUATIONS, SUITES, evaluation
from clipling.evals.suite.plan import DatasetSpec, Plan

FILES = ("classes", "templates", "descriptions", "groups", "queries")
SOURCES = ("train", "train_classes")
"""Settings of evaluators that are paths."""


@dataclass(frozen=True, kw_only=True)
class PlanFile:
    """What a suite file holds."""

    suite: str | None = None
    tasks: tuple[str, ...] = ()
    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)


def read_plan(path: Path) -> Plan:
    """A plan from a YAML file; paths in it are relative to its folder.

        suite: full                      # or  tasks: [zeroshot_retrieval, geometry]
        datasets:
          photos: {data: photos/}
          shop: {data: shop.jsonl, languages: {en: caption, de: lang.de}}
          cifar10: {data: cifar10/, outside: ["demo:emoji"], groups: backgrounds.csv}
        settings:
          corruptions: {sample: 128}

    Raises UserError naming the key that is unknown, wrong or there twice.
    """
    made: PlanFile = _checked(PlanFile, _content(path), str(path))
    if made.suite and made.tasks:
        raise UserError(f"{path}: give `suite` or `tasks`, not both")
    if made.suite and made.suite not in SUITES:
        raise UserError(f"{path}: there is no suite {made.suite!r}. {near(made.suite, SUITES)}")
    tasks = made.tasks or SUITES[made.suite or "quick"]
    for task in made.settings:
        if task not in tasks:
            known = near(task, tasks) if task not in EVALUATIONS else "It is not among the tasks of this file."
            raise UserError(f"{path}: settings are given for {task!r}, which does not run. {known}")
    specs: dict[str, DatasetSpec] = {}
    for name, given in made.datasets.items():
        spec = located(_checked(DatasetSpec, given, f"{path}: datasets.{name}"), path.parent)
        for each, single in spec.in_languages(name).items():
            if each in specs:
                raise UserError(
                    f"{path}: the dataset {each!r} is there twice, once as a language of {single.family or specs[each].family!r}"
                )
            specs[each] = single
    return Plan(specs, tuple(evaluation(task, _settings(made.settings.get(task), path.parent)) for task in tasks), made.suite or path.stem)


def _content(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Once)
    except OSError as error:
        raise UserError(
            f"the suite {path} cannot be read: {error.strerror or error}. Give quick, full, reliability or a YAML file"
        ) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must be a mapping with `datasets` and `suite` or `tasks`")
    for part in ("datasets", "settings"):
        for name in content[part] if isinstance(content.get(part), dict) else ():
            if not isinstance(name, str):
                raise UserError(f"{path}: {part}: the name {name!r} is no text for YAML. Put it in quotes.")
    tasks = content.get("tasks")
    for number, task in enumerate(tasks if isinstance(tasks, list) else ()):
        if task in tasks[:number]:
            raise UserError(f"{path}: tasks names {task!r} twice. Name it once.")
    return content


class _Once(yaml.SafeLoader):
    """YAML without a key twice in one mapping: the later one would win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.MarkedYAMLError(None, None, f"the key {key.value!r} is there twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _checked(kind: Any, content: Any, where: str) -> Any:
    known = [f.name for f in fields(kind)]
    for key in content if isinstance(content, Mapping) else ():
        if key not in known:
            raise UserError(f"{where} has an unknown key {key!r}. {near(str(key), known)}")
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        raise UserError(f"{where}: {mistake(kind, error)}") from error
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def located(spec: DatasetSpec, folder: Path) -> DatasetSpec:
    """The spec with paths that start in the folder; demo sources and absolute paths stay."""
    changed: dict[str, Any] = {key: _placed(value, folder) for key in FILES if (value := getattr(spec, key))}
    return replace(spec, data=_placed(spec.data, folder), outside=tuple(_placed(each, folder) for each in spec.outside), **changed)


def _settings(given: Mapping[str, Any] | None, folder: Path) -> dict[str, Any]:
    return {key: _placed(value, folder) if key in SOURCES and isinstance(value, str) else value for key, value in (given or {}).items()}


def _placed(given: str, folder: Path) -> str:
    parts = given.split("::")
    return "::".join(part if part.startswith(("demo:", "~")) or Path(part).is_absolute() else str(folder / part) for part in parts)
