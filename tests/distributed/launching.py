"""Runs a verb in several forked processes that find each other as under torchrun, one of which may be killed at a set instant.

Nothing of torchrun's own help is there: the processes that are left must notice and stop by themselves.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SECONDS = 300  # how long nothing may hang


@dataclass(frozen=True)
class Ended:
    """code: of the exit, negative for a signal. said: what the process wrote on stderr. seconds: when it ended after the launch."""

    code: int
    said: str
    seconds: float


def launch(folder: Path, world: int, work: Callable[[], int], die: Callable[[], None] | None = None) -> list[Ended]:
    """Forks `world` processes that run `work` with RANK and WORLD_SIZE. die: called first in the last one, to arrange its death."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children, began, ended = {}, time.monotonic(), {}
    for rank in range(world):
        child = os.fork()
        if child == 0:
            _be(folder / f"stderr-{rank}", rank, world, port, work, die if rank == world - 1 else None)
        children[child] = rank
    while len(ended) < world:
        done, status = os.waitpid(-1, os.WNOHANG)
        if done in children:
            rank = children[done]
            said = (folder / f"stderr-{rank}").read_text(errors="replace")
            ended[rank] = Ended(os.waitstatus_to_exitcode(status), said, time.monotonic() - began)
        if time.monotonic() - began > SECONDS:
            for child in children:
                if children[child] not in ended:
                    os.kill(child, signal.SIGKILL)
            raise AssertionError(f"processes hang; ended: {ended}")
        time.sleep(0.01)
    return [ended[rank] for rank in range(world)]


def _be(said: Path, rank: int, world: int, port: int, work: Callable[[], int], die: Callable[[], None] | None) -> None:
    code = 1
    try:
        os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
        sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace")  # pytest has put another one in its place
        if world > 1:
            place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({key: str(value) for key, value in place.items()})
        if die is not None:
            die()
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def at_call(owner: object, name: str, number: int) -> Callable[[], None]:
    """Arranges that this process is killed with SIGKILL instead of calling `owner.name` for the `number`-th time (from 0)."""

    def arrange() -> None:
        plain, left = getattr(owner, name), [number]

        def dying(*args, **options):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return plain(*args, **options)

        setattr(owner, name, dying)

    return arrange
