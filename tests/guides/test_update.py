"""A table brought up to date equals the table computed anew, bit for bit. About 5 s."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipling.errors import UserError
from clipling.guides.neighbours import Base, build_table
from clipling.guides.search import ExactSearch
from tests.guides.test_neighbours import awkward, same


def grown(seed: int, count: int, old_share: float = 0.7):
    """A source and an older state of it: (features, rows, links, valid), (the same of the older one), its pairs' present numbers."""
    rng = np.random.default_rng(seed)
    features, rows, links, valid = awkward(count, 12, seed)
    there = np.flatnonzero(rng.random(count) < old_share)
    place = np.full(count, -1)
    place[there] = np.arange(len(there))
    old_rows = place[rows[rng.random(len(rows)) < 0.95]]  # a pair may also have been held out then
    old_links = [[link for link in links[i] if rng.random() < 0.9] for i in there]  # links may come, not go
    return (features, rows, links, valid), (features[there], old_rows[old_rows >= 0], old_links, valid[there]), there


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(20, 160), st.floats(0.0, 1.0), st.integers(1, 5))
def test_equals_the_table_computed_anew(seed, count, share, k):
    now, before, there = grown(seed, count, share)
    if not len(there):
        return
    old = build_table(*before, k)
    assert same(build_table(*now, k, block=37, base=Base(old, there)), build_table(*now, k))


def test_only_what_is_new_is_compared_with_everything(monkeypatch):
    now, before, there = grown(3, 1200, 0.95)
    anew, old = build_table(*now, 4), build_table(*before, 4)
    compared = []
    plain = ExactSearch.top

    def counting(self, queries, pairs, count):
        compared.append(len(queries) * len(self.owner))
        return plain(self, queries, pairs, count)

    monkeypatch.setattr(ExactSearch, "top", counting)
    assert same(build_table(*now, 4, base=Base(old, there)), anew)
    usable = (anew.ids[:, 0] >= 0).sum()
    assert sum(compared) < 0.5 * usable**2


def test_pairs_that_went_or_changed(tmp_path):
    features, rows, links, valid = awkward(300, 12)
    old = build_table(features, rows, links, valid, 4)
    changed = features.copy()
    changed[rows[5:25]] = features[rows[30:50]]
    left = np.delete(np.arange(300), [7, 90, 91])
    kept = np.full(300, -1)
    kept[left] = np.arange(297)
    kept[rows[5:25]] = -1
    place = np.full(300, -1)
    place[left] = np.arange(297)
    new_rows = place[rows][place[rows] >= 0]
    now = (changed[left], new_rows, [links[i] for i in left], valid[left])
    made = build_table(*now, 4, base=Base(old, kept), folder=tmp_path, block=50)
    assert same(made, build_table(*now, 4))
    # it is the table that a later call finds
    said = []
    assert same(build_table(*now, 4, folder=tmp_path, progress=lambda *seen: said.append(seen)), made)
    assert not said


def test_a_neighbour_that_is_held_out_now_or_shares_a_class_now(tmp_path):
    """The pair itself is as it was, and so are the features of both."""
    features, rows, links, valid = awkward(300, 12)
    old = build_table(features, rows, links, valid, 4)
    asked = rows[old.ids[rows, 3] >= 0]
    held_out, linked = old.ids[asked[:40], 0], [list(ids) for ids in links]
    for number, pair in enumerate(asked[100:140].tolist()):
        for member in (pair, int(old.ids[pair, 0])):
            linked[member].append(1000 + number)
    for now in ((np.setdiff1d(rows, held_out), links), (rows, linked)):
        state = (features, *now, valid)
        assert same(build_table(*state, 4, base=Base(old, np.arange(300))), build_table(*state, 4))
        assert not same(build_table(*state, 4), old)


def test_what_cannot_be_brought_up_to_date_is_refused():
    now, before, there = grown(1, 200)
    old = build_table(*before, 4)
    with pytest.raises(UserError, match="cap"):
        Base(build_table(*before, 4, cap=9), there)
    with pytest.raises(UserError, match="another order"):
        Base(old, there[::-1])
    with pytest.raises(UserError, match="holds 4 neighbours"):
        build_table(*now, 5, base=Base(old, there))
    with pytest.raises(UserError, match="only an exact table"):
        build_table(*now, 4, cap=9, base=Base(old, there))
    features, rows, links, valid = now
    moved = -features[:, ::-1]  # the same similarities between old rows would be found ...
    assert same(build_table(moved, rows, links, valid, 4, base=Base(old, there)), build_table(moved, rows, links, valid, 4))
    other = np.roll(features, 1, axis=0)  # ... and others are noticed
    other[~valid] = 0
    other[valid & (other == 0).all(axis=1)] = features[valid][0]
    with pytest.raises(UserError, match="are not those that the older table was made from"):
        build_table(other, rows, links, valid, 4, base=Base(old, there))
