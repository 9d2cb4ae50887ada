"""How long work of a guide tells what it is doing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

# progress(what, done, total): called with done at the start (what was found from an earlier run) and after every part.
Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Says nothing."""


class ShowProgress:
    """A bar on a terminal; elsewhere plain lines: what and on which device first, the time left after the first part,
    then a line every half minute, and the time spent at the end."""

    def __init__(self, stream: TextIO | None = None, every: float = 30.0) -> None:
        self.stream = stream or sys.stderr
        self.every = every
        self.what: str | None = None
        self.bar = None

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self.what:
            self._begin(what, done, total)
        elif self.bar is not None:
            self.bar.update(done - self.bar.n)
        elif done > self.first and (self.said == self.begun or time.monotonic() - self.said >= self.every or done == total):
            self._say(done, total)
        if done >= total and self.bar is not None:
            self.bar.close()
            self.bar = None

    def _begin(self, what: str, done: int, total: int) -> None:
        self.what, self.first = what, done
        self.begun = self.said = time.monotonic()
        if self.stream.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=done, desc=what, dynamic_ncols=True, file=self.stream)
        else:
            found = f", {done:,} of them done before" if done else ""
            print(f"{what}: {total:,}{found}", file=self.stream, flush=True)

    def _say(self, done: int, total: int) -> None:
        self.said = time.monotonic()
        spent = self.said - self.begun
        left = spent / (done - self.first) * (total - done)
        tail = f"{duration(spent)} in all" if done >= total else f"{duration(left)} left"
        print(f"{self.what}: {done:,}/{total:,}, {tail}", file=self.stream, flush=True)


def duration(seconds: float) -> str:
    """70 -> `1 min 10 s`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
