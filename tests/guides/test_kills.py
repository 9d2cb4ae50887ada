"""Banks and tables killed with SIGKILL, at random instants and before every rename, end in the same bytes."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from clipling.data.views import Augment
from clipling.guides.bank import build_bank
from clipling.guides.job import Job
from clipling.guides.neighbours import build_table
from tests.faults.killing import kill_until_done, run_in_child
from tests.guides.making import ToyImages, ToyTexts, files_of, source
from tests.guides.test_neighbours import awkward

pytestmark = [pytest.mark.faults, pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return source(tmp_path_factory.mktemp("pictures"), 48, broken=(7,))


def build(pairs, out, pause=0.0, block=6):
    """25 blocks of 6 pictures, each of which takes `pause` seconds."""
    encoders = {"image_encoder": ToyImages(pause=pause), "text_encoder": ToyTexts(pause=pause)}
    return build_bank(pairs, out, block=block, views=2, augment=Augment(views=2), **encoders)


def test_a_killed_bank(tmp_path, pairs):
    build(pairs, tmp_path / "whole")
    kills = kill_until_done(lambda: build(pairs, tmp_path / "killed", pause=0.05), kills=12, shortest=0.03, longest=0.14)
    assert kills >= 8
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def table(folder, pause=0.0, block=16):
    features, rows, links, valid = awkward(300, 16)

    plain = Job.one_block

    def slowly(self, start):
        time.sleep(pause)
        return plain(self, start)

    Job.one_block = slowly
    try:
        return build_table(features, rows, links, valid, 4, block=block, cap=8, folder=folder)
    finally:
        Job.one_block = plain


def test_a_killed_table(tmp_path):
    table(tmp_path / "whole")
    kills = kill_until_done(lambda: table(tmp_path / "killed", pause=0.05), kills=12, shortest=0.02, longest=0.12, seed=1)
    assert kills >= 8
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def until_rename(number: int, work):
    """Runs `work` and dies just before its rename of that number, temporary files and all."""
    replace, left = os.replace, [number]

    def dying(*names):
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        replace(*names)

    os.replace = dying
    work()


@pytest.mark.parametrize("what", ["bank", "table"])
def test_killed_before_every_rename(tmp_path, pairs, what):
    def work(folder):
        return build(pairs, folder, block=24) if what == "bank" else table(folder, block=100)

    work(tmp_path / "whole")
    expected, number = files_of(tmp_path / "whole"), 0
    while True:
        folder = tmp_path / f"{number}"
        child = os.fork()
        if child == 0:
            until_rename(number, lambda folder=folder: work(folder))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        assert run_in_child(lambda folder=folder: work(folder), None)
        assert files_of(folder) == expected, f"killed before rename {number}"
        number += 1
    assert number >= (14 if what == "bank" else 4)


def test_a_block_of_another_size_is_not_mixed_in(tmp_path):
    """A table killed and continued with another block size is still the same table."""
    table(tmp_path / "whole")
    assert not run_in_child(lambda: table(tmp_path / "killed", pause=0.05), 0.3)
    table(tmp_path / "killed", block=50)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("what", ["bank", "table"])
def test_two_launches_that_make_the_same_at_the_same_time(tmp_path, pairs, what, capfd):
    """As two trainings do that share a cache: the later one waits, and finds it made."""

    def work(folder, pause=0.0):
        return build(pairs, folder, pause=pause) if what == "bank" else table(folder, pause=pause)

    work(tmp_path / "whole")
    for number in range(4):
        folder, children = tmp_path / f"{number}", []
        for late in (0.0, 0.01 * (number + 1)):
            children.append(os.fork())
            if children[-1] == 0:
                time.sleep(late)
                try:
                    work(folder, pause=0.01)
                except BaseException:
                    os._exit(1)
                os._exit(0)
        assert [os.WEXITSTATUS(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
        assert files_of(folder) == files_of(tmp_path / "whole")
    assert "waiting for it" in capfd.readouterr().err
