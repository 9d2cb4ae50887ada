"""Several processes that share work by files: which of them this one is, and a watch over the others while one waits.

Nothing here needs a process group: banks and tables are shared by any processes that see one folder. Every process leaves a small file
there, a "beat", and rewrites it every few seconds. One that waits for the files of another reads its beat, and stops with a message
instead of waiting forever when the other failed, is gone from this machine, or has not been heard of for `PATIENCE` seconds.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from clipling.errors import UserError
from clipling.store import atomic_write

POLL = 0.1  # seconds between two looks
BEAT = 2.0  # seconds between two signs of life
PATIENCE = 60.0  # seconds without one, after which a process counts as lost (file servers may show a change late)
FIRST_PATIENCE = 600.0  # the same for the first sign: processes of one launch may begin far apart
FAILED = "failed"


def rank_and_world() -> tuple[int, int]:
    """Which process this is and how many there are, as torchrun (or whoever sets RANK and WORLD_SIZE) says; (0, 1) without one.

    Raises UserError when one is set without the other, or they do not fit: a share of the work would be left out, or done twice.
    """
    said = {name: os.environ.get(name, "").strip() for name in ("RANK", "WORLD_SIZE")}
    if not any(said.values()):
        return 0, 1
    lacking = [name for name, value in said.items() if not value]
    if lacking:
        there = next(f"{name}={value}" for name, value in said.items() if value)
        raise UserError(
            f"{there} is set in the environment, {lacking[0]} is not: a launcher such as torchrun sets both. Set both or neither."
        )
    if not all(value.isdecimal() for value in said.values()) or not int(said["RANK"]) < int(said["WORLD_SIZE"]):
        raise UserError(
            f"RANK={said['RANK']} and WORLD_SIZE={said['WORLD_SIZE']} in the environment name no process: expected a RANK from 0 to "
            "WORLD_SIZE - 1, as torchrun sets them"
        )
    return int(said["RANK"]), int(said["WORLD_SIZE"])


class Watch:
    """Shows that this process lives, and waits for the others, while inside of `with`.

    folder: seen by all, made if absent; the files of the watch go when their process does, or when the folder does. A single process
    leaves no files, and `until` is a plain wait.
    """

    def __init__(self, folder: Path, rank: int, world: int, what: str) -> None:
        self.folder, self.rank, self.world, self.what = folder, rank, world, what
        self._over = threading.Event()
        self._identity = f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(4)}"

    def __enter__(self) -> Watch:
        self._others = {r: _Other(self._path(r)) for r in range(self.world) if r != self.rank}
        if self.world > 1:
            atomic_write(self._path(self.rank), f"{self._identity} 0\n")
            threading.Thread(target=self._beats, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        if self.world > 1 and kind is not None:
            self._say(FAILED)
        elif self.world > 1:
            with contextlib.suppress(OSError):
                self._path(self.rank).unlink(missing_ok=True)
                self.folder.rmdir()  # only when nothing is left in it: the work was finished before this process came

    def until(self, ready: Callable[[], bool]) -> None:
        """Returns when `ready()`. Raises UserError when a process is lost before."""
        while not ready():
            lost = self._lost()
            if not lost:
                time.sleep(POLL)
                continue
            if ready():  # it did its share, and went, between the two looks
                return
            raise UserError(
                f"{lost} while {self.what} was being made in {self.folder.parent}. What is finished is kept: "
                "run the same command again, and it goes on from there."
            )

    def _lost(self) -> str:
        """Which process is lost and why; "" when none is."""
        found = ((rank, other.lost()) for rank, other in self._others.items())
        return next((f"process {rank + 1} of {self.world} {why}" for rank, why in found if why), "")

    def _path(self, rank: int) -> Path:
        return self.folder / f"alive-{rank}"

    def _beats(self) -> None:
        number = 0
        while not self._over.wait(BEAT):
            number += 1
            self._say(str(number))

    def _say(self, word: str) -> None:
        # Not made anew where it is gone: the folder may have been removed, when all was done.
        with contextlib.suppress(OSError), open(self._path(self.rank), "r+", encoding="utf-8") as file:
            file.write(f"{self._identity} {word}\n")
            file.truncate()


class _Other:
    """What is known of another process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.said = self.old = self._read()
        # What lies there may be the sign of an earlier launch that was killed: then its process no longer runs.
        self.seen, self.heard = self._here() == "runs", time.monotonic()

    def _read(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return ""

    def _here(self) -> str:
        """`runs` or `gone` for a process of this machine, else ""."""
        host, pid, *_ = [*self.said.split(" "), "", ""]
        if host != socket.gethostname() or not pid.isdigit():
            return ""
        return "runs" if _runs(int(pid)) else "gone"

    def lost(self) -> str:
        """Why the process counts as lost; "" while it does not."""
        said = self._read()
        if said and said != self.said:
            self.said, self.heard, self.seen = said, time.monotonic(), True
        silent = time.monotonic() - self.heard
        if not self.seen:
            return f"was not seen for {FIRST_PATIENCE:.0f} s" if silent > FIRST_PATIENCE else ""
        if self.said.endswith(FAILED) and self.said != self.old:
            return "failed"
        if self._here() == "gone":
            return "died"
        return f"has not been heard of for {PATIENCE:.0f} s" if silent > PATIENCE else ""


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it runs, and is another user's
        return True
    return True
