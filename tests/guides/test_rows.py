"""Rows over shards: gather, join order, centring, means."""

from __future__ import annotations

import numpy as np
import pytest

from clipling.errors import UserError
from clipling.guides import rows as rows_module
from clipling.guides.rows import Rows, save_array, segment_means, unit
from tests.guides.making import unit_rows


def sharded(array: np.ndarray, per_shard: int) -> Rows:
    return Rows([array[i : i + per_shard] for i in range(0, len(array), per_shard)], per_shard)


@pytest.mark.parametrize("per_shard", [1, 7, 50, 64])
def test_shards_look_like_one_array(per_shard):
    array = unit_rows(50, 6)
    rows = sharded(array, per_shard)
    numbers = np.array([49, 0, 3, 3, 17])
    assert rows.shape == (50, 6)
    assert rows.dtype == np.float16
    assert len(rows) == 50
    assert np.array_equal(rows[numbers], array[numbers])
    assert np.array_equal(rows[10:20], array[10:20])
    index = np.random.default_rng(0).permutation(50)[:30]
    assert np.array_equal(rows.at(index)[:], array[index])
    assert np.array_equal(rows.at(index).at(numbers % 30)[:], array[index[numbers % 30]])
    assert rows[np.zeros(0, np.int64)].shape == (0, 6)
    with pytest.raises(IndexError):
        rows[[-1]]
    with pytest.raises(IndexError):
        rows[[50]]


def test_centring_subtracts_the_mean_of_the_training_rows_only():
    array = unit_rows(60, 8, dtype=np.float32) + np.float32(2)
    array = unit(array).astype(np.float16)
    array[[4, 50]] = 0
    train = np.arange(40)
    rows = sharded(array, 16)
    rows = rows.less(rows.mean(train))
    exact = array.astype(np.float64)
    centre = exact[np.setdiff1d(train, [4])].mean(0)
    expected = exact - centre
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    expected[[4, 50]] = 0
    np.testing.assert_allclose(rows[:].astype(float), expected, atol=6e-4)
    assert (rows[[4, 50]] == 0).all()
    # the rows that are held out do not matter
    array[45:] = unit_rows(15, 8, 9)
    other = sharded(array, 16)
    assert np.array_equal(other.less(other.mean(train))[train], rows[train])
    # what is stored in other company, and what a query gets, are the same bits
    assert np.array_equal(rows[[7]], rows[:][[7]])
    assert np.array_equal(rows.prepared(array[:9]), rows[:9])
    assert np.array_equal(rows.at(np.array([7, 3]))[:], rows[[7, 3]])
    assert np.array_equal(sharded(array, 9).at(np.array([7, 3])).less(rows.centre.mean)[:], rows[[7, 3]])
    assert np.array_equal(rows.uncentred[:], array)


def test_means_of_captions(monkeypatch):
    array = unit_rows(23, 5)
    array[8:10] = 0
    offsets = np.array([0, 3, 3, 8, 10, 22, 23])
    for at_once in (1, 2, 8192):
        monkeypatch.setattr(rows_module, "AT_ONCE", at_once)
        means = segment_means(sharded(array, 4), offsets)
        for i in range(6):
            part = array[offsets[i] : offsets[i + 1]].astype(np.float64).sum(0)
            expected = part / np.linalg.norm(part) if part.any() else np.zeros(5)
            np.testing.assert_allclose(means[i].astype(float), expected, atol=5e-4)
        assert not means[1].any()
        assert not means[3].any()


def test_files(tmp_path):
    array = unit_rows(10, 4)
    save_array(tmp_path / "a.npy", array)
    assert np.array_equal(np.load(tmp_path / "a.npy"), array)
    save_array(tmp_path / "flags.npy", np.array([True, False]))
    assert np.load(tmp_path / "flags.npy").tolist() == [True, False]
    assert np.array_equal(Rows.open([tmp_path / "a.npy"])[:], array)
    (tmp_path / "a.npy").write_bytes(b"cut")
    with pytest.raises(UserError, match="damaged"):
        Rows.open([tmp_path / "a.npy"])
    with pytest.raises(UserError, match=r"b\.npy is missing"):
        Rows.open([tmp_path / "b.npy"])
