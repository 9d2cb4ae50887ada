"""The random control keeps in-degrees and cuts the tie between a pair and its neighbours."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from clipling.guides.control import derangement, random_tables
from clipling.guides.hubness import in_degrees
from clipling.guides.neighbours import build_table
from tests.guides.making import unit_rows


def tables(count: int, links, seed: int = 0, owner=None):
    valid = np.ones(count, bool)
    valid[count // 2] = False
    image, text = unit_rows(count, 6, seed), unit_rows(count if owner is None else len(owner), 5, seed + 1)
    rows = np.arange(count)
    return [build_table(image, rows, links, valid, 3), build_table(text, rows, links, valid, 3, owner=owner)]


def some_links(count: int):
    return [[i // 3] if i % 2 else [] for i in range(count)]


def test_in_degrees_are_kept_and_nobody_meets_itself():
    count = 200
    links = some_links(count)
    true = tables(count, links)
    offsets = np.arange(count + 1)
    made, left = random_tables(true, offsets, links, seed=3)
    assert left == {"forbidden": 0}
    for one, other in zip(true, made):
        assert np.array_equal(in_degrees(one.ids, count), in_degrees(other.ids, count))
        assert (other.ids[count // 2] == -1).all()
        moved = (one.ids != other.ids).any(axis=1)
        assert moved.mean() > 0.95
        for pair in range(count):
            for neighbour in other.ids[pair].tolist():
                assert neighbour != pair
                assert neighbour < 0 or not set(links[pair]) & set(links[neighbour])
    # both spaces come from the same other pair
    place = {row.tobytes(): i for i, row in enumerate(true[0].ids)}
    source = [place[row.tobytes()] for row in made[0].ids]
    assert np.array_equal(true[1].ids[source][np.arange(count) != count // 2], made[1].ids[np.arange(count) != count // 2])
    again, _ = random_tables(true, offsets, links, seed=3)
    other_seed, _ = random_tables(true, offsets, links, seed=4)
    assert np.array_equal(again[0].ids, made[0].ids)
    assert not np.array_equal(other_seed[0].ids, made[0].ids)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 30))
def test_a_derangement_is_a_permutation_without_fixed_points(seed, count):
    rng = np.random.default_rng(seed)
    ids = np.stack([np.r_[rng.choice([j for j in range(count) if j != i], 1), -1] for i in range(count)])
    ids[rng.random(count) < 0.1] = -1
    source, left = derangement([ids], [[] for _ in range(count)], seed)
    active = ids[:, 0] >= 0
    assert sorted(source.tolist()) == list(range(count))
    assert np.array_equal(source[~active], np.flatnonzero(~active))
    met = (ids[source] == np.arange(count)[:, None]).any(axis=1) & active
    fixed = (source == np.arange(count)) & active
    if active.sum() >= 2:
        assert not fixed.any()
        assert met.sum() == left
    if active.sum() > 8:
        assert left == 0  # with one neighbour each there is room to avoid it


def test_where_it_cannot_be_avoided_it_is_counted():
    source, left = derangement([np.array([[1], [0]])], [[], []], 0)
    assert source.tolist() == [1, 0]
    assert left == 2


def test_tables_by_caption_go_along():
    count = 30
    owner = np.repeat(np.arange(count), 2)
    links = [[] for _ in range(count)]
    true = tables(count, links, owner=owner)
    made, left = random_tables(true, np.arange(0, 61, 2), links, seed=0)
    assert left == {"forbidden": 0}
    assert np.array_equal(in_degrees(true[1].ids, count), in_degrees(made[1].ids, count))
    assert (made[1].ids != owner[:, None]).all()
