"""Above the stated size faiss chooses the candidates; its recall is measured, and what it finds is ranked exactly."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from clipling.errors import UserError
from clipling.guides import approximate, candidates, neighbours, search
from clipling.guides.approximate import Cells, CellSearch, learn_cells, recall
from clipling.guides.neighbours import build_table
from clipling.guides.precision import BF16, FP32
from clipling.guides.rows import unit
from tests.guides.making import unit_rows
from tests.guides.test_neighbours import awkward, same


def test_recall_counts_what_was_found():
    found, true = np.array([[1, 2, 3], [4, -1, -1]]), np.array([[3, 1, 9], [-1, -1, -1]])
    assert recall(found, true) == 2 / 3
    assert recall(true, true) == 1


def test_without_faiss_the_message_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    features, rows, links, valid = awkward(60, 8)
    with pytest.raises(UserError, match=r"method='exact'.*clipling\[faiss\]"):
        build_table(features, rows, links, valid, 2, method="faiss")


def test_auto_is_a_fixed_choice_by_size(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    features, rows, links, valid = awkward(60, 8)
    assert build_table(features, rows, links, valid, 2).info["method"] == "exact"
    monkeypatch.setattr(neighbours, "EXACT_UP_TO", {"cpu": 50, "cuda": 50})
    with pytest.raises(UserError, match="faiss"):
        build_table(features, rows, links, valid, 2)


def test_faiss_finds_most_and_ranks_exactly(tmp_path):
    pytest.importorskip("faiss")
    features, rows, links, valid = awkward(4000, 24)
    # clusters, as real features have them: cells of noise would say nothing
    centres = unit_rows(60, 24, 1)[np.random.default_rng(0).integers(0, 60, 4000)].astype(np.float32)
    features = np.where(valid[:, None], unit(centres + 0.4 * unit_rows(4000, 24, 2, np.float32)), 0).astype(np.float16)
    exact = build_table(features, rows, links, valid, 4)
    table = build_table(features, rows, links, valid, 4, method="faiss", block=700, folder=tmp_path)
    assert table.info["method"].startswith("faiss")
    assert 0.9 < table.info["recall"] <= 1
    usable = rows[valid[rows]]
    assert abs(recall(table.ids[usable], exact.ids[usable]) - table.info["recall"]) < 0.03
    assert not np.isin(table.ids, np.setdiff1d(np.arange(4000), usable)).any()
    for pair in usable[:300].tolist():
        found = table.ids[pair][table.ids[pair] >= 0]
        assert pair not in found
        assert all(not set(links[pair]) & set(links[other]) for other in found.tolist())
        dots = (features[found].astype(float) * features[pair].astype(float)).sum(1)
        assert table.sims[pair][: len(found)].tolist() == dots.tolist()
        assert found.tolist() == [i for _, i in sorted(zip(-dots, found.tolist()))]
    assert same(table, build_table(features, rows, links, valid, 4, method="faiss", block=33))


def clustered(count: int = 4000) -> np.ndarray:
    """Unit rows in 60 clusters that overlap."""
    centres = unit_rows(60, 24, 1)[np.random.default_rng(0).integers(0, 60, count)].astype(np.float32)
    return unit(centres + 0.5 * unit_rows(count, 24, 2, np.float32)).astype(np.float16)


def test_a_low_recall_is_told(monkeypatch):
    """Measured against exact neighbours of a sample, not against what was found."""
    pytest.importorskip("faiss")
    monkeypatch.setattr(approximate, "LEAST_PROBES", 1)
    monkeypatch.setattr(approximate, "AIM", 0.4)
    monkeypatch.setattr(approximate, "CELLS", 2)
    features, rows, links, valid = clustered(), np.arange(4000), [[] for _ in range(4000)], np.ones(4000, bool)
    exact = build_table(features, rows, links, valid, 4)
    table = build_table(features, rows, links, valid, 4, method="faiss")
    assert table.info["recall"] < 0.85
    assert abs(recall(table.ids, exact.ids) - table.info["recall"]) < 0.03


def test_as_many_cells_are_looked_through_as_hold_what_was_aimed_at(monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(approximate, "LEAST_PROBES", 1)
    monkeypatch.setattr(approximate, "MOST_SHARE", 1)
    features, pairs = unit_rows(4000, 8, 5), np.arange(4000)
    links = [[] for _ in pairs]
    cells = learn_cells(features, pairs, links, 4)
    true = build_table(features, pairs, links, np.ones(4000, bool), 4).ids
    place = np.full((len(cells.near), len(cells.near)), 10**6)
    np.put_along_axis(place, cells.near, np.arange(cells.near.shape[1])[None], axis=1)
    needed = place[cells.cell[pairs][:, None], cells.cell[true]]
    probes = cells.near.shape[1]
    assert probes > 4
    assert (needed < probes).mean() > 0.94
    assert (needed < probes - 2).mean() < 0.96


def test_cells_of_other_columns_are_not_taken(tmp_path):
    pytest.importorskip("faiss")
    features, links = clustered(), [[] for _ in range(4000)]
    learn_cells(features[:2000], np.arange(2000), links, 4, tmp_path / "cells.npz")
    found = learn_cells(features, np.arange(4000), links, 4, tmp_path / "cells.npz")
    assert np.array_equal(found.cell, learn_cells(features, np.arange(4000), links, 4).cell)


@pytest.mark.parametrize("precision", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("held", [candidates.HELD, 500])
def test_all_rows_of_the_cells_around_are_looked_through_and_no_others(monkeypatch, precision, seed, held):
    """Against one inner product at a time, for cells without geometry, one of them empty, with classes and several rows a pair."""
    monkeypatch.setattr(candidates, "quickest", lambda device: precision)
    for module in (candidates, search):
        monkeypatch.setattr(module, "HELD", held)
    rng = np.random.default_rng(seed)
    count, cells, probes, k = 400, 12, int(rng.integers(1, 9)), 6
    owner, features = np.sort(rng.integers(0, 250, count)), unit_rows(count, 7, seed)
    links = [sorted({int(c) for c in rng.integers(0, 25, rng.integers(0, 3))}) for _ in range(250)]
    cell = rng.choice(np.delete(np.arange(cells), 5), count).astype(np.int32)
    near = np.stack([np.append(c, rng.permutation(np.delete(np.arange(cells), c))[: probes - 1]) for c in range(cells)]).astype(np.int32)
    asked = rng.permutation(count)[:150]
    ids, sims = CellSearch(features, owner, links, Cells(cell, near, "0")).of_columns(asked, k)
    exact = features.astype(np.float64)
    for row, query in enumerate(asked.tolist()):
        best: dict[int, float] = {}
        for column in np.flatnonzero(np.isin(cell, near[cell[query]])).tolist():
            pair, mine = int(owner[column]), int(owner[query])
            if pair != mine and not set(links[pair]) & set(links[mine]):
                best[pair] = max(best.get(pair, -9.0), float((exact[column] * exact[query]).sum()))
        nearest = sorted(best, key=lambda pair: (-best[pair], pair))[:k]
        assert ids[row].tolist() == nearest + [-1] * (k - len(nearest))
        assert sims[row][: len(nearest)].tolist() == [best[pair] for pair in nearest]
