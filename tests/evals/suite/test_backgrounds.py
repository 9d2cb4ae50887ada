"""The CounterAnimal protocol against closed forms, and regression to the mean where it must show."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipling.errors import UserError
from clipling.evals.suite.backgrounds import Backgrounds, Cells, Drops, discover_groups, group_accuracies
from clipling.evals.suite.calibration import halves
from clipling.evals.suite.catalogue import evaluation
from tests.evals.suite.fakes import FakeSubject, labelled_dataset

FIRST, SECOND = ([f"{i}.png" for i in range(4000) if halves([f"{i}.png"])[0] == half] for half in (False, True))


def problem(cells: dict[tuple[int, str], tuple[list[int], list[int]]], classes: int = 2):
    """A dataset and a subject whose guesses are written down.

    cells: by (class, group) the classes that are guessed in the first half of the pictures and in the second.
    """
    keys, labels, groups, guesses = [], [], [], []
    free = [iter(FIRST), iter(SECOND)]
    for (label, group), by_half in cells.items():
        for half, some in enumerate(by_half):
            keys += [next(free[half]) for _ in some]
            labels += [label] * len(some)
            groups += [group] * len(some)
            guesses += some
    dataset = labelled_dataset(len(keys), classes, labels, keys=keys, groups=groups)
    return dataset, FakeSubject(np.eye(classes)[guesses], class_features=np.eye(classes))


def guessed(right: int, count: int, label: int, other: int) -> list[int]:
    return [label] * right + [other] * (count - right)


def test_discovery():
    acc = np.array([[0.9, 0.2, 0.5], [0.9, 0.2, 0.5], [1.0, 0.0, 0.5], [0.7, 0.7, 0.7]])
    n = np.array([[9, 9, 9], [9, 4, 9], [9, 2, 1], [9, 9, 9]])
    common, counter = discover_groups(acc, n, 5)
    assert common.tolist() == [0, 0, -1, 0]
    assert counter.tolist() == [1, 2, -1, 2]


@given(st.integers(0, 10_000), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_discovery_equals_a_loop(seed, groups):
    rng = np.random.default_rng(seed)
    acc, n = rng.integers(0, 4, (3, groups)) / 3, rng.integers(0, 9, (3, groups))
    common, counter = discover_groups(acc, n, 4)
    for c in range(3):
        allowed = [g for g in range(groups) if n[c, g] >= 4]
        if len(allowed) < 2:
            assert (common[c], counter[c]) == (-1, -1)
            continue
        assert common[c] != counter[c]
        assert {common[c], counter[c]} <= set(allowed)
        assert acc[c, common[c]] == max(acc[c, g] for g in allowed)
        assert acc[c, counter[c]] == min(acc[c, g] for g in allowed)


def test_an_oracle_of_the_background():
    """It names the class that is most common before a background: right on the common group, wrong on the counter group."""
    cells = {(0, "snow"): 20, (0, "grass"): 6, (1, "grass"): 15, (1, "snow"): 5}
    named = {"snow": 0, "grass": 1}
    dataset, subject = problem({(c, g): ([named[g]] * n, [named[g]] * n) for (c, g), n in cells.items()})
    found = Backgrounds()(subject, dataset)
    assert found.metrics == {"common": 1, "counter": 0, "gap": 1, "worst_gap": 1, "gap_same_half": 1}
    assert found.details["gap_interval"] == [1, 1]
    assert found.details["classes"] == [
        {"name": "class 0", "gap": 1, "common": 1, "common_group": "snow", "common_count": 40,
         "counter": 0, "counter_group": "grass", "counter_count": 12},
        {"name": "class 1", "gap": 1, "common": 1, "common_group": "grass", "common_count": 30,
         "counter": 0, "counter_group": "snow", "counter_count": 10},
    ]  # fmt: skip


def test_both_directions_by_hand():
    # Class 0: the first half finds (a, b), the second finds (c, a). Class 1: both find (a, b).
    dataset, subject = problem(
        {
            (0, "a"): (guessed(10, 10, 0, 1), guessed(2, 10, 0, 1)),
            (0, "b"): (guessed(1, 10, 0, 1), guessed(5, 10, 0, 1)),
            (0, "c"): (guessed(4, 10, 0, 1), guessed(18, 20, 0, 1)),
            (1, "a"): (guessed(8, 10, 1, 0), guessed(9, 10, 1, 0)),
            (1, "b"): (guessed(6, 10, 1, 0), guessed(4, 10, 1, 0)),
        }
    )
    found = Backgrounds()(subject, dataset)
    # Class 0: found on the first, scored on the second: .2 - .5; the other way round: .4 - 1. Class 1: .9 - .4 and .8 - .6.
    rows = {row["name"]: row for row in found.details["classes"]}
    first, second = rows["class 0"], rows["class 1"]
    assert (first["common"], first["counter"]) == pytest.approx(((0.2 + 0.4) / 2, (0.5 + 1.0) / 2))
    assert (first["common_group"], first["counter_group"]) == ("a / c", "b / a")
    assert (first["common_count"], first["counter_count"]) == (20, 20)
    assert (second["common"], second["counter"], second["gap"]) == pytest.approx((0.85, 0.5, 0.35))
    assert found.metrics == pytest.approx(
        {
            "common": (0.3 + 0.85) / 2,
            "counter": (0.75 + 0.5) / 2,
            "gap": (-0.45 + 0.35) / 2,
            "worst_gap": 0.35,
            "gap_same_half": ((0.9 + 0.7) / 2 + (0.2 + 0.5) / 2) / 2,
        }
    )
    low, high = found.details["gap_interval"]
    assert low < found.metrics["gap"] < high
    # Independent cells of ten: the interval must be near that of the normal distribution.
    p = [0.2, 0.5, 0.4, 1.0, 0.9, 0.4, 0.8, 0.6]
    deviation = np.sqrt(sum(q * (1 - q) / 10 for q in p)) / 4
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.1)
    json.dumps([found.details, found.notes], allow_nan=False)


def test_shuffled_groups_have_no_gap_unless_discovered_on_the_same_pictures():
    rng = np.random.default_rng(0)
    labels, group, second = np.repeat(np.arange(4), 80), np.tile(np.arange(4), 80), np.repeat(np.tile([0, 1], 40), 4)
    hits = (rng.random(320) < 0.6).astype(float)
    gaps, same = [], []
    for _ in range(150):
        drops = Drops.of(Cells.of(hits, labels, rng.permutation(group), rng.permutation(second), (4, 4)), 3)
        gaps.append(drops.gap.mean())
        same.append(drops.same.mean())
    error = np.std(gaps) / np.sqrt(len(gaps))
    assert abs(np.mean(gaps)) < 4 * error < 0.05
    assert np.mean(same) > 0.2


@given(st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_the_same_half_is_never_the_smaller_gap(seed):
    rng = np.random.default_rng(seed)
    n, shape = 120, (3, 3)
    second = rng.integers(0, 2, n)
    cells = Cells.of(rng.random(n), rng.integers(0, 3, n), rng.integers(-1, 3, n), second, shape)
    drops = Drops.of(cells, 2)
    if len(drops.classes):
        assert (drops.same.mean(0) >= drops.gap - 1e-12).all()


def test_group_accuracies_give_the_overall_one():
    rng = np.random.default_rng(0)
    hits, groups = rng.random(200), rng.choice(["", "snow", "grass", "sand"], 200)
    rows = group_accuracies(hits, groups.tolist())
    assert [row["group"] for row in rows] == ["", "grass", "sand", "snow"]
    assert sum(row["count"] for row in rows) == 200
    assert sum(row["accuracy"] * row["count"] for row in rows) / 200 == pytest.approx(hits.mean())
    assert rows[3]["accuracy"] == pytest.approx(hits[groups == "snow"].mean())


def test_small_groups_and_pictures_without_a_group_are_left_out():
    dataset, subject = problem(
        {
            (0, "a"): ([0] * 5, [0] * 5),
            (0, "b"): ([1] * 5, [1] * 5),
            (0, "c"): ([0] * 40, [1] * 4),  # four in the second half: too few
            (0, ""): ([0] * 9, [0] * 9),
            (1, "a"): ([1] * 9, [1] * 9),
            (2, "a"): ([2] * 9, [2] * 4),
            (2, "b"): ([2] * 9, [2] * 9),
        },
        classes=4,
    )
    found = Backgrounds()(subject, dataset)
    named = [(row["name"], row["common_group"], row["counter_group"]) for row in found.details["classes"]]
    assert named == [("class 0", "a", "b")]
    assert found.metrics["gap"] == 1
    assert "2 of 3 classes" in found.notes[1]
    assert "18 of" in found.notes[2]
    assert len(Backgrounds(least=4)(subject, dataset).details["classes"]) == 2


def test_ties_are_chance():
    dataset, _ = problem({(c, g): ([0] * 6, [0] * 6) for c in (0, 1) for g in "ab"})
    found = Backgrounds()(FakeSubject(np.ones((len(dataset), 2)), class_features=np.ones((2, 2))), dataset)
    assert (found.metrics["common"], found.metrics["counter"], found.metrics["gap_same_half"]) == (0.5, 0.5, 0)


def test_what_is_skipped_and_refused():
    assert "names no groups" in Backgrounds().skipped(labelled_dataset(10, 2))
    for groups in ([""] * 60, ["snow"] * 60, [str(i) for i in range(60)]):
        assert "no class has two groups" in Backgrounds().skipped(labelled_dataset(60, 2, groups=groups))
    assert Backgrounds().skipped(labelled_dataset(60, 1, groups=["a", "b"] * 30)) is None
    with pytest.raises(UserError, match="60 pictures and 3 groups"):
        Backgrounds().skipped(labelled_dataset(60, 2, groups=["a", "b", "a"]))
    assert evaluation("backgrounds", {"least": 3}) == Backgrounds(3)
    with pytest.raises(UserError, match="least is 0"):
        evaluation("backgrounds", {"least": 0})
