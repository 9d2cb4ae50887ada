"""Stateless randomness: the published splitmix64 sequence, independence, uniformity, permutations."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipling.data import draw


def test_mix_is_the_published_splitmix64():
    # The first five outputs for seed 1234567, as listed by the authors' reference program.
    states = (1234567 + np.arange(1, 6, dtype=object) * draw.GOLDEN) & draw.MASK
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert draw.mix(states.astype(np.uint64)).tolist() == expected


def _plain_mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & draw.MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & draw.MASK
    return x ^ (x >> 31)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 10**6), st.lists(st.integers(0, 2**40), max_size=5))
def test_uniform_equals_plain_python(seed, epoch, pairs):
    key = draw._key(seed, "caption")
    state = _plain_mix((key + (epoch + 1) * draw.GOLDEN) & draw.MASK)
    expected = [(_plain_mix((state + (p + 1) * draw.GOLDEN) & draw.MASK) >> 11) / 2**53 for p in pairs]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = draw.uniform(seed, epoch, np.array(pairs, dtype=np.int64), "caption")
    assert drawn.tolist() == expected


FROZEN_ORDER = [4, 2, 5, 0, 7, 3, 1, 6]
FROZEN_INTEGERS = [1, 3, 3, 3, 1, 0]


def test_values_never_change():
    # Frozen: a change here would change every run that is resumed with a newer version.
    assert draw.order(0, 0, 8).tolist() == FROZEN_ORDER
    assert draw.integers(7, 3, np.arange(6), "caption", 5).tolist() == FROZEN_INTEGERS


def test_rows_do_not_depend_on_their_company():
    pairs = np.arange(1000)
    whole = draw.uniform(3, 2, pairs, "x")
    shuffled = np.random.default_rng(0).permutation(1000)
    assert np.array_equal(draw.uniform(3, 2, shuffled, "x"), whole[shuffled])
    epochs = np.arange(4)
    one_each = [draw.uniform(3, int(e), 17, "x")[0] for e in epochs]
    assert draw.uniform(3, epochs, np.full(4, 17), "x").tolist() == one_each


def test_streams_seeds_and_epochs_are_independent_and_uniform():
    pairs = np.arange(20_000)
    columns = [
        draw.uniform(seed, epoch, pairs, stream) for seed in (0, 1) for epoch in (0, 1, 2) for stream in ("caption", "flip", 0, 1, "0")
    ]
    correlation = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlation).max() < 5 / np.sqrt(len(pairs))
    for column in columns:
        assert column.min() >= 0
        assert column.max() < 1
        counts, _ = np.histogram(column, bins=20, range=(0, 1))
        assert ((counts - 1000) ** 2 / 1000).sum() < 60  # chi-square with 19 degrees of freedom
        assert abs(np.corrcoef(column[:-1], column[1:])[0, 1]) < 5 / np.sqrt(len(pairs))


@given(st.integers(0, 2**31), st.integers(0, 1000), st.integers(1, 300))
def test_order_is_a_permutation(seed, epoch, count):
    assert sorted(draw.order(seed, epoch, count).tolist()) == list(range(count))


def test_orders_differ_and_place_every_row_everywhere():
    places = np.stack([np.argsort(draw.order(5, epoch, 10)) for epoch in range(3000)])
    for row in range(10):
        counts = np.bincount(places[:, row], minlength=10)
        assert ((counts - 300) ** 2 / 300).sum() < 40  # chi-square with 9 degrees of freedom


@given(st.integers(0, 100), st.lists(st.integers(1, 2**62), min_size=1, max_size=20))
def test_integers_stay_below_their_own_high(seed, high):
    drawn = draw.integers(seed, 0, np.arange(len(high)), "k", np.array(high))
    assert drawn.dtype == np.int64
    assert ((drawn >= 0) & (drawn < np.array(high))).all()


def test_integers_cover_all_values():
    counts = np.bincount(draw.integers(0, 0, np.arange(30_000), "k", 3), minlength=3)
    assert np.abs(counts - 10_000).max() < 500
    with pytest.raises(ValueError, match="high"):
        draw.integers(0, 0, np.arange(3), "k", np.array([1, 0, 2]))
