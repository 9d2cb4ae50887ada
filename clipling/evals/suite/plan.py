"""What a suite measures: datasets and evaluators by name. Suite files are read by plan_file.py."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from clipling.data.classes import is_labelled, open_labelled
from clipling.data.source import open_pairs
from clipling.errors import UserError, near
from clipling.evals.results import safe
from clipling.evals.suite.catalogue import SUITES, evaluation
from clipling.evals.suite.dataset import Dataset
from clipling.evals.suite.found import Evaluation

PAIRS_ONLY = ("image_column", "caption_column", "group", "queries")
LABELLED_ONLY = ("classes", "templates", "descriptions", "groups", "outside")


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """A dataset as a user describes it. Which fields fit depends on `task`; one that would be ignored is refused.

    data: the source. task: auto, retrieval or zeroshot. classes, templates, descriptions: files (see data/classes.py and
    suite/descriptions.py). groups: a CSV with the columns key and group. outside: sources whose pictures do not belong here.
    queries: own queries (suite/queries.py). image_column, caption_column, group: columns of pairs. language: "en" or another.
    languages: the caption column of every language; it stands for one dataset each (`in_languages`), of one family. family: what
    datasets share that are one in several languages; the page shows them side by side.
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
    languages: Mapping[str, str] = field(default_factory=dict)
    family: str = ""

    def __post_init__(self) -> None:
        if self.task not in ("auto", "retrieval", "zeroshot"):
            raise UserError(f"task is {self.task!r}. {near(self.task, ('auto', 'retrieval', 'zeroshot'))}")
        ignored = {"caption_column": self.caption_column, "queries": self.queries, "family": self.family, "language": self.language != "en"}
        given = [name for name, value in ignored.items() if value]
        if self.languages and given:
            raise UserError(
                f"{' and '.join(given)} would be ignored beside languages, which names a caption column for each. Leave it out, or "
                "describe a dataset of its own for it."
            )

    def in_languages(self, name: str) -> dict[str, DatasetSpec]:
        """One dataset for each of `languages`, called `name [de]`; itself, where none is named."""
        if not self.languages:
            return {name: self}
        return {
            f"{name} [{language}]": replace(self, languages={}, caption_column=column, language=language, family=name)
            for language, column in self.languages.items()
        }

    def kind(self) -> str:
        """`pairs` or `labelled`; looks at the source where `task` is auto."""
        if self.task != "auto":
            return "pairs" if self.task == "retrieval" else "labelled"
        return "labelled" if self.classes or self.templates or self.descriptions or is_labelled(self.data) else "pairs"

    def open(self, name: str) -> Dataset:
        """Reads the source. Raises UserError for a setting that would be ignored and for whatever the readers refuse."""
        if self.languages:
            raise ValueError(f"{name} is one dataset a language: open those of in_languages")
        kind = self.kind()
        for key in PAIRS_ONLY if kind == "labelled" else LABELLED_ONLY:
            if getattr(self, key):
                raise UserError(
                    f"{name}: {key} would be ignored, for it is read as {'labelled pictures' if kind == 'labelled' else 'pairs'}. "
                    f"Leave it out, or say task: {'retrieval' if kind == 'labelled' else 'zeroshot'}."
                )
        if kind == "pairs":
            source = open_pairs(self.data, image_column=self.image_column, caption_column=self.caption_column, group=self.group)
            queries = Path(self.queries) if self.queries else None
            return Dataset(name, source, self.data, self.language, queries=queries, family=self.family)
        return self._labelled(name)

    def _labelled(self, name: str) -> Dataset:
        from clipling.evals.suite.descriptions import read_descriptions

        source = open_labelled(self.data, classes=_path(self.classes), templates=_path(self.templates))
        groups = read_groups(Path(self.groups), source.keys) if self.groups else known_groups(self.data, source.keys)
        described = read_descriptions(Path(self.descriptions), source.classnames) if self.descriptions else None
        outside = tuple(_outside(spec) for spec in self.outside)
        return Dataset(name, source, self.data, self.language, descriptions=described, groups=groups, outside=outside, family=self.family)


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
        files: dict[str, str] = {}
        for name in self.datasets:
            other = files.setdefault(safe(name).casefold(), name)  # some file systems do not tell A from a
            if other != name:
                raise UserError(f"the datasets {other!r} and {name!r} would write the same files: give one of them another name")


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
    return {each: single for name, spec in found.items() for each, single in spec.in_languages(name).items()}


def short(spec: str) -> str:
    """A name for a source: the last part of its path, with the folder above where that says little."""
    if spec.startswith("demo:"):
        return spec.removeprefix("demo:").replace("?", "-").replace("&", "-").replace("=", "-")
    parts = [part for part in spec.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return parts[-1] if parts else spec
