"""A process that waits for files of another notices when that one is lost. About 3 s."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time

import pytest

from clipling import processes
from clipling.errors import UserError
from clipling.processes import Watch, rank_and_world


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, value in {"POLL": 0.01, "BEAT": 0.05, "PATIENCE": 0.5, "FIRST_PATIENCE": 1.0}.items():
        monkeypatch.setattr(processes, name, value)


def never() -> bool:
    return False


def sign(folder, rank: int, host: str, pid: int, word: object = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"alive-{rank}").write_text(f"{host} {pid} abc {word}\n")


def ended_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_a_launcher_says_who_we_are(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert rank_and_world() == (0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert rank_and_world() == (3, 8)


@pytest.mark.parametrize(
    ("rank", "world", "message"),
    [
        ("1", None, "RANK=1 is set in the environment, WORLD_SIZE is not"),
        ("0", None, "WORLD_SIZE is not"),
        (None, "4", "WORLD_SIZE=4 is set in the environment, RANK is not"),
        ("4", "4", "RANK=4 and WORLD_SIZE=4 in the environment name no process"),
        ("-1", "4", "name no process"),
        ("one", "4", "name no process"),
        ("0", "0", "name no process"),
    ],
)
def test_half_a_launcher_is_none(monkeypatch, rank, world, message):
    """Taken for a whole one, it would leave out shares of the work without a word."""
    for name, value in (("RANK", rank), ("WORLD_SIZE", world)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        rank_and_world()


def test_one_process_leaves_no_trace(tmp_path):
    with Watch(tmp_path / "parts", 0, 1, "a thing") as watch:
        watch.until(lambda: True)
    assert not (tmp_path / "parts").exists()


def test_two_that_live_wait_for_each_other(tmp_path):
    seen = []

    def other() -> None:
        with Watch(tmp_path / "parts", 1, 2, "a thing") as watch:
            watch.until(lambda: len(seen) > 0)

    thread = threading.Thread(target=other)
    thread.start()
    with Watch(tmp_path / "parts", 0, 2, "a thing") as watch:
        late = time.monotonic() + 1.5  # far beyond the patience
        watch.until(lambda: time.monotonic() > late)
        seen.append(1)
        thread.join()
    assert not (tmp_path / "parts").exists()


def test_one_that_failed_is_named(tmp_path):
    def other() -> None:
        with contextlib.suppress(ZeroDivisionError), Watch(tmp_path / "parts", 1, 2, "a thing"):
            time.sleep(0.2)
            raise ZeroDivisionError

    thread = threading.Thread(target=other)
    with Watch(tmp_path / "parts", 0, 2, "a thing") as watch:
        thread.start()
        with pytest.raises(UserError, match=r"process 2 of 2 failed while a thing was being made in .*run the same command again"):
            watch.until(never)
        thread.join()


def test_one_on_another_machine_that_falls_silent(tmp_path):
    with Watch(tmp_path / "parts", 0, 2, "a thing") as watch:
        sign(tmp_path / "parts", 1, "elsewhere", 1)
        began = time.monotonic()
        with pytest.raises(UserError, match="has not been heard of for"):
            watch.until(never)
        assert 0.4 < time.monotonic() - began < 10


def test_one_that_died_here(tmp_path):
    with Watch(tmp_path / "parts", 0, 2, "a thing") as watch:
        sign(tmp_path / "parts", 1, processes.socket.gethostname(), ended_process())
        with pytest.raises(UserError, match="process 2 of 2 died"):
            watch.until(never)


def test_the_signs_of_an_earlier_launch_are_not_believed(tmp_path):
    """Neither that of a killed process, nor a failure; but one that never comes is noticed."""
    for word in ("7", "failed"):
        sign(tmp_path / "parts", 1, processes.socket.gethostname(), ended_process(), word)
        with Watch(tmp_path / "parts", 0, 2, "a thing") as watch:
            began = time.monotonic()
            with pytest.raises(UserError, match="was not seen for"):
                watch.until(never)
            assert time.monotonic() - began > 0.9
    sign(tmp_path / "parts", 1, "elsewhere", os.getpid())
    with Watch(tmp_path / "parts", 0, 2, "a thing") as watch, pytest.raises(UserError, match="was not seen for"):
        watch.until(never)


def test_what_is_ready_counts_more_than_who_is_gone(tmp_path):
    """The other did its share and ended between two looks."""
    with Watch(tmp_path / "parts", 0, 2, "a thing") as watch:
        sign(tmp_path / "parts", 1, processes.socket.gethostname(), ended_process())
        answers = iter([False, True])
        watch.until(lambda: next(answers))
