"""Tables of grown, shrunk and edited sources, by bank and folder: brought up to date they equal those computed anew. About 5 s."""

from __future__ import annotations

import copy
import os
import shutil
import sys

import numpy as np
import pytest

from clipling.data.pairs import Pairs
from clipling.errors import UserError
from clipling.guides.bank import build_bank
from clipling.guides.tables import make_tables
from tests.faults.killing import run_in_child
from tests.guides.making import ToyImages, ToyTexts, files_of, source
from tests.guides.test_kills import until_rename

ENCODERS = {"image_encoder": ToyImages(), "text_encoder": ToyTexts()}


def states(folder, seed: int) -> tuple[Pairs, Pairs]:
    """A source before and after: pairs went and came, pictures were exchanged, captions, repeats and groups edited."""
    pairs = source(folder, 70, broken=(3, 50), seed=seed)
    rng = np.random.default_rng(seed)
    before = [pairs.row(i) for i in range(70)]
    for row in before:
        row.group = f"g{rng.integers(9)}" if rng.random() < 0.5 else ""
        if rng.random() < 0.15:
            row.captions = ["a caption of several"]
    after = copy.deepcopy(before)
    for row in after:
        if rng.random() < 0.1:
            row.captions = [f"{caption} edited" for caption in row.captions]
        if rng.random() < 0.2:
            row.group = "" if rng.random() < 0.5 else f"g{rng.integers(9)}"
    hashes = list(pairs.hashes)
    for one, other in ((10, 20), (30, 40)):
        after[one].location, after[other].location = after[other].location, after[one].location
        hashes[one], hashes[other] = hashes[other], hashes[one]
    was, now = (np.flatnonzero(rng.random(70) < 0.8) for _ in range(2))
    chosen = ((before, pairs.hashes, was), (after, hashes, now))
    return tuple(Pairs.from_rows("toy", [rows[i] for i in some], [known[i] for i in some]) for rows, known, some in chosen)


@pytest.mark.faults
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_an_update_that_is_killed_before_every_rename_ends_in_the_same_bytes(tmp_path):
    _, update = updated(tmp_path, 1)
    update()
    whole = files_of(tmp_path / "tables")
    for number in range(8):
        shutil.rmtree(tmp_path / "tables")
        child = os.fork()
        if child == 0:
            until_rename(number, update)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) == (number < 7)
        assert run_in_child(update, None)
        assert files_of(tmp_path / "tables") == whole, f"killed before rename {number}"


def updated(tmp_path, seed: int, k: int = 4):
    before, now = states(tmp_path / "source", seed)
    build_bank(before, tmp_path / "old", **ENCODERS)
    make_tables(tmp_path / "old", before, tmp_path / "old-tables", k=k)
    build_bank(now, tmp_path / "new", update=tmp_path / "old", **ENCODERS)
    return now, lambda: make_tables(tmp_path / "new", now, tmp_path / "tables", k=k, update=tmp_path / "old-tables")


@pytest.mark.parametrize("seed", range(6))
def test_edited_sources(tmp_path, seed):
    now, update = updated(tmp_path, seed)
    made = update()
    shutil.copytree(tmp_path / "tables", tmp_path / "anew")
    for path in (tmp_path / "anew").glob("*-*.npz"):
        path.unlink()
    anew = make_tables(tmp_path / "new", now, tmp_path / "anew", k=4)
    for space in ("image", "text"):
        assert np.array_equal(made[space].ids, anew[space].ids)
        assert np.array_equal(made[space].sims, anew[space].sims)


def test_pairs_of_a_group_that_was_taken_away_become_neighbours(tmp_path):
    """Two pictures all but alike, kept apart by their group alone: without it each is the other's nearest."""
    pairs = source(tmp_path / "source", 30)
    rows = [pairs.row(i) for i in range(30)]
    rows[4].captions, rows[9].captions = ["the same words but one"], ["the same words but two"]
    grouped = copy.deepcopy(rows)
    grouped[4].group = grouped[9].group = "g"
    before, now = (Pairs.from_rows("toy", some, pairs.hashes) for some in (grouped, rows))
    build_bank(before, tmp_path / "old", **ENCODERS)
    old = make_tables(tmp_path / "old", before, tmp_path / "old-tables", k=1)
    assert old["text"].ids[4, 0] != 9
    build_bank(now, tmp_path / "new", update=tmp_path / "old", **ENCODERS)
    made = make_tables(tmp_path / "new", now, tmp_path / "tables", k=1, update=tmp_path / "old-tables")
    assert (made["text"].ids[4, 0], made["text"].ids[9, 0]) == (9, 4)


@pytest.mark.parametrize("name", ["pairs.parquet", "centre.npz"])
def test_older_tables_that_are_damaged(tmp_path, name):
    _, update = updated(tmp_path, 0)
    path = tmp_path / "old-tables" / name
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=f"{name} cannot be read"):
        update()


def test_an_update_from_tables_of_other_pairs_is_refused(tmp_path):
    now, _ = updated(tmp_path, 0)
    others = source(tmp_path / "others", 12, seed=9)  # of the same names
    build_bank(others, tmp_path / "other-bank", **ENCODERS)
    make_tables(tmp_path / "other-bank", others, tmp_path / "other-tables", k=4)
    with pytest.raises(UserError, match=r"none of the 12 pairs .* nothing to bring up to date"):
        make_tables(tmp_path / "new", now, tmp_path / "tables", k=4, update=tmp_path / "other-tables")
    assert not (tmp_path / "tables").exists()


def test_tables_that_are_there_are_not_mixed_with_updated_ones(tmp_path):
    now, update = updated(tmp_path, 0)
    make_tables(tmp_path / "new", now, tmp_path / "tables", k=4)
    before = files_of(tmp_path / "tables")
    with pytest.raises(UserError, match=r"other means were subtracted.*remove .*tables first"):
        update()
    assert files_of(tmp_path / "tables") == before
    shutil.rmtree(tmp_path / "tables")
    assert update()
    assert update(), "again, over what it made itself"


def test_a_wrong_folder_to_update_from_is_told_apart(tmp_path):
    now, _ = updated(tmp_path, 0)
    for wrong, said in (
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "old", "is a bank; expected a folder of its tables: .*tables/abc"),
    ):
        (tmp_path / "old" / "tables" / "abc").mkdir(parents=True, exist_ok=True)
        with pytest.raises(UserError, match=said):
            make_tables(tmp_path / "new", now, tmp_path / "tables", k=4, update=wrong)
