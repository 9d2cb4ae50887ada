"""nDCG, reciprocal rank, recall and coverage against all orders of ties, scikit-learn, other evaluation packages and closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, ndcg_score

from clipling.evals.ranking import coverage, first_relevant, gains, label_hits, ndcg, reciprocal_rank
from clipling.evals.retrieval import TIE, ranks


def by_hand(order: tuple[int, ...], worth: list[float], grades: list[int], k: int) -> dict[str, float]:
    """Every measure of one order, straight from its definition."""
    ideal = sum(w / math.log2(i + 2) for i, w in enumerate(sorted(worth, reverse=True)[:k]))
    first = next((i for i, p in enumerate(order) if grades[p]), None)
    return {
        "ndcg": sum(worth[p] / math.log2(i + 2) for i, p in enumerate(order[:k])) / ideal,
        "rr": 1 / (first + 1),
        "recall": float(first < k),
        "coverage": sum(grades[p] > 0 for p in order[:k]) / sum(g > 0 for g in grades),
    }


def over_orders(scores: list[int], worth: list[float], grades: list[int], k: int) -> dict[str, float]:
    """The means over all orders in which scores fall."""
    orders = [o for o in itertools.permutations(range(len(scores))) if all(scores[a] >= scores[b] for a, b in itertools.pairwise(o))]
    found = [by_hand(order, worth, grades, k) for order in orders]
    return {name: sum(f[name] for f in found) / len(found) for name in found[0]}


@st.composite
def graded_problem(draw):
    size = draw(st.integers(1, 6))
    grades = draw(st.lists(st.integers(0, 3), min_size=size, max_size=size).filter(any))
    return draw(st.lists(st.integers(0, 3), min_size=size, max_size=size)), grades, draw(st.integers(1, 7))


@settings(max_examples=80, deadline=None)
@given(graded_problem(), st.sampled_from(["exponential", "linear"]))
def test_ties_are_the_mean_over_all_orders(problem, gain):
    scores, grades, k = problem
    table, worth = np.array([grades]), gains(np.array([grades]), gain)
    expected = over_orders(scores, worth[0].tolist(), grades, k)
    cosines = np.array([scores], dtype=np.float64)
    first = first_relevant(cosines, table > 0)
    assert ndcg(cosines, worth, k)[0] == pytest.approx(expected["ndcg"], abs=1e-12)
    assert reciprocal_rank(first)[0] == pytest.approx(expected["rr"], abs=1e-12)
    assert first.hits(k)[0] == pytest.approx(expected["recall"], abs=1e-12)
    assert coverage(cosines, table > 0, k)[0] == pytest.approx(expected["coverage"], abs=1e-12)


@pytest.mark.parametrize("levels", [4, 1000])
@pytest.mark.parametrize("k", [1, 5, 10, 60])
def test_linear_ndcg_equals_scikit_learn_with_and_without_ties(levels, k):
    rng = np.random.default_rng(0)
    scores = rng.integers(0, levels, (20, 50)).astype(np.float64)
    grades = rng.choice([0, 1, 2, 5], p=[0.7, 0.1, 0.1, 0.1], size=scores.shape)
    own = ndcg(scores, gains(grades, "linear"), k)
    assert own.mean() == pytest.approx(ndcg_score(grades, scores, k=k), abs=1e-12)
    # scikit-learn takes gains as they are, so it checks the exponential ones too.
    worth = gains(grades, "exponential")
    np.testing.assert_array_equal(worth, np.choose(np.searchsorted([0, 1, 2, 5], grades), [0, 1, 3, 31]))
    assert ndcg(scores, worth, k).mean() == pytest.approx(ndcg_score(worth, scores, k=k), abs=1e-12)


# Made with ranx 0.3.21 (ndcg, ndcg_burges, mrr, hit_rate, recall) and, the same but for ndcg_burges, of which gdeval prints five
# digits, ir-measures 0.4.3 with pytrec_eval-terrier 0.5.11 (nDCG, nDCG(dcg="exp-log2"), RR, Success, R).
GOLDEN = {
    "linear": 0.29578818860781425,
    "exponential": 0.29153442661279,
    "mrr": 0.5154761904761905,
    "recall@1": 0.42857142857142855,
    "recall@5": 0.7142857142857143,
    "recall@10": 0.8571428571428571,
    "coverage": 0.33265306122448973,
}


def test_measures_equal_ranx_and_ir_measures():
    queries, pictures = np.array([q for q in range(8) if q != 5])[:, None], np.arange(40)[None, :]  # query 5 has no answer
    scores = ((7 * queries + 3) * (pictures + 1) * 37 % 101) / 101  # no two of a row are equal
    grades = np.array([0, 1, 0, 2, 0, 3, 0])[(queries + 2) * (pictures**2 + 1) % 7] * ((pictures * 5 + queries) % 3 == 0)
    assert (grades > 0).sum(1).tolist() == [4, 5, 7, 10, 4, 10, 3]
    first = first_relevant(scores, grades > 0)
    found = {
        "linear": ndcg(scores, gains(grades, "linear"), 10).mean(),
        "exponential": ndcg(scores, gains(grades, "exponential"), 10).mean(),
        "mrr": reciprocal_rank(first).mean(),
        **{f"recall@{k}": first.hits(k).mean() for k in (1, 5, 10)},
        "coverage": coverage(scores, grades > 0, 10).mean(),
    }
    assert found == pytest.approx(GOLDEN, abs=1e-12)


def test_a_model_that_knows_nothing_scores_chance():
    scores, relevant = np.full((1, 1000), 0.3), np.zeros((1, 1000), dtype=bool)
    relevant[0, 17] = True
    first = first_relevant(scores, relevant)
    assert first.hits(10)[0] == pytest.approx(0.01)
    assert reciprocal_rank(first)[0] == pytest.approx(sum(1 / i for i in range(1, 1001)) / 1000)
    assert ndcg(scores, relevant, 10)[0] == pytest.approx(sum(1 / math.log2(i + 2) for i in range(10)) / 1000)
    assert coverage(scores, relevant, 10)[0] == pytest.approx(0.01)


def test_differences_of_rounding_are_ties_and_chains_of_them_are_not():
    near = np.array([[0.5, 0.5 + 0.9 * TIE]])
    assert ndcg(near, np.array([[1.0, 0.0]]), 2)[0] == pytest.approx((1 + 1 / math.log2(3)) / 2)
    assert ndcg(near, np.array([[1.0, 0.0]]), 1)[0] == pytest.approx(1 / 2), "a tie that begins in the first k and ends behind them"
    # Five scores, each within a tie of the next, span four ties: the last is not tied with the first.
    chain = 0.5 - 0.9 * TIE * np.arange(5)[None, :]
    worth = np.array([[0.0, 0, 0, 0, 1]])
    assert ndcg(chain, worth, 1)[0] == 0.0
    assert coverage(chain, worth > 0, 2)[0] == 0.0


def test_first_relevant_equals_retrieval_where_both_apply():
    rng = np.random.default_rng(3)
    queries, candidates = rng.integers(-1, 2, (30, 3)).astype(np.float64), rng.integers(-1, 2, (40, 3)).astype(np.float64)
    mine, theirs = rng.integers(0, 5, 30), rng.integers(0, 4, 40)  # class 4 has no candidate
    own = first_relevant(queries @ candidates.T, mine[:, None] == theirs[None, :])
    other = ranks(queries, candidates, mine, theirs)
    for name in ("ahead", "tied", "own"):
        np.testing.assert_array_equal(getattr(own, name), getattr(other, name))
    assert (own.tied > 0).any()
    assert (own.own == 0).any()


def test_what_is_not_finite_is_found_last():
    scores, relevant = np.array([[np.nan, 0.1, 0.2]]), np.array([[True, False, False]])
    assert reciprocal_rank(first_relevant(scores, relevant))[0] == pytest.approx(1 / 3)
    assert ndcg(scores, relevant, 2)[0] == 0.0
    assert ndcg(scores, relevant, 3)[0] == pytest.approx(0.5)


def test_a_query_without_an_answer():
    scores, nothing = np.array([[0.3, 0.1]]), np.zeros((1, 2), dtype=bool)
    assert np.isnan(ndcg(scores, nothing, 2)[0])
    assert np.isnan(coverage(scores, nothing, 2)[0])
    assert reciprocal_rank(first_relevant(scores, nothing))[0] == 0.0
    assert first_relevant(scores, nothing).hits(2)[0] == 0.0


def test_gains_are_named():
    with pytest.raises(ValueError, match="exponential or linear"):
        gains(np.array([1]), "square")
    np.testing.assert_array_equal(gains(np.array([0, 1, 2, 10])), [0, 1, 3, 1023])
    assert np.isfinite(gains(np.array([1000])) * 1e6).all()


def test_label_hits_are_accuracy_with_fair_ties():
    rng = np.random.default_rng(5)
    scores, labels = rng.standard_normal((200, 6)), rng.integers(0, 6, 200)
    assert label_hits(scores, labels).mean() == pytest.approx(accuracy_score(labels, scores.argmax(1)))
    np.testing.assert_allclose(label_hits(np.ones((3, 4)), [0, 1, 3]), 0.25)
    np.testing.assert_allclose(label_hits(np.array([[1.0, 1.0, 0.0]] * 3), [0, 2, -1]), [0.5, 0.0, 0.0])
