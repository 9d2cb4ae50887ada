"""Rocchio's formula, computed by loops, and what it does to a ranking."""

from __future__ import annotations

import math

import numpy as np
import pytest

from clipling.deploy.search.refine import refined


def unit(*values):
    length = math.sqrt(sum(v * v for v in values))
    return np.asarray([v / length for v in values], np.float32)


def by_hand(asked, liked, disliked):
    total = []
    for i in range(len((asked or liked)[0])):
        value = 0.0
        for weight, group in ((1.0, asked), (0.75, liked), (-0.15, disliked)):
            value += weight * sum(float(v[i]) for v in group) / len(group) if group else 0.0
        total.append(value)
    length = math.sqrt(sum(v * v for v in total))
    return [v / length for v in total]


A, B, C, D = unit(1, 2, 3), unit(-1, 1, 0), unit(0, 1, 5), unit(2, 0, 1)


@pytest.mark.parametrize(
    ("asked", "liked", "disliked"),
    [([A], [], []), ([A], [B], []), ([A], [], [C]), ([A], [B, C], [D]), ([], [B, D], [C]), ([A, B], [C, D, D], [B])],
)
def test_the_formula(asked, liked, disliked):
    found = refined(asked, liked, disliked)
    assert found == pytest.approx(by_hand(asked, liked, disliked), abs=1e-6)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)


def test_nothing_asked_for():
    with pytest.raises(ValueError, match="needs a text"):
        refined([], [], [C])


def test_no_direction():
    with pytest.raises(ValueError, match="cancel"):
        refined([A, -A], [], [])


def test_a_liked_result_comes_nearer_and_a_disliked_one_goes_away():
    before, liked, disliked = refined([A], [], []), refined([A], [B], []), refined([A], [], [C])
    assert liked @ B > before @ B
    assert disliked @ C < before @ C
