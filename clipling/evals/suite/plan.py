"""What a suite measures: datasets and evaluators, from a name or a YAML file."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from clipling.data.classes import is_labelled, open_labelled
from clipling.data.source import open_pairs
from clipling.errors import UserError, near
from clipling.evals.suite.catalogue import EVALUATIONS, SUITES, evaluation
from clipling.evals.suite.dataset import Dataset
from clipling.evals.suite.found import Evaluation

PAIRS_ONLY = ("image_column", "caption_column", "group", "queries")
LABELLED_ONLY = ("classes", "templates", "descriptions", "groups", "outside")
FILES = ("classes", "templates", "descriptions", "groups", "queries")


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """A dataset as a user describes it. Which fields fit depends on `task`; one that would be ignored is refused.

    data: the source. task: auto, retrieval or zeroshot. classes, templates, descriptions: files (see data/classes.py and
    suite/descriptions.py). groups: a CSV with the columns key and group. outside: sources whose pictures do not belong here.
    queries: own queries (suite/queries.py). image_column, caption_column, group: columns of pairs. language: "en" or another.
    """

    data: str
    task: str = "auto"
    classes: str | None = None
    templates: str | None = None
    descriptions: str | None = None
    groups: str | None = None
    outside: tuple[str, ...] = ()
    queries: str | None = None
    image_column: str | None = None
    caption_column: str | None = None
    group: str | None = None
    language: str = "en"

    def __post_init__(self) -> None:
        if self.task not in ("auto", "retrieval", "zeroshot"):
            raise UserError(f"task is {self.task!r}. {near(self.task, ('auto', 'retrieval', 'zeroshot'))}")

    def kind(self) -> str:
        """`pairs` or `labelled`; looks at the source where `task` is auto."""
        if self.task != "auto":
            return "pairs" if self.task == "retrieval" else "labelled"
        return "labelled" if self.classes or self.templates or self.descriptions or is_labelled(self.data) else "pairs"

    def open(self, name: str) -> Dataset:
        """Reads the source. Raises UserError for a setting that would be ignored and for whatever the readers refuse."""
        kind = self.kind()
        for key in PAIRS_ONLY if kind == "labelled" else LABELLED_ONLY:
            if getattr(self, key):
                raise UserError(
                    f"{name}: {key} would be ignored, for it is read as {'labelled pictures' if kind == 'labelled' else 'pairs'}. "
                    f"Leave it out, or say task: {'retrieval' if kind == 'labelled' else 'zeroshot'}."
                )
        if kind == "pairs":
            source = open_pairs(self.data, image_column=self.image_column, caption_column=self.caption_column, group=self.group)
            return Dataset(name, source, self.data, self.language, queries=Path(self.queries) if self.queries else None)
        return self._labelled(name)

    def _labelled(self, name: str) -> Dataset:
        from clipling.evals.suite.descriptions import read_descriptions

        source = open_labelled(self.data, classes=_path(self.classes), templates=_path(self.templates))
        groups = read_groups(Path(self.groups), source.keys) if self.groups else known_groups(self.data, source.keys)
        described = read_descriptions(Path(self.descriptions), source.classnames) if self.descriptions else None
        outside = tuple(_outside(spec) for spec in self.outside)
        return Dataset(name, source, self.data, self.language, descriptions=described, groups=groups, outside=outside)


def _path(given: str | None) -> Path | None:
    return Path(given) if given else None


def _outside(spec: str) -> Dataset:
    source = open_labelled(spec) if is_labelled(spec) else open_pairs(spec)
    return Dataset(short(spec), source, spec)


def known_groups(spec: str, keys: Sequence[str]) -> list[str] | None:
    """Groups that a source brings itself: the backgrounds of ToyWorld."""
    if not spec.strip().startswith("demo:toyworld"):
        return None
    from clipling.data.toyworld import groups_of

    return groups_of(spec, keys)


def read_groups(path: Path, keys: Sequence[str]) -> list[str]:
    """[P] the group of every key, "" for none, from a CSV with the columns `key` and `group`.

    Raises UserError for a file without these columns, for a key with two groups, and when no key is known.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not rows or not {"key", "group"} <= set(rows[0]):
        found = ", ".join(map(str, rows[0])) if rows else "nothing"
        raise UserError(f"{path} needs the columns key and group, a row a picture; it has {found}")
    named: dict[str, str] = {}
    for row in rows:
        key, group = (row["key"] or "").strip(), (row["group"] or "").strip()
        if named.setdefault(key, group) != group:
            raise UserError(f"{path} puts {key!r} into two groups, {named[key]!r} and {group!r}. Give one row a picture.")
    if not set(named) & set(keys):
        raise UserError(f"{path} names none of the pictures: its first key is {next(iter(named))!r}, the source's is {keys[0]!r}")
    return [named.get(key, "") for key in keys]


