"""Locks of tars in one folder: each is one process's at a time, and no other's than the one that was asked for."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from clipling.guides.shard_locks import ShardLocks

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no locks on Windows")


def free(folder: Path, *numbers: int) -> list[bool]:
    """Which of these tars another process would get."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        with ShardLocks(folder) as locks:
            for number in numbers:
                with locks.shard(number) as own:
                    os.write(write, b"1" if own else b"0")
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with open(read, "rb") as file:
        return [char == "1" for char in file.read().decode()]


def test_each_is_held_alone_and_let_go(tmp_path):
    with ShardLocks(tmp_path / "out") as locks:
        with locks.manifest() as alone:
            assert alone
            assert free(tmp_path / "out", 0, 1) == [True, True]  # the manifest's is none of theirs
        with locks.shard(1) as own:
            assert own
            assert free(tmp_path / "out", 0, 1, 2) == [True, False, True]
        assert free(tmp_path / "out", 0, 1, 2) == [True, True, True]  # while the folder is still open
        with pytest.raises(ValueError, match="stumbled"), locks.shard(2):
            raise ValueError("stumbled")
        assert free(tmp_path / "out", 2) == [True]
