"""Run folders, read: what a training left behind, and runs of one name gathered over seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from clipling.errors import UserError
from clipling.evals.results import Result, read_results
from clipling.store import read_json

Kind = Literal["plain", "guided", "control", "other"]


@dataclass
class Run:
    """One run folder. Fractions, seconds and counts as the training wrote them."""

    folder: Path
    summary: dict[str, Any]
    recipe: dict[str, Any]
    environment: dict[str, Any]
    train: list[dict[str, Any]]  # metrics.jsonl, kind "train", by step
    val: list[dict[str, Any]]  # metrics.jsonl, kind "val", by step
    guides: dict[str, Any]  # guides.json, empty without
    results: list[Result]  # eval/*.json

    @property
    def name(self) -> str:
        return str(self.summary["name"])

    @property
    def seed(self) -> int:
        return int(self.summary["seed"])

    @property
    def model(self) -> Path | None:
        """The folder of the trained student, None when it was not kept."""
        folder = self.folder / "model"
        return folder if any((folder / name).is_file() for name in ("open_clip_config.json", "clipling_config.json")) else None

    @property
    def kind(self) -> Kind:
        """By the resolved recipe: plain (no guide, from scratch), guided, control (random neighbours), other."""
        guide = self.recipe.get("guide")
        if guide:
            return "control" if guide.get("control", "none") != "none" else "guided"
        student = self.recipe.get("student") or {}
        frozen = any(stage.get("freeze") for stage in self.recipe.get("stages") or [])
        borrowed = student.get("init") or student.get("inherit") or self.recipe.get("teachers")
        return "other" if borrowed or frozen else "plain"


def read_run(folder: Path | str) -> Run:
    """Reads a run folder. Raises UserError when it is none, or when the training has not finished."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Give the run folders that `clipling train --out RUN` made.")
    if not (folder / "summary.json").is_file():
        if (folder / "compress.json").is_file():
            return read_run(_last_stage(folder))
        if (folder / "recipe.yaml").is_file():
            raise UserError(f"the run {folder} has not finished (no summary.json). Continue it with --resume, then compare.")
        raise UserError(f"{folder} is not a run folder: it has no summary.json and no recipe.yaml")
    summary = read_json(folder / "summary.json")
    needed = ("name", "seed", "samples_seen", "seconds", "val", "parameters")
    missing = [key for key in needed if key not in summary]
    if missing:
        raise UserError(f"{folder / 'summary.json'} lacks {', '.join(missing)}; was it written by another version?")
    events = read_events(folder / "metrics.jsonl")
    return Run(
        folder=folder,
        summary=summary,
        recipe=_yaml(folder / "recipe.yaml"),
        environment=_json_or_empty(folder / "environment.json"),
        train=[e for e in events if e["kind"] == "train"],
        val=[e for e in events if e["kind"] == "val"],
        guides=_json_or_empty(folder / "guides.json"),
        results=read_results(folder / "eval"),
    )


def _last_stage(folder: Path) -> Path:
    """The run of the last stage of a compression. Raises UserError while it has not finished."""
    stages = {int(path.name[6:]): path for path in folder.glob("stage-*") if path.name[6:].isdigit()}
    if not (folder / "table.json").is_file() or not stages:
        raise UserError(f"the compression {folder} has not finished (no table.json). Continue it with --resume, then compare.")
    return stages[max(stages)]


def read_events(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file by step; of two lines for one step the later holds. A line cut by a kill is left out."""
    if not path.is_file():
        return []
    events: dict[tuple[str, int], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
            events[str(event["kind"]), int(event["step"])] = event
        except (json.JSONDecodeError, KeyError, TypeError, ValueError):
            continue
    return sorted(events.values(), key=lambda e: int(e["step"]))


def _yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from error
    return content if isinstance(content, dict) else {}


def _json_or_empty(path: Path) -> dict[str, Any]:
    content = read_json(path) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


@dataclass
class Arm:
    """The runs of one recipe over seeds: one row of the table."""

    label: str
    runs: list[Run] = field(default_factory=list)  # by seed
    colour: int = 0  # of the report's palette; 0 is the quiet one of the baseline

    @property
    def kind(self) -> Kind:
        return self.runs[0].kind

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]


def arms(runs: Sequence[Run]) -> list[Arm]:
    """Runs whose recipes are equal apart from the seed become one arm; the order is that of first appearance.

    An arm has the name of its recipe. Where runs of one name differ in anything else, arms are named by folders.
    """
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(run.name, []).append(run)
    found: list[Arm] = []
    for name, same in by_name.items():
        alike = _alike(same)
        labels = [name] if len(alike) == 1 else _labels(alike)
        found += [Arm(label, sorted(group, key=lambda r: r.seed)) for label, group in zip(labels, alike)]
    return found


def _alike(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that only their seeds tell apart, together. A seed that comes twice was not the only difference: each run alone."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        settings = {key: value for key, value in run.recipe.items() if key != "seed"}
        # The same recipe on a source that has changed meanwhile is another budget.
        budget = [run.summary["samples_seen"], run.summary.get("train_pairs")]
        groups.setdefault(json.dumps([settings, budget], sort_keys=True, default=str), []).append(run)
    found: list[list[Run]] = []
    for group in groups.values():
        twice = len({run.seed for run in group}) < len(group)
        found += [[run] for run in group] if twice else [group]
    return found


def _labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Folder names with as many parents as it takes to tell them apart; of several seeds, that of the folder that holds them."""
    paths = [[run.folder.resolve() for run in group] for group in groups]
    every = [path for group in paths for path in group]
    if len(set(every)) < len(every):
        raise UserError(f"the run {next(p for p in every if every.count(p) > 1).name} is given more than once")
    parts, more = [], []
    for group in paths:
        parents = {path.parent for path in group}
        holds_only_these = len(group) > 1 and len(parents) == 1 and sum(p.parent in parents for p in every) == len(group)
        parts.append(group[0].parent.parts if holds_only_these else group[0].parts)
        more.append("" if holds_only_these or len(group) == 1 else f" and {len(group) - 1} more")
    depth = next(d for d in range(1, max(map(len, parts)) + 1) if len({p[-d:] for p in parts}) == len(parts))
    return ["/".join(p[-depth:]) + rest for p, rest in zip(parts, more)]


def baseline_of(found: Sequence[Arm], wanted: str | None = None) -> Arm | None:
    """The arm that the others are measured against: the one named, or plain CLIP; None when there is none.

    Among several plain arms the one called `clip` is taken, otherwise the first.
    """
    if wanted is not None:
        for arm in found:
            if arm.label == wanted:
                return arm
        raise UserError(f"no run is called {wanted!r}; the runs are {', '.join(a.label for a in found)}")
    plain = [arm for arm in found if arm.kind == "plain"]
    return next((arm for arm in plain if arm.label == "clip"), plain[0] if plain else None)
