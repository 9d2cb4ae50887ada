"""What a pack remembers of a remote file whose shards are all made: it need not be copied again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clipling.data.packed import ShardIndex, read_index
from clipling.data.problems import Problem
from clipling.store import atomic_write, write_json

COPIED = ".copied.json"


class Copied:
    """The note at `path` about one remote file. state: what tells one version of it from another (`Fetch.state`)."""

    def __init__(self, path: Path, state: dict[str, Any]) -> None:
        self.path, self.state = path, state
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            self.found = found if found["state"] == state and state["size"] else None
        except (OSError, ValueError, KeyError, TypeError):
            self.found = None

    def made(self, out: Path, name: Callable[[int], str], retry: bool) -> list[ShardIndex] | None:
        """The shards that were made of this version of the file; None when one is missing or, with `retry`, lacks a picture."""
        if self.found is None:
            return None
        found = [read_index(out / name(number)) for number in range(self.found["shards"])]
        whole = [index for index in found if index is not None and not (retry and index.failures)]
        return whole if len(whole) == len(found) else None

    def problems(self) -> list[Problem]:
        """The rows that its reader left out."""
        return [Problem(*row) for row in self.found["problems"]] if self.found else []

    def write(self, shards: int, problems: Sequence[Problem]) -> None:
        """Notes that the file's `shards` are made. Raises UserError when the disk is full."""
        if self.state["size"]:
            write_json(self.path, {"state": self.state, "shards": shards, "problems": [list(row) for row in problems]})

    def expect(self, path: Path) -> None:
        """Before the file is copied to `path`: what lies there of another version, after a kill, is removed."""
        said = json.dumps(self.state)
        about = _about(path)
        if not (about.is_file() and about.read_text(encoding="utf-8") == said):
            path.unlink(missing_ok=True)
            atomic_write(about, said)

    def forget(self, path: Path) -> None:
        """Removes the copy."""
        path.unlink(missing_ok=True)
        _about(path).unlink(missing_ok=True)


def _about(path: Path) -> Path:
    return path.with_name(f"{path.name}.state.json")
