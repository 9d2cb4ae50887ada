"""Hubs: counted right, and capped by the one stable assignment."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from clipling.guides.hubness import capped, hubness, in_degrees
from clipling.guides.neighbours import build_table
from tests.guides.making import unit_rows


def test_a_hub_is_found():
    ids = np.array([[3, 1], [3, 0], [3, -1], [0, 1], [-1, -1]])
    found = hubness(ids, np.array([0, 1, 2, 3]), 5)
    assert found["largest"] == 3
    assert found["hub"] == 3
    assert found["first"] == 3
    assert found["mean"] == 7 / 4
    assert found["never"] == 0.25
    assert found["short"] == 1


def greedy(ids, sims, k, cap):
    """The same assignment by its other definition: edges from the nearest to the farthest, taken while both ends have room."""
    edges = [(-sims[q, s], q, int(ids[q, s])) for q in range(len(ids)) for s in range(ids.shape[1]) if ids[q, s] >= 0]
    room, taken = dict.fromkeys((t for _, _, t in edges), cap), [[] for _ in ids]
    for _, query, target in sorted(edges):
        if len(taken[query]) < k and room[target]:
            taken[query].append(target)
            room[target] -= 1
    return taken


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 25), st.integers(1, 4), st.integers(0, 3))
def test_the_cap_gives_the_stable_assignment(seed, count, k, slack):
    """With one similarity for both ends, as here, deferred acceptance and the greedy choice must agree."""
    rng = np.random.default_rng(seed)
    depth = int(rng.integers(k, count + k))
    ids = np.stack([np.r_[rng.permutation(count)[:depth], np.full(max(0, depth - count), -1)] for _ in range(count)])
    sims = -np.sort(-rng.random(ids.shape), axis=1)  # all different, so the assignment is unique
    sims[ids < 0] = -np.inf
    cap = k + slack
    found, near = capped(ids, sims, k, cap)
    assert in_degrees(found, count).max() <= cap
    assert [[t for t in row if t >= 0] for row in found.tolist()] == greedy(ids, sims, k, cap)
    for query in range(count):
        for target, sim in zip(found[query], near[query]):
            assert (sim == -np.inf) if target < 0 else sim == sims[query, ids[query].tolist().index(target)]


def test_ties_in_the_cap_go_to_the_smaller_query():
    ids, sims = np.array([[9, 8], [9, 8], [9, 7]]), np.full((3, 2), 0.5)
    found, _ = capped(ids, sims, 1, 1)
    assert found.tolist() == [[9], [8], [7]]


def test_a_capped_table():
    features = unit_rows(400, 3, 1)
    features[0] = 0
    hub = unit_rows(1, 3, 2)[0]
    features[200:] = (features[200:] * 0.3 + hub).astype(np.float16)
    features = features.astype(np.float32)
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-6)
    valid, rows, links = np.arange(400) > 0, np.arange(400), [[] for _ in range(400)]
    free = build_table(features, rows, links, valid, 3)
    cap = build_table(features, rows, links, valid, 3, cap=5, block=50)
    assert free.hubness["largest"] > 5 >= cap.hubness["largest"]
    assert cap.info["cap"] == 5
    assert (cap.ids != np.arange(400)[:, None]).all()
    assert (cap.ids[0] == -1).all()
    kept = (cap.ids >= 0).sum(axis=1)
    assert kept.max() == 3
    assert cap.hubness["short"] == int((kept[1:] < 3).sum())
    # a cap that binds nobody changes nothing
    loose = build_table(features, rows, links, valid, 3, cap=400)
    assert np.array_equal(loose.ids, free.ids)
    assert np.array_equal(loose.sims, free.sims)
