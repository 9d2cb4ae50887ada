"""Out-of-distribution detection against brute force over couples and thresholds."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from clipling.errors import UserError
from clipling.evals.suite.catalogue import evaluation
from clipling.evals.suite.outside import Outside, auroc, fpr_at, inside_scores, log_odds
from tests.evals.suite.fakes import FakeSubject, labelled_dataset, pairs_dataset, unit

few = st.lists(st.integers(-5, 5), min_size=1, max_size=25)


def couples(inside, outside) -> float:
    return float(np.mean([(a > b) + 0.5 * (a == b) for a in inside for b in outside]))


def sweep(inside, outside) -> float:
    """The smallest share of outside pictures that passes a threshold which 95 % of the inside ones pass."""
    passing = []
    for threshold in {*inside, *outside}:
        true = sum(a >= threshold for a in inside)
        if 100 * true >= 95 * len(inside):
            passing.append(sum(b >= threshold for b in outside) / len(outside))
    return min(passing)


@given(few, few)
@settings(max_examples=100, deadline=None)
def test_both_numbers_equal_brute_force(inside, outside):
    inside, outside = np.array(inside, float), np.array(outside, float)
    assert auroc(inside, outside) == pytest.approx(couples(inside, outside))
    assert fpr_at(inside, outside) == pytest.approx(sweep(inside, outside))


@given(few, few)
@settings(max_examples=20, deadline=None)
def test_monotone_maps_change_nothing_and_sides_mirror(inside, outside):
    inside, outside = np.array(inside, float), np.array(outside, float)
    for bend in (np.exp, np.arctan, lambda x: 3 * x - 7):
        assert auroc(bend(inside), bend(outside)) == auroc(inside, outside)
        assert fpr_at(bend(inside), bend(outside)) == fpr_at(inside, outside)
    assert auroc(outside, inside) == pytest.approx(1 - auroc(inside, outside))
    assert auroc(inside, inside) == pytest.approx(0.5)


def test_exactly_95_of_100_is_enough():
    inside = np.arange(100.0)  # 95 of them are at least 5
    assert fpr_at(inside, np.array([4.5, 4.9, 5.0, 6.0])) == 0.5
    assert fpr_at(np.zeros(3), np.zeros(4)) == 1.0


def test_no_pictures_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        auroc(np.zeros(3), np.zeros(0))


def test_log_odds_are_of_the_largest_probability_and_do_not_saturate():
    logits = np.random.default_rng(0).standard_normal((50, 6)) * 3
    p = softmax(logits, axis=1).max(1)
    assert log_odds(logits) == pytest.approx(np.log(p / (1 - p)))
    sure = np.array([[100.0, 0.0], [200.0, 0.0]])  # both have probability 1 in fp64
    assert log_odds(sure) == pytest.approx([100.0, 200.0])
    assert log_odds(np.array([[3.0, 3.0, 3.0]])) == pytest.approx(np.log(0.5))


def test_the_scores_against_their_formulas():
    rng = np.random.default_rng(1)
    images, classes = unit(rng.standard_normal((30, 8))), unit(rng.standard_normal((4, 8)))
    scores = inside_scores(images, classes, 20.0)
    cosines = images.astype(float) @ classes.astype(float).T
    for name, scale in (("probability", 20.0), ("mcm", 1.0)):
        p = softmax(scale * cosines, axis=1).max(1)
        assert 1 / (1 + np.exp(-scores[name])) == pytest.approx(p, abs=1e-5)
    assert scores["logit"] == pytest.approx(cosines.max(1), abs=1e-6)


def split_sets(seed: int = 0):
    """Inside pictures near their class, two outside sets: one of noise, one as the inside."""
    rng = np.random.default_rng(seed)
    classes = np.eye(3, 8)
    near = classes[np.arange(60) % 3] + 0.25 * rng.standard_normal((60, 8))
    alike = classes[np.arange(45) % 3] + 0.25 * rng.standard_normal((45, 8))
    far = rng.standard_normal((80, 8))
    # The second set brings captions: only its pictures are read.
    outside = (labelled_dataset(80, 2, name="noise"), pairs_dataset(["a picture"] * 45, name="alike"))
    dataset = labelled_dataset(60, 3, name="inside", outside=outside)
    return dataset, FakeSubject({"inside": near, "noise": far, "alike": alike}, class_features=classes, scale=10.0)


def test_the_evaluator():
    dataset, subject = split_sets()
    found = Outside()(subject, dataset)
    metrics = found.metrics
    features = {name: unit(rows).astype(float) @ np.eye(8, 3) for name, rows in subject.image_features.items()}
    p = {name: softmax(10 * cosines, axis=1).max(1) for name, cosines in features.items()}
    for name in ("noise", "alike"):
        assert metrics[f"auroc@{name}"] == pytest.approx(couples(p["inside"], p[name]), abs=1e-3)
        assert metrics[f"fpr95@{name}"] == pytest.approx(sweep(p["inside"], p[name]))
        assert metrics[f"auroc_logit@{name}"] == pytest.approx(couples(features["inside"].max(1), features[name].max(1)), abs=1e-3)
        assert metrics[f"fpr95_logit@{name}"] == pytest.approx(sweep(features["inside"].max(1), features[name].max(1)))
    assert metrics["auroc@noise"] > 0.9 > 0.65 > metrics["auroc@alike"] > 0.35
    for name in ("auroc", "fpr95", "auroc_logit", "fpr95_logit"):
        assert metrics[name] == pytest.approx((metrics[f"{name}@noise"] + metrics[f"{name}@alike"]) / 2)
    first = found.details["sets"][0]
    assert (first["name"], first["pictures"], first["auroc"]) == ("noise", 80, metrics["auroc@noise"])
    histogram = first["histogram"]
    assert histogram["inside"] == pytest.approx(np.histogram(p["inside"], histogram["edges"])[0] / 60)
    assert sum(histogram["outside"]) == pytest.approx(1)
    assert "60 pictures of inside" in found.notes[0]
    assert "80 pictures of noise" in found.notes[1]
    json.dumps([found.details, found.notes], allow_nan=False)


def test_pictures_that_are_also_inside_are_left_out():
    dataset, subject = split_sets()
    hashes = [*dataset.hashes[:5], *dataset.outside[0].hashes[5:]]
    other = labelled_dataset(80, 2, name="noise", hashes=hashes)
    mixed = labelled_dataset(60, 3, name="inside", outside=(other,))
    found = Outside()(subject, mixed)
    assert found.details["sets"][0]["pictures"] == 75
    assert "; 5 more are also inside" in found.notes[1]
    assert subject.asked[-1][1:3] == ("noise", list(range(5, 80)))
    same = labelled_dataset(60, 3, name="inside", outside=(labelled_dataset(60, 3, name="again", hashes=mixed.hashes),))
    with pytest.raises(UserError, match="all 60 pictures of the outside set again"):
        Outside()(subject, same)


def test_the_sample_bounds_every_set():
    dataset, subject = split_sets()
    Outside(sample=20)(subject, dataset)
    assert [len(rows) for _, _, rows, _ in subject.asked] == [20, 20, 20]


def test_differences_of_rounding_tell_nothing():
    rows = unit(np.random.default_rng(0).standard_normal((1, 16)))
    classes = unit(np.random.default_rng(1).standard_normal((3, 16)))
    inside, outside = (inside_scores(np.tile(r, (20, 1)), classes, 100.0) for r in (rows, rows * np.float32(1 + 1e-7)))
    assert (rows * np.float32(1 + 1e-7) != rows).any()
    assert [auroc(inside[name], outside[name]) for name in inside] == [0.5, 0.5, 0.5]


def test_a_constant_model_tells_nothing():
    rows = np.ones(37) / 3
    outside = labelled_dataset(500, 2, name="other")
    dataset = labelled_dataset(60, 3, name="inside", outside=(outside,))
    subject = FakeSubject({"inside": np.tile(rows, (60, 1)), "other": np.tile(rows, (500, 1))}, class_features=np.eye(3, 37) + 0.1)
    metrics = Outside()(subject, dataset).metrics
    assert {metrics[name] for name in ("auroc", "auroc_logit", "auroc_mcm")} == {0.5}


def test_what_is_skipped_and_refused():
    dataset, subject = split_sets()
    assert "outside" in Outside().skipped(labelled_dataset(10, 2))
    assert "one class" in Outside().skipped(labelled_dataset(10, 1, outside=dataset.outside))
    assert Outside().skipped(dataset) is None
    twice = labelled_dataset(60, 3, name="inside", outside=(dataset.outside[0], dataset.outside[0]))
    with pytest.raises(UserError, match="one name"):
        Outside()(subject, twice)
    assert evaluation("outside", {"sample": None}) == Outside(None)
    with pytest.raises(UserError, match="sample is 0"):
        evaluation("outside", {"sample": 0})