@dataclass(frozen=True)
class Plan:
    """Datasets by name (opened when their turn comes) and evaluators in their order."""

    datasets: Mapping[str, DatasetSpec]
    evaluations: tuple[Evaluation, ...]
    name: str = "quick"

    def __post_init__(self) -> None:
        if not self.datasets:
            raise UserError("a suite needs at least one dataset: give --data SRC, or describe datasets in a YAML file")


@dataclass(frozen=True, kw_only=True)
class PlanFile:
    """What a suite file holds."""

    suite: str | None = None
    tasks: tuple[str, ...] = ()
    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)


def named_plan(suite: str, datasets: Sequence[DatasetSpec]) -> Plan:
    """A suite of the catalogue on these datasets, which are named by their sources."""
    if suite not in SUITES:
        raise UserError(f"there is no suite {suite!r}. {near(suite, SUITES)} Or give a .yaml file.")
    return Plan(_by_name(datasets), tuple(evaluation(task) for task in SUITES[suite]), suite)


def _by_name(specs: Sequence[DatasetSpec]) -> dict[str, DatasetSpec]:
    found: dict[str, DatasetSpec] = {}
    for spec in specs:
        name = short(spec.data)
        if name in found:
            if found[name] == spec:
                raise UserError(f"{spec.data} is given twice")
            name = f"{name}-{len(found) + 1}"
        found[name] = spec
    return found


def short(spec: str) -> str:
    """A name for a source: the last part of its path, with the folder above where that says little."""
    if spec.startswith("demo:"):
        return spec.removeprefix("demo:").replace("?", "-").replace("&", "-").replace("=", "-")
    parts = [part for part in spec.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return parts[-1] if parts else spec


def read_plan(path: Path) -> Plan:
    """A plan from a YAML file; paths in it are relative to its folder.

        suite: full                      # or  tasks: [zeroshot_retrieval, geometry]
        datasets:
          photos: {data: photos/}
          cifar10: {data: cifar10/, outside: ["demo:emoji"], groups: backgrounds.csv}
        settings:
          corruptions: {sample: 128}

    Raises UserError naming the key that is unknown or wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must be a mapping with `datasets` and `suite` or `tasks`")
    made: PlanFile = _checked(PlanFile, content, str(path))
    if made.suite and made.tasks:
        raise UserError(f"{path}: give `suite` or `tasks`, not both")
    if made.suite and made.suite not in SUITES:
        raise UserError(f"{path}: there is no suite {made.suite!r}. {near(made.suite, SUITES)}")
    tasks = made.tasks or SUITES[made.suite or "quick"]
    for task in made.settings:
        if task not in tasks:
            known = near(task, tasks) if task not in EVALUATIONS else "It is not among the tasks of this file."
            raise UserError(f"{path}: settings are given for {task!r}, which does not run. {known}")
    specs = {}
    for name, given in made.datasets.items():
        specs[str(name)] = _located(_checked(DatasetSpec, given, f"{path}: datasets.{name}"), path.parent)
    return Plan(specs, tuple(evaluation(task, made.settings.get(task)) for task in tasks), made.suite or path.stem)


def _checked(kind: Any, content: Any, where: str) -> Any:
    from dataclasses import fields

    known = [f.name for f in fields(kind)]
    for key in content if isinstance(content, Mapping) else ():
        if key not in known:
            raise UserError(f"{where} has an unknown key {key!r}. {near(str(key), known)}")
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise UserError(f"{where}: {place} is {first.get('input')!r}: {first['msg']}") from error


def _located(spec: DatasetSpec, folder: Path) -> DatasetSpec:
    """The spec with paths that exist from the file's folder; demo sources and absolute paths stay."""

    def place(given: str) -> str:
        return given if given.startswith("demo:") or Path(given).is_absolute() else str(folder / given)

    changed: dict[str, Any] = {key: place(value) for key in FILES if (value := getattr(spec, key))}
    data = "::".join(place(part) for part in spec.data.split("::"))
    return replace(spec, data=data, outside=tuple(map(place, spec.outside)), **changed)
