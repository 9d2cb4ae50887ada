"""Tables whose columns lie converted in a file: killed at any instant, on full disks and beside older files they end in the same bytes."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from clipling.errors import UserError
from clipling.guides import approximate, candidates, columns, rows
from clipling.guides.neighbours import build_table
from clipling.guides.precision import BF16, FP32
from tests.faults.killing import kill_until_done, run_in_child
from tests.faults.test_full_disks import small  # noqa: F401
from tests.guides.making import files_of, rows_of
from tests.guides.test_approximate import clustered
from tests.guides.test_neighbours import same

pytestmark = [pytest.mark.faults, pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")]
METHODS = ("exact", "faiss")
COUNT = 1500


@pytest.fixture(autouse=True)
def files_of_columns(monkeypatch):
    monkeypatch.setattr(candidates, "quickest", lambda device: BF16)
    monkeypatch.setattr(columns, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(columns, "TILE", 64)


@pytest.fixture(params=METHODS)
def method(request):
    if request.param == "faiss":
        pytest.importorskip("faiss")
    return request.param


def table(folder: Path | None, method: str = "exact", block: int = 400, **more):
    features = clustered(COUNT)
    links = [[p % 50] if p % 7 == 0 else [] for p in range(COUNT)]
    return build_table(rows_of(features), np.arange(COUNT), links, np.ones(COUNT, bool), 4, block, method=method, folder=folder, **more)


def parts_of(folder: Path) -> Path:
    (found,) = folder.glob("*.parts")
    return found


def killed_before_rename(folder: Path, name: str, method: str) -> Path:
    """Makes a table until just before its file `name` is renamed, and returns the folder of its parts."""

    def work():
        replace = os.replace

        def dying(source, target):
            if Path(target).name.startswith(name):
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)

        os.replace = dying
        table(folder, method)

    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    return parts_of(folder)


@pytest.mark.parametrize("name", ["columns-bf16", "0000000400"])
def test_killed_before_a_rename(tmp_path, method, name):
    whole = table(tmp_path / "whole", method)
    parts = killed_before_rename(tmp_path / "killed", name, method)
    assert len(list(parts.glob("columns-bf16*.npy"))) == (name != "columns-bf16")
    assert list(parts.glob(f".{name}*.tmp"))
    assert same(table(tmp_path / "killed", method), whole)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


@pytest.mark.slow
def test_killed_at_random_instants(tmp_path, method, monkeypatch):
    monkeypatch.setattr(columns, "TILE", 16)
    table(tmp_path / "whole", method)
    kill_until_done(lambda: table(tmp_path / "killed", method), kills=3, shortest=0.02, longest=0.3, seed=3)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("length", [0, 20_000])
def test_a_file_of_columns_of_a_wrong_length_is_made_again(tmp_path, method, length):
    whole = table(tmp_path / "whole", method)
    parts = killed_before_rename(tmp_path / "killed", "0000000400", method)
    (converted,) = parts.glob("columns-bf16*.npy")
    for file in (converted, parts / "columns.npy"):
        file.write_bytes(file.read_bytes()[:length])
    assert same(table(tmp_path / "killed", method), whole)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_killed_in_one_precision_and_continued_in_the_other(tmp_path, method, monkeypatch):
    whole = table(None, method)
    killed_before_rename(tmp_path, "0000000400", method)
    monkeypatch.setattr(candidates, "quickest", lambda device: FP32)
    assert same(table(tmp_path, method), whole)


def test_blocks_of_cells_that_were_learned_anew_are_not_mixed(tmp_path, monkeypatch):
    """Another number of threads, or another faiss, may learn other cells, and queries then come in another order."""
    pytest.importorskip("faiss")
    parts = killed_before_rename(tmp_path / "killed", "0000000800", "faiss")
    (parts / "cells.npz").write_bytes(b"damaged")
    monkeypatch.setattr(approximate, "CELLS", 0.5)
    assert same(table(tmp_path / "killed", "faiss"), table(None, "faiss"))


def test_a_disk_that_is_full_while_columns_are_converted(tmp_path, method, small, monkeypatch):  # noqa: F811
    whole = table(tmp_path / "whole", method)
    written = rows.write_parts

    def full(path, *arguments):  # columns.npy and cells.npz have room, the file of bf16 has not
        disk.fill()
        written(path, *arguments)

    disk = small("2m")
    filler = disk.place / "filler"
    disk.fill = lambda: filler.write_bytes(bytes(os.statvfs(disk.place).f_bavail * os.statvfs(disk.place).f_frsize - 30_000))
    monkeypatch.setattr(columns, "write_parts", full)
    with pytest.raises(UserError, match=r"no space left on the disk.*columns-bf16"):
        table(disk.place / "tables", method)
    assert not list(parts_of(disk.place / "tables").glob("columns-bf16*"))
    assert not list(parts_of(disk.place / "tables").glob(".columns-bf16*"))
    filler.unlink()
    monkeypatch.setattr(columns, "write_parts", written)
    assert same(table(disk.place / "tables", method), whole)
    assert files_of(disk.place / "tables") == files_of(tmp_path / "whole")


def test_several_processes_share_one_file_of_columns(tmp_path, method):
    whole = table(tmp_path / "whole", method)
    for world in (2, 4):
        children = []
        for rank in range(world):
            children.append(os.fork())
            if children[-1] == 0:
                try:
                    made = table(tmp_path / str(world), method, 100, rank=rank, world=world)
                    os._exit(0 if same(made, whole) else 1)
                except BaseException:
                    os._exit(2)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * world
        assert files_of(tmp_path / str(world)) == files_of(tmp_path / "whole")


def test_two_launches_at_once(tmp_path, method):
    table(tmp_path / "whole", method)
    child = os.fork()
    if child == 0:
        table(tmp_path / "both", method)
        os._exit(0)
    assert run_in_child(lambda: table(tmp_path / "both", method), None)
    assert os.waitpid(child, 0)[1] == 0
    assert files_of(tmp_path / "both") == files_of(tmp_path / "whole")
