"""Runs work in forked children of the warm test process and kills them at random instants."""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from collections.abc import Callable


def run_in_child(work: Callable[[], object], kill_after: float | None) -> bool:
    """Forks, runs `work`, and SIGKILLs the child after so many seconds. True when the child finished by itself.

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
    deadline = time.monotonic() + (1e9 if kill_after is None else kill_after)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.WIFEXITED(status), f"the child died of signal {os.WTERMSIG(status)}"
            assert os.WEXITSTATUS(status) == 0, "the child failed"
            return True
        if time.monotonic() > deadline:
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
