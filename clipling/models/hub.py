"""New, opened and saved students."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from clipling.errors import UserError, near
from clipling.models.build import find_text_folder
from clipling.models.dual import Student
from clipling.store import atomic_produce, atomic_write, read_json, write_json

ZOO = Path(__file__).parent / "zoo"
CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"


def zoo_names() -> list[str]:
    """The names of the untrained students that come with clipling."""
    return sorted(path.stem for path in ZOO.glob("*.json"))


def zoo_config(name: str) -> dict[str, Any]:
    """The config of one zoo student."""
    if name not in zoo_names():
        raise UserError(f"no student is called {name!r}. {near(name, zoo_names())}")
    return json.loads((ZOO / f"{name}.json").read_text(encoding="utf-8"))


def new_student(
    config: str | Path | dict[str, Any],
    *,
    seed: int = 0,
    init: dict[str, str] | None = None,
    vocabulary: Sequence[str] | None = None,
) -> Student:
    """An untrained student of a zoo name, a config file or a config, the same for the same `seed`."""
    if isinstance(config, str) and not config.endswith(".json"):
        config = zoo_config(config)
    elif not isinstance(config, dict):
        config = read_json(config)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        student = Student(config, find_text_folder(config))
    return student


def save_student(student: Student, folder: Path | str, card: str | None = None) -> None:
    """Writes the student in open_clip's layout."""
    folder = Path(folder)
    state = {name: value.detach().cpu().contiguous() for name, value in student.model.state_dict().items()}
    atomic_produce(folder / WEIGHTS, lambda path: save_file(state, path))
    write_json(folder / CONFIG, student.config)
    if card is not None:
        atomic_write(folder / "README.md", card)


def open_student(spec: str | Path) -> Student:
    """A trained student."""
    folder = Path(str(spec).removeprefix("local-dir:"))
    if (folder / "model" / CONFIG).is_file():
        folder = folder / "model"
    config = read_json(folder / CONFIG)
    student = Student(config, find_text_folder(config, folder))
    student.model.load_state_dict(load_file(folder / WEIGHTS))
    return student.eval()
