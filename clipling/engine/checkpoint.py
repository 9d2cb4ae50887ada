"""Checkpoints: whole or absent, two kept, and enough in each that the run goes on bit for bit.

There is no random state to save: every random choice is a function of (seed, epoch, pair) or of (seed, step).
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch

from clipling.errors import UserError
from clipling.store import atomic_produce

_NAME = re.compile(r"step-(\d{9})\.pt$")


def save(folder: Path, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Writes `step-<step>.pt` and removes all but the newest `keep`."""
    path = folder / f"step-{step:09d}.pt"
    atomic_produce(path, lambda temporary: torch.save(state, temporary))
    for old in list_steps(folder)[:-keep]:
        (folder / f"step-{old:09d}.pt").unlink(missing_ok=True)
    return path


def list_steps(folder: Path) -> list[int]:
    """Steps with a checkpoint, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(int(m.group(1)) for p in folder.iterdir() if (m := _NAME.match(p.name)))


def load_newest(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that opens, or None when there is none. Raises UserError when there are some and none opens."""
    steps = list_steps(folder)
    for step in reversed(steps):
        try:
            return torch.load(folder / f"step-{step:09d}.pt", map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError):
            continue
    if steps:
        raise UserError(f"no checkpoint in {folder} can be read. Start again with --overwrite.")
    return None
