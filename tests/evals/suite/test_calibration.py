"""Calibration against scikit-learn, SciPy, brute force and constructed predictors."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.metrics import brier_score_loss, log_loss

from clipling.errors import UserError
from clipling.evals.suite.calibration import (
    TEMPERATURES,
    Calibration,
    bin_numbers,
    calibration_error,
    expected_error,
    fit_temperature,
    halves,
    picture_scores,
    reliability,
    wilson,
)
from clipling.evals.suite.catalogue import evaluation
from tests.evals.suite.fakes import FakeSubject, labelled_dataset, with_cosines


def drawn(n: int, classes: int, spread: float = 1.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(logits [n, C], labels [n]) where the labels are drawn from softmax(logits): calibrated at temperature 1."""
    rng = np.random.default_rng(seed)
    logits = spread * rng.standard_normal((n, classes))
    cumulative = softmax(logits, axis=1).cumsum(1)
    return logits, np.minimum((rng.random((n, 1)) > cumulative).sum(1), classes - 1)


def brute_force_ece(confidence, right, bins: int) -> float:
    total = 0.0
    for b in range(bins):
        inside = [i for i, c in enumerate(confidence) if b / bins < c <= (b + 1) / bins]
        if inside:
            accuracy = sum(right[i] for i in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy - sum(confidence[i] for i in inside) / len(inside))
    return total


def test_a_perfectly_calibrated_predictor_has_no_error():
    confidence = np.repeat([0.3, 0.6, 0.9], 10)
    right = np.concatenate([np.arange(10) < 10 * p - 0.5 for p in (0.3, 0.6, 0.9)]).astype(float)
    assert calibration_error(confidence, right) == pytest.approx(0, abs=1e-15)
    assert calibration_error(confidence, 1 - right) == pytest.approx((0.4 + 0.2 + 0.8) / 3)


def test_one_bin_is_the_distance_of_accuracy_and_confidence():
    rng = np.random.default_rng(0)
    confidence, right = rng.random(50), rng.integers(0, 2, 50)
    assert calibration_error(confidence, right, 1) == pytest.approx(abs(right.mean() - confidence.mean()))


@given(st.lists(st.tuples(st.floats(0.001, 1.0), st.floats(0, 1)), min_size=1, max_size=40), st.sampled_from([1, 2, 7, 15]))
@settings(max_examples=100, deadline=None)
def test_the_error_equals_a_loop_over_bins(rows, bins):
    confidence, right = np.array(rows).T
    # A confidence within rounding of an edge may fall on either side: k * (1 / bins) is not k / bins.
    if (np.abs(confidence * bins - np.round(confidence * bins)) < 1e-9).any():
        return
    assert calibration_error(confidence, right, bins) == pytest.approx(brute_force_ece(confidence, right, bins), abs=1e-12)


def test_bins_are_closed_above():
    assert bin_numbers(np.array([0.1, 0.25, 0.2500001, 0.5, 0.75, 1.0]), 4).tolist() == [0, 0, 1, 1, 2, 3]


def test_nll_and_brier_equal_scikit_learn():
    logits, labels = drawn(200, 5)
    confidence, nll, brier = picture_scores(logits, labels)
    p = softmax(logits, axis=1)
    assert confidence == pytest.approx(p.max(1))
    assert nll.mean() == pytest.approx(log_loss(labels, p, labels=np.arange(5)))
    assert brier == pytest.approx(((p - np.eye(5)[labels]) ** 2).sum(1))
    two, labels = drawn(200, 2)
    # scikit-learn's score for two classes counts one of them.
    assert picture_scores(two, labels)[2].mean() == pytest.approx(2 * brier_score_loss(labels, softmax(two, axis=1)[:, 1]))


def test_nll_is_finite_for_certain_mistakes():
    _, nll, brier = picture_scores(np.array([[5000.0, 0.0]]), np.array([1]))
    assert nll.tolist() == [5000.0]
    assert brier == pytest.approx([2.0])


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (3, 10), (10, 10), (47, 213)])
def test_wilson_equals_scipy(k, n):
    found = binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert wilson(k / n, n) == pytest.approx((found.low, found.high), abs=1e-12)


def test_the_curve_adds_up():
    rng = np.random.default_rng(1)
    confidence, right = rng.random(100) ** 0.3, rng.integers(0, 2, 100).astype(float)
    curve = reliability(confidence, right, 10)
    count = np.array([point["count"] for point in curve])
    assert count.sum() == 100
    assert (count > 0).all()
    assert count @ [point["accuracy"] for point in curve] == pytest.approx(right.sum())
    assert count @ [point["confidence"] for point in curve] == pytest.approx(confidence.sum())
    error = sum(p["count"] * abs(p["accuracy"] - p["confidence"]) for p in curve) / 100
    assert error == pytest.approx(calibration_error(confidence, right, 10))
    assert all(point["low"] <= point["accuracy"] <= point["high"] for point in curve)


def test_chance_alone_gives_the_expected_error():
    rng = np.random.default_rng(2)
    confidence = rng.uniform(0.2, 1.0, 400)
    errors = [calibration_error(confidence, rng.random(400) < confidence) for _ in range(400)]
    assert np.mean(errors) == pytest.approx(expected_error(confidence), rel=0.04)


def test_the_factor_of_the_logits_is_found_again():
    logits, labels = drawn(20_000, 5)
    assert fit_temperature(logits, labels) == pytest.approx(1.0, rel=0.03)
    assert fit_temperature(3.7 * logits, labels) == pytest.approx(3.7, rel=0.03)


