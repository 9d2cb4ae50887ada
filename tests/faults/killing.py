"""Runs work in forked children of the warm test process and kills them at random instants."""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path


def run_in_child(work: Callable[[], object], kill_after: float | None) -> bool:
    """Forks, runs `work`, and SIGKILLs the child after so many seconds. True when the child finished by itself."""
    deadline = time.monotonic() + (1e9 if kill_after is None else kill_after)
    return run_until(work, lambda: time.monotonic() > deadline)


def run_until(work: Callable[[], object], due: Callable[[], bool]) -> bool:
    """Forks, runs `work`, and SIGKILLs the child when it is due. True when the child finished by itself.

    Raises AssertionError when the child failed: a kill must never leave a state in which the next start goes wrong.
    """
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.WIFEXITED(status), f"the child died of signal {os.WTERMSIG(status)}"
            assert os.WEXITSTATUS(status) == 0, "the child failed"
            return True
        if due():
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.002)


def kill_until_done(work: Callable[[], object], kills: int, shortest: float, longest: float, seed: int = 0) -> int:
    """Starts `work` again and again, killing it `kills` times at random instants, then lets it finish. Returns the kills made."""
    rng = random.Random(seed)
    made = 0
    while made < kills:
        if run_in_child(work, rng.uniform(shortest, longest)):
            return made
        made += 1
    assert run_in_child(work, None)
    return made


def kill_by_progress(work: Callable[[], object], folder: Path, kills: int, most: int = 3, seed: int = 0) -> int:
    """As kill_until_done, for work that writes file after file into a folder, such as checkpoints: a start is killed within 50 ms of its
    n-th new file, n at random up to `most`, or within 200 ms of its beginning for n = 0. So a machine's pace does not decide how far a
    start comes.
    """
    rng = random.Random(seed)
    for made in range(kills):
        wanted = rng.randint(0, most)
        if run_until(work, _after_files(folder, wanted, rng.uniform(0, 0.05 if wanted else 0.2))):
            return made
    assert run_in_child(work, None)
    return kills


def _after_files(folder: Path, wanted: int, pause: float) -> Callable[[], bool]:
    def state() -> set[tuple[str, int]]:
        try:
            return {(entry.name, entry.stat().st_mtime_ns) for entry in os.scandir(folder)}
        except FileNotFoundError:  # no folder yet, or a file that was replaced between two looks
            return set()

    before, seen, reached = state(), set(), []

    def due() -> bool:
        seen.update(state() - before)
        if len(seen) >= wanted and not reached:
            reached.append(time.monotonic())
        return bool(reached) and time.monotonic() > reached[0] + pause

    return due
