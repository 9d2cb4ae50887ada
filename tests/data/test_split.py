"""The split depends on the images alone and keeps together what belongs together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipling.data.pairs import Location, Pairs, Row, hash_bytes
from clipling.data.split import published_split, split
from clipling.errors import UserError


def pairs_of(images: list[int], groups: list[str] | None = None, extras: list[dict] | None = None) -> Pairs:
    groups, extras = groups or [""] * len(images), extras or [{}] * len(images)
    rows = [Row(f"k{n}", ["c"], Location("x"), groups[n], extras[n]) for n in range(len(images))]
    return Pairs.from_rows("p", rows, [hash_bytes(str(image).encode()) for image in images])


sources = st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["", "", "", "a", "b", "c"])), min_size=1, max_size=60)


def components(rows: list[tuple[int, str]]) -> list[set[int]]:
    """What belongs together, by repeated union of sets."""
    parts: list[set[int]] = []
    for i, (image, group) in enumerate(rows):
        joined = {i}
        for part in list(parts):
            if any(rows[j][0] == image or rows[j][1] == group != "" for j in part):
                parts.remove(part)
                joined |= part
        parts.append(joined)
    return parts


@settings(max_examples=200)
@given(sources, st.floats(0.01, 0.9), st.integers(1, 20), st.randoms(use_true_random=False))
def test_split(rows, fraction, most, random):
    units = components(rows)
    pairs = pairs_of(*map(list, zip(*rows)))
    if len(units) < 2:
        with pytest.raises(UserError, match="nothing can be held out"):
            split(pairs, fraction, most)
        return
    train, val = split(pairs, fraction, most)
    assert train.dtype == val.dtype == np.int64
    assert len(train)
    assert len(val)
    assert sorted([*train, *val]) == list(range(len(rows)))
    assert (np.diff(train) > 0).all()
    assert (np.diff(val) > 0).all()
    for unit in units:
        assert unit <= set(train) or unit <= set(val)
    wanted = min(max(1, round(fraction * len(rows))), most)
    assert len(val) <= max(wanted, min(map(len, units)))
    order = list(range(len(rows)))
    random.shuffle(order)
    _, other = split(pairs.subset(order), fraction, most)
    images = [pairs.hashes[i] for i in val]
    assert sorted(images) == sorted(pairs.hashes[order[i]] for i in other)


def test_sizes_and_stability():
    pairs = pairs_of(list(range(2000)))
    train, val = split(pairs)
    assert (len(train), len(val)) == (1900, 100)
    assert len(split(pairs, 0.9)[1]) == 1000
    _, more = split(pairs, 0.1)
    assert set(val) < set(more)  # a larger share holds out the same images and others
    # Nothing about the order of the rows or their number in a file: about half of the held out lie in each half.
    assert 30 <= (val < 1000).sum() <= 70


def test_large_groups_are_not_favoured():
    groups = [f"g{n % 10}" if n < 1000 else "" for n in range(2000)]
    _, val = split(pairs_of(list(range(2000)), groups), 0.2)
    assert 150 <= (val >= 1000).sum() <= 300
    assert len(val) == 400 or 400 - len(val) < 100


def test_published_split_is_taken():
    names = ["train"] * 6 + ["dev"] * 2 + ["test"] * 2
    pairs = pairs_of(list(range(10)), extras=[{"split": name} for name in names])
    train, val = split(pairs)
    assert (train.tolist(), val.tolist()) == (list(range(6)), [6, 7])
    assert published_split(pairs)["test"].tolist() == [8, 9]
    without = pairs.subset([0, 1, 2, 3, 8, 9])
    train, val = split(without)
    assert sorted([*train, *val]) == [0, 1, 2, 3]
    partly = pairs_of(list(range(10)), extras=[{"split": name} for name in names[:9]] + [{}])
    assert published_split(partly) is None
    assert len(split(partly)[0]) == 9


def test_published_train_rows_that_are_also_held_out_are_left_out(fresh_cache):
    names = ["train"] * 5 + ["val", "test", "test"]
    pairs = pairs_of([0, 1, 2, 3, 4, 1, 6, 2], ["", "", "", "g", "h", "", "g", ""], [{"split": name} for name in names])
    for _ in range(2):
        train, val = split(pairs)
        assert (train.tolist(), val.tolist()) == ([0, 4], [5])
        assert train.dtype == np.int64
        assert pairs.problems.counts() == {"also held out": 3}
    assert [problem.where for problem in pairs.problems] == ["k1", "k2", "k3"]
    assert "k3" in pairs.problems.list_file().read_text()
    with pytest.raises(UserError, match="every train pair"):
        split(pairs_of([0, 1, 0, 1], extras=[{"split": name} for name in ("train", "train", "test", "test")]))


@pytest.mark.parametrize(("names", "found"), [(["test"] * 3, "has 3 test and no train"), (["val", "test", "test"], "1 val, 2 test")])
def test_a_published_split_without_train_says_so(names, found):
    with pytest.raises(UserError, match=found):
        split(pairs_of([1, 2, 3], extras=[{"split": name} for name in names]))


def test_nothing_to_hold_out():
    for pairs in (pairs_of([1, 1, 1]), pairs_of([1, 2, 3], ["g"] * 3), pairs_of([])):
        with pytest.raises(UserError, match="held out"):
            split(pairs)
    for fraction in (0, 1, -1, 2):
        with pytest.raises(UserError, match="between 0 and 1"):
            split(pairs_of([1, 2]), fraction)