@given(st.integers(0, 1000), st.floats(0.2, 5.0))
@settings(max_examples=20, deadline=None)
def test_the_temperature_scales_with_the_logits_and_minimises_nll(seed, factor):
    logits, labels = drawn(60, 3, seed=seed)
    found = fit_temperature(logits, labels)
    if not TEMPERATURES[0] * 10 < found < TEMPERATURES[1] / 10:
        return
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor * found, rel=1e-6)
    assert fit_temperature(logits + 100.0, labels) == pytest.approx(found, rel=1e-6)

    def nll(t: float) -> float:
        return log_loss(labels, softmax(logits / t, axis=1), labels=[0, 1, 2])

    best = nll(found)
    assert all(best <= nll(found * other) + 1e-12 for other in (0.5, 0.9, 0.999, 1.001, 1.1, 2.0))


def test_temperatures_at_the_ends():
    logits, right = 10 * np.eye(3), np.arange(3)
    assert fit_temperature(logits, right) == TEMPERATURES[0]
    assert fit_temperature(logits, (right + 1) % 3) == TEMPERATURES[1]
    assert fit_temperature(np.full((4, 3), 25.0), np.array([0, 1, 2, 0])) == 1.0


def test_halves_depend_on_keys_alone():
    keys = [f"{i}.png" for i in range(2000)]
    second = halves(keys)
    assert 850 < second.sum() < 1150
    assert (halves(keys[::-1]) == second[::-1]).all()
    # Dataset.sample takes the smallest hashes of keys: the few that begin with a zero byte must not all fall into one half.
    rows = labelled_dataset(2000, 2, keys=keys).sample(6)
    assert 0 < second[rows].sum() < 6


def subject_of(logits: np.ndarray, scale: float = 50.0) -> FakeSubject:
    images, classes = with_cosines((logits - logits.mean(1, keepdims=True)) / scale)
    return FakeSubject(images, class_features=classes, scale=scale)


def test_the_evaluator_against_the_formulas():
    logits, labels = drawn(600, 4)
    logits = 2.0 * logits
    dataset = labelled_dataset(600, 4, labels)
    found = Calibration()(subject_of(logits), dataset)
    p, second = softmax(logits, axis=1), halves(dataset.source.keys)
    right = (logits.argmax(1) == labels).astype(float)
    metrics = found.metrics
    assert metrics["nll"] == pytest.approx(log_loss(labels, p, labels=np.arange(4)), rel=1e-4)
    assert metrics["brier"] == pytest.approx(((p - np.eye(4)[labels]) ** 2).sum(1).mean(), rel=1e-4)
    assert metrics["ece"] == pytest.approx(brute_force_ece(p.max(1), right, 15), abs=1e-5)
    assert metrics["ece_unscaled_half"] == pytest.approx(brute_force_ece(p.max(1)[second], right[second], 15), abs=1e-5)
    t = fit_temperature(logits[~second], labels[~second])
    assert metrics["temperature"] == pytest.approx(t, rel=1e-4)
    scaled = softmax(logits[second] / t, axis=1)
    assert metrics["nll_scaled"] == pytest.approx(log_loss(labels[second], scaled, labels=np.arange(4)), rel=1e-4)
    assert metrics["brier_scaled"] == pytest.approx(((scaled - np.eye(4)[labels[second]]) ** 2).sum(1).mean(), rel=1e-4)
    assert metrics["ece_scaled"] == pytest.approx(brute_force_ece(scaled.max(1), right[second], 15), abs=1e-4)
    assert metrics["ece_scaled"] < metrics["ece_unscaled_half"]
    for name, values in found.items.items():
        assert metrics[name] == values.mean()
    assert sum(point["count"] for point in found.details["curve_scaled"]) == second.sum()
    assert set(metrics) == Calibration.lower | {"temperature"}
    json.dumps([found.details, found.notes], allow_nan=False)


def test_a_temperature_never_changes_which_class_is_first():
    logits, labels = drawn(300, 4)
    cold = Calibration()(subject_of(3 * logits), labelled_dataset(300, 4, labels))
    assert cold.metrics["temperature"] > 1.5
    for curve in ("curve", "curve_scaled"):
        shares = cold.details[curve]
        count = sum(point["count"] for point in shares)
        right = (logits.argmax(1) == labels)[slice(None) if curve == "curve" else halves(labelled_dataset(300).source.keys)]
        assert sum(point["count"] * point["accuracy"] for point in shares) / count == pytest.approx(right.mean())


def test_a_constant_model_is_calibrated_at_chance():
    # All pictures are of the class that argmax would name.
    dataset = labelled_dataset(40, 4, np.zeros(40))
    found = Calibration()(FakeSubject(np.ones((40, 3)), class_features=np.ones((4, 3))), dataset)
    assert found.metrics["ece"] == pytest.approx(0, abs=1e-12)
    assert found.metrics["temperature"] == 1.0
    assert found.metrics["nll"] == pytest.approx(np.log(4))
    assert found.details["curve"][0]["accuracy"] == pytest.approx(0.25)


def test_too_few_pictures_are_skipped():
    assert "half" in Calibration().skipped(labelled_dataset(3, 2))
    assert Calibration().skipped(labelled_dataset(60, 2)) is None
    keys = [key for key in (f"{i}.png" for i in range(100)) if halves([key])[0]]
    assert "holds 0" in Calibration().skipped(labelled_dataset(len(keys), 2, keys=keys))


def test_settings():
    assert evaluation("calibration", {"bins": 5}) == Calibration(5)
    with pytest.raises(UserError, match="bins is 0"):
        evaluation("calibration", {"bins": 0})
