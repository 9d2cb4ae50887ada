"""Columns come in the order and the precision that was asked for, from memory, from a file, and converted on the way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipling.guides import columns
from clipling.guides.columns import Columns
from tests.guides.making import unit_rows

ROWS = unit_rows(1000, 12, 3)
ORDER = np.random.default_rng(0).permutation(1000)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(columns, "TILE", 32)


@pytest.mark.parametrize("resident", [0, 2**20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", [None, ORDER], ids=["as given", "ordered"])
@pytest.mark.parametrize("scratch", [False, True])
def test_tiles_are_the_rows(tmp_path, monkeypatch, resident, dtype, order, scratch):
    monkeypatch.setattr(columns, "RESIDENT_BYTES", resident)
    given_rows = np.lib.format.open_memmap(tmp_path / "rows.npy", "w+", ROWS.dtype, ROWS.shape)
    given_rows[:] = ROWS
    made = Columns(np.load(tmp_path / "rows.npy", mmap_mode="r"), order=order, scratch=tmp_path / "scratch" if scratch else None)
    expected = torch.from_numpy(ROWS if order is None else ROWS[order]).float().to(dtype)
    tiles = list(made.tiles(dtype))
    assert all(len(t) <= 64 and t.dtype == dtype for t in tiles)
    assert torch.equal(torch.cat(tiles), expected)
    runs = [(3, 5), (5, 5), (10, 300), (290, 310)]
    assert torch.equal(torch.cat(list(made.tiles(dtype, runs))), torch.cat([expected[a:b] for a, b in runs]))
    kept = list((tmp_path / "scratch").glob("*")) if scratch else []
    assert len(kept) == (1 if scratch and not resident and dtype == torch.bfloat16 else 0)


def test_a_file_of_another_order_is_not_taken(tmp_path, monkeypatch):
    """Cells that are learned anew give another order beside the older file."""
    monkeypatch.setattr(columns, "RESIDENT_BYTES", 0)
    for order in (ORDER, ORDER[::-1].copy(), None):
        tiles = Columns(ROWS, order=order, scratch=tmp_path).tiles(torch.bfloat16)
        assert torch.equal(torch.cat(list(tiles)), torch.from_numpy(ROWS if order is None else ROWS[order]).float().bfloat16())
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("length", [0, 40, 5000])
def test_a_file_that_was_cut_off_is_made_again(tmp_path, monkeypatch, length):
    monkeypatch.setattr(columns, "RESIDENT_BYTES", 0)
    Columns(ROWS, scratch=tmp_path).keep(torch.bfloat16)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:length])
    tiles = Columns(ROWS, scratch=tmp_path).tiles(torch.bfloat16)
    assert torch.equal(torch.cat(list(tiles)), torch.from_numpy(ROWS).float().bfloat16())


def test_another_precision_is_converted_anew():
    made = Columns(ROWS)
    assert next(made.tiles(torch.bfloat16)).dtype == torch.bfloat16
    assert torch.equal(torch.cat(list(made.tiles(torch.float32))), torch.from_numpy(ROWS).float())


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 200)), max_size=12))
def test_runs_are_cut_without_loss(lengths):
    runs = [(start, start + length) for start, length in lengths]
    tiles = list(columns._tiles(runs, 64))
    assert [i for pieces in tiles for a, b in pieces for i in range(a, b)] == [i for a, b in runs for i in range(a, b)]
    sizes = [sum(b - a for a, b in pieces) for pieces in tiles]
    assert all(size == 64 for size in sizes[:-1])
    assert all(0 < size <= 64 for size in sizes)
