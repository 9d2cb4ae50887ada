"""Processes that make tars in one folder without knowing of each other: two terminals, two launches. Each tar is one process's at a time.

The system lets go of a lock when its process ends, however it ends. Where there are no locks (Windows, some file servers) everybody
gets what he asks for, as if he were alone.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from clipling.store import disk_error

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".reinforced.lock"
TAKEN = (errno.EAGAIN, errno.EACCES)


class ShardLocks:
    """A file in the folder: its first byte is the manifest's lock, those that follow are the shards'."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError when the folder cannot be written."""
        path, self.works = folder / NAME, fcntl is not None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
        except OSError as error:
            raise disk_error(error, path) from error

    def __enter__(self) -> ShardLocks:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @contextlib.contextmanager
    def manifest(self) -> Iterator[bool]:
        """Waits for it: nobody has it for long. Whether it is this process's alone; False where there are no locks."""
        self._take(0, wait=True)
        try:
            yield self.works
        finally:
            self._let_go(0)

    @contextlib.contextmanager
    def shard(self, number: int) -> Iterator[bool]:
        """Whether it is this process's; False at once when another one has it."""
        taken = self._take(1 + number, wait=False)
        try:
            yield taken
        finally:
            if taken:
                self._let_go(1 + number)

    def _take(self, place: int, *, wait: bool) -> bool:
        if fcntl is None:
            return True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, place)
        except OSError as error:
            if error.errno in TAKEN:
                return False
            self.works = False
        return True

    def _let_go(self, place: int) -> None:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, place)
