"""Recall against brute force, CLIP_benchmark's own formula, and models that know nothing."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipling.evals.retrieval import Ranks, nearest, ranks, recall, retrieval, units


def unit_rows(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    rows = rng.standard_normal((count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def expected_hits(scores: np.ndarray, right: np.ndarray, k: int) -> float:
    """By listing every order of tied candidates: the share of orders with a right one among the first k."""
    levels = [np.flatnonzero(scores == value) for value in sorted(set(scores), reverse=True)]
    good = Fraction(0)
    total = Fraction(0)
    for orders in itertools.product(*(itertools.permutations(level) for level in levels)):
        order = list(itertools.chain(*orders))[:k]
        good += bool(right[order].any())
        total += 1
    return float(good / total)


@st.composite
def tied_problem(draw):
    """Small sets of integer-valued features in one dimension: cosines are few, so ties are common."""
    pairs = draw(st.integers(1, 4))
    captions = draw(st.lists(st.integers(1, 2), min_size=pairs, max_size=pairs))
    total = sum(captions)
    image = draw(st.lists(st.integers(-1, 1), min_size=pairs, max_size=pairs))
    text = draw(st.lists(st.integers(-1, 1), min_size=total, max_size=total))
    groups = draw(st.lists(st.sampled_from(["", "", "a", "b"]), min_size=pairs, max_size=pairs))
    return image, text, captions, groups


@settings(max_examples=60, deadline=None)
@given(tied_problem(), st.integers(1, 4))
def test_recall_equals_all_orders_of_ties(problem, k):
    image, text, captions, groups = problem
    offsets = np.concatenate([[0], np.cumsum(captions)])
    owner = np.repeat(np.arange(len(image)), captions)
    scores = np.outer(image, text)

    def right(i: int, t: int) -> bool:
        return owner[t] == i or (groups[i] != "" and groups[i] == groups[owner[t]])

    match = np.array([[right(i, t) for t in range(len(text))] for i in range(len(image))])
    found = recall(np.array(image)[:, None], np.array(text)[:, None], offsets, ks=(k,), positives=groups)
    i2t = np.mean([expected_hits(scores[i], match[i], k) for i in range(len(image))])
    t2i = np.mean([expected_hits(scores[:, t], match[:, t], k) for t in range(len(text))])
    assert found[f"i2t_recall@{k}"] == pytest.approx(i2t, abs=1e-12)
    assert found[f"t2i_recall@{k}"] == pytest.approx(t2i, abs=1e-12)


def benchmark_recall(image: torch.Tensor, text: torch.Tensor, owner: torch.Tensor, k: int) -> tuple[float, float]:
    """CLIP_benchmark's definition: at least one true positive among the top k, averaged over queries."""
    scores = text @ image.T
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(text)), owner] = True

    def hit(s: torch.Tensor, p: torch.Tensor) -> float:
        return p.gather(1, s.topk(k, dim=1).indices).any(1).double().mean().item()

    return hit(scores.T, positive.T), hit(scores, positive)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_recall_equals_clip_benchmark(k):
    rng = np.random.default_rng(0)
    captions = rng.integers(1, 6, size=120)
    owner = np.repeat(np.arange(120), captions)
    image = unit_rows(rng, 120, 16)
    text = image[owner] + 0.35 * rng.standard_normal((len(owner), 16)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    offsets = np.concatenate([[0], np.cumsum(captions)])
    found = recall(image, text, offsets)
    i2t, t2i = benchmark_recall(*map(torch.from_numpy, (image, text, owner)), k)
    assert (found[f"i2t_recall@{k}"], found[f"t2i_recall@{k}"]) == pytest.approx((i2t, t2i), abs=1e-9)
    assert 0.05 < found["t2i_recall@1"] < 0.95, "the problem must be neither trivial nor hopeless"


@pytest.mark.parametrize("captions", [1, 5])
def test_a_model_that_gives_all_inputs_one_feature_scores_k_of_p(captions):
    pairs, k = 60, 5
    image, text = np.ones((pairs, 4)) / 2, np.ones((pairs * captions, 4)) / 2
    image += np.random.default_rng(0).uniform(-1e-8, 1e-8, image.shape)  # fp32 noise must not decide
    found = recall(image, text, np.arange(pairs + 1) * captions, ks=(k,))
    assert found["t2i_recall@5"] == pytest.approx(k / pairs)
    missed = np.prod([(pairs * captions - captions - i) / (pairs * captions - i) for i in range(k)])
    assert found["i2t_recall@5"] == pytest.approx(1 - missed)
    assert found["i2t_recall@5"] == pytest.approx(k / pairs, rel=0.2)


def test_drawings_of_one_concept_answer_each_other():
    image = np.eye(4)[[0, 1, 2, 3]]
    text = np.eye(4)[[1, 0, 3, 2]]  # each caption is nearest to the other drawing of its concept
    offsets = np.arange(5)
    assert recall(image, text, offsets, ks=(1,))["t2i_recall@1"] == 0
    grouped = recall(image, text, offsets, ks=(1,), positives=["dog", "dog", "", ""])
    assert grouped == {"i2t_recall@1": 0.5, "t2i_recall@1": 0.5}


def test_blocks_do_not_change_ranks():
    rng = np.random.default_rng(1)
    queries, candidates = unit_rows(rng, 50, 8), unit_rows(rng, 70, 8)
    candidates[40:60] = candidates[:20]
    classes = rng.integers(0, 30, 50), rng.integers(0, 30, 70)
    whole = ranks(queries, candidates, *classes)
    for block in (1, 7, 50):
        parts = ranks(queries, candidates, *classes, block=block)
        for name in ("ahead", "tied", "own"):
            np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


def test_features_that_are_not_finite_find_nothing():
    rng = np.random.default_rng(2)
    image = unit_rows(rng, 20, 8)
    broken = image.copy()
    broken[3] = np.nan
    assert recall(image, image, np.arange(21), ks=(1,))["i2t_recall@1"] == 1
    found = recall(broken, image, np.arange(21), ks=(1,))
    assert found["i2t_recall@1"] == pytest.approx(19 / 20)
    assert found["t2i_recall@1"] == pytest.approx(19 / 20)
    nothing = recall(np.full_like(image, np.nan), image, np.arange(21), ks=(1,))
    assert set(nothing.values()) == {0.0}


def test_images_without_captions_are_candidates_only():
    image, text = np.eye(3), np.eye(3)[[0, 2]]
    found = retrieval(image, text, [0, 1, 1, 2])
    assert found.recall((1,)) == {"i2t_recall@1": 1.0, "t2i_recall@1": 1.0}
    assert len(found.hits("i2t_recall@1")[0]) == 2
    assert np.isnan(found.i2t.expected()[1])


def test_expected_rank_is_the_mean_over_orders():
    found = Ranks(np.array([2]), np.array([3]), np.array([2]))
    places = [min(o.index("a"), o.index("b")) + 3 for o in itertools.permutations("abxyz")]
    assert found.expected()[0] == pytest.approx(np.mean(places))


def test_nearest_equals_sorting():
    rng = np.random.default_rng(3)
    queries, candidates = unit_rows(rng, 3, 8), unit_rows(rng, 30, 8)
    ids, cosines = nearest(queries, candidates, 5)
    scores = queries.astype(np.float64) @ candidates.T.astype(np.float64)
    np.testing.assert_array_equal(ids, np.argsort(-scores, axis=1)[:, :5])
    np.testing.assert_allclose(cosines, -np.sort(-scores, axis=1)[:, :5])


@pytest.mark.parametrize("offsets", [[0, 1], [0, 2, 1], [1, 2, 3], [0, 1, 4]])
def test_wrong_offsets_are_refused(offsets):
    with pytest.raises(ValueError, match="offsets"):
        recall(np.eye(2), np.eye(3)[:, :2], offsets)


def test_units_join_groups_only():
    np.testing.assert_array_equal(units(["", "a", "", "a"], 4), [0, 1, 2, 1])
    with pytest.raises(ValueError, match="3 groups for 4"):
        units(["", "", ""], 4)
