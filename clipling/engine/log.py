"""metrics.jsonl, and what a person sees while waiting."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from clipling.guides.progress import duration
from clipling.store import atomic_write, disk_error


class Metrics:
    """Lines of JSON, one an event, in the order of steps. On resume, what came after the checkpoint is cut off, then made again."""

    def __init__(self, path: Path, keep_until: int | None):
        """`keep_until`: the step of the checkpoint that the run resumes from; None starts a new file."""
        self.path = path
        kept = [] if keep_until is None else [line for line in _lines(path) if _step(line) <= keep_until]
        atomic_write(path, "".join(line + "\n" for line in kept))
        self.file = path.open("a", encoding="utf-8")

    def write(self, **event: Any) -> None:
        try:
            self.file.write(json.dumps(event) + "\n")
            self.file.flush()
        except OSError as error:
            raise disk_error(error, self.path) from error

    def close(self) -> None:
        # What could not be written was reported by `write`; closing tries it again.
        with contextlib.suppress(OSError):
            self.file.close()


def _step(line: str) -> float:
    """The step of an event; a damaged line belongs to none, and is left out.

    What a surgery left is measured between two steps: the checkpoint of the first does not know of it.
    """
    try:
        event = json.loads(line)
        return float(event["step"]) + (0.5 if event.get("kind") == "surgery" else 0)
    except (ValueError, KeyError, TypeError):
        return math.inf


def _lines(path: Path) -> list[str]:
    """The whole lines of a file that a kill may have ended in the middle of a line."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    return [line for line in lines if line.startswith("{") and line.endswith("}")]


class Progress:
    """A bar on a terminal; elsewhere a plain line every half minute, with the time that is left."""

    def __init__(self, total: int, done: int, name: str, quiet: bool = False):
        self.total, self.first, self.done, self.name, self.quiet = total, done, done, name, quiet
        self.begun = self.said = time.monotonic()
        self.bar = None
        if not quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=done, desc=name, unit="step", dynamic_ncols=True)

    def step(self, note: str) -> None:
        self.done += 1
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update()
        elif time.monotonic() - self.said >= 30:
            self._say(note)

    def line(self, text: str) -> None:
        """A line that stays."""
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        elif not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def _say(self, note: str) -> None:
        self.said = time.monotonic()
        spent = self.said - self.begun
        left = spent / max(1, self.done - self.first) * (self.total - self.done)
        self.line(f"{self.name}: step {self.done}/{self.total}, {note}, {duration(left)} left")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
