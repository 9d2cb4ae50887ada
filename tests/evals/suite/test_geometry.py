import json
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from clipling.errors import UserError
from clipling.evals.suite import geometry
from clipling.evals.suite.geometry import Geometry, effective_rank, hub_share, occurrences, skewness, spectrum, uniformity
from tests.evals.suite.fakes import FakeSubject, labelled_dataset, pairs_dataset, unit


def rows(count: int, width: int, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(count, width))).astype(np.float64)


def rotation(width: int, seed: int = 1) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]


def pairs_of(*counts: int):
    return pairs_dataset([[f"caption {i} {j}" for j in range(n)] for i, n in enumerate(counts)])


# Uniformity


def test_uniformity_of_two_points():
    assert uniformity(np.array([[1.0, 0.0], [0.0, 1.0]])) == pytest.approx(-4.0)  # squared distance 2
    assert uniformity(np.array([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-8.0)


def test_uniformity_of_orthonormal_and_of_equal_rows():
    assert uniformity(np.eye(7)) == pytest.approx(-4.0)
    assert uniformity(np.tile(rows(1, 5), (6, 1))) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("block_bytes", [1, 8 * 23 * 5, 1 << 20])
def test_uniformity_in_blocks_is_that_of_all_pairs(monkeypatch, block_bytes):
    x = rows(23, 6)
    monkeypatch.setattr(geometry, "_BLOCK_BYTES", block_bytes)
    every = [math.exp(-2 * float(((x[i] - x[j]) ** 2).sum())) for i in range(23) for j in range(i)]
    assert uniformity(x) == pytest.approx(math.log(sum(every) / len(every)), abs=1e-12)


def test_uniformity_of_many_random_directions_is_near_its_limit():
    # On the sphere of many dimensions squared distances are 2 + small noise of variance 4 / d: log E exp(-4 + 4 c) with c ~ N(0, 1/d).
    assert uniformity(rows(600, 128)) == pytest.approx(-4 + 16 / (2 * 128), abs=0.02)


# Spectrum and effective rank


def test_effective_rank_of_orthonormal_rows():
    # Centred, n orthonormal rows span n - 1 equal directions.
    values = spectrum(np.eye(8)[:5])
    assert values == pytest.approx([0.25] * 4)
    assert effective_rank(values) == pytest.approx(4.0)


def test_effective_rank_of_opposite_axes_is_the_number_of_axes():
    assert effective_rank(spectrum(np.vstack([np.eye(6), -np.eye(6)]))) == pytest.approx(6.0)


def test_effective_rank_of_unequal_directions():
    x = np.array([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    p = np.array([0.75, 0.25])
    assert spectrum(x) == pytest.approx(p)
    assert effective_rank(spectrum(x)) == pytest.approx(math.exp(-(p * np.log(p)).sum()))


@pytest.mark.parametrize("shape", [(40, 6), (6, 40), (12, 12)])
def test_spectrum_is_that_of_the_svd(shape):
    x = rows(*shape)
    singular = np.linalg.svd(x - x.mean(0), compute_uv=False)
    singular = singular[singular > 1e-9]
    assert spectrum(x) == pytest.approx(singular / singular.sum(), rel=1e-9)


def test_a_collapsed_model_has_no_rank_though_fp32_rounds():
    same = np.tile(rows(1, 16), (20, 1))
    noise = 1e-7 * np.random.default_rng(0).normal(size=same.shape)
    for x in (same, same + noise):
        assert effective_rank(spectrum(x)) == 0.0


# Hubness


def brute_occurrences(queries: np.ndarray, candidates: np.ndarray, k: int) -> np.ndarray:
    found = np.zeros(len(candidates))
    for q in queries:
        for c in sorted(range(len(candidates)), key=lambda c: -float(q @ candidates[c]))[:k]:
            found[c] += 1
    return found


@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_occurrences_and_skewness_are_those_of_brute_force(monkeypatch, k, block_bytes):
    monkeypatch.setattr(geometry, "_BLOCK_BYTES", block_bytes)
    queries, candidates = rows(31, 5), rows(24, 5, seed=1)
    found, expected = occurrences(queries, candidates, k), brute_occurrences(queries, candidates, k)
    assert found == pytest.approx(expected)
    assert found.sum() == pytest.approx(31 * k)
    assert skewness(found) == pytest.approx(scipy.stats.skew(expected))


def test_ties_share_the_last_places():
    queries = np.array([[1.0, 0.0]])
    candidates = np.array([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8], [0.6, 0.8], [0.0, 1.0], [0.0, -1.0]])
    assert occurrences(queries, candidates, 3) == pytest.approx([1, 2 / 3, 2 / 3, 2 / 3, 0, 0])
    assert occurrences(queries, candidates, 1) == pytest.approx([1, 0, 0, 0, 0, 0])


def test_a_constant_model_has_no_hubs():
    same = np.tile(rows(1, 4), (200, 1))
    found = occurrences(same, same, 10)
    assert found == pytest.approx(np.full(200, 10.0))
    assert skewness(found) == 0.0
    assert hub_share(occurrences(same, same, 1)) == pytest.approx(0.01)


def test_one_hub_that_answers_all():
    # k-occurrence of a single hub among C: Bernoulli(1/C) scaled, whose skewness is (1 - 2p) / sqrt(p (1 - p)).
    candidates = np.vstack([[1.0, 0.0], np.tile([[0.0, 1.0]], (49, 1))])
    found = occurrences(np.tile([[1.0, 0.0]], (30, 1)), candidates, 1)
    p = 1 / 50
    assert skewness(found) == pytest.approx((1 - 2 * p) / math.sqrt(p * (1 - p)))
    assert hub_share(found) == 1.0


def test_hub_share_takes_one_percent_of_the_candidates():
    nearest = np.array([50.0, 30.0, 20.0] + [0.0] * 197)  # 200 candidates: the two most frequent
    assert hub_share(nearest) == pytest.approx(0.8)
    assert hub_share(np.array([1.0, 3.0])) == pytest.approx(0.75)  # at least one


def test_at_most_half_of_the_candidates_are_neighbours():
    candidates = rows(6, 4)
    assert occurrences(rows(9, 4, seed=2), candidates, 10).sum() == pytest.approx(9 * 3)


# The evaluator


def test_pairs_by_brute_force():
    dataset = pairs_of(*[2, 1, 3] * 10)
    image, text = rows(30, 8), rows(60, 8, seed=3)
    found = Geometry(k=4)(FakeSubject(image, text), dataset)
    owner = np.repeat(np.arange(30), [2, 1, 3] * 10)
    apart = [float(np.linalg.norm(image[i] - text[t]) ** 2) for t, i in enumerate(owner)]
    expected = {
        "modality_gap": np.linalg.norm(image.mean(0) - text.mean(0)),
        "alignment": np.mean(apart),
        "uniformity_image": uniformity(image),
        "uniformity_text": uniformity(text),
        "effective_rank_image": effective_rank(spectrum(image)),
        "effective_rank_text": effective_rank(spectrum(text)),
        "hubness_skew_image": scipy.stats.skew(brute_occurrences(text, image, 4)),
        "hubness_skew_text": scipy.stats.skew(brute_occurrences(image, text, 4)),
        "hub_share_image": brute_occurrences(text, image, 1).max() / 60,
    }
    assert found.metrics == pytest.approx(expected)
    assert found.items["alignment"] == pytest.approx(apart)
    assert found.items["alignment"].mean() == found.metrics["alignment"]
    assert found.units["alignment"].tolist() == owner.tolist()
    assert sum(found.details["occurrence_image"]["counts"]) == 30
    assert sum(found.details["spectrum_image"]) == pytest.approx(1.0)
    assert (found.details["pictures"], found.details["texts"]) == (30, 60)
    assert all(type(value) is float for value in found.metrics.values())
    json.dumps(found.details, allow_nan=False)


def test_perfectly_aligned_pairs_have_no_gap():
    image = rows(12, 6)
    found = Geometry()(FakeSubject(image, image), pairs_of(*[1] * 12)).metrics
    assert (found["modality_gap"], found["alignment"]) == pytest.approx((0.0, 0.0))
    assert found["uniformity_image"] == found["uniformity_text"]


def test_two_cones_have_their_known_gap():
    image, text = np.tile([[1.0, 0.0]], (4, 1)), np.tile([[0.0, 1.0]], (4, 1))
    found = Geometry()(FakeSubject(image, text), pairs_of(1, 1, 1, 1)).metrics
    assert found["modality_gap"] == pytest.approx(math.sqrt(2))
    assert found["alignment"] == pytest.approx(2.0)
    assert found["hubness_skew_image"] == found["effective_rank_text"] == 0.0


def test_classes_are_the_texts_of_labelled_pictures():
    labels = [0, 0, 1, 2, 1, 0]
    image, classes = rows(6, 5), rows(3, 5, seed=4)
    found = Geometry()(FakeSubject(image, class_features=classes), labelled_dataset(6, 3, labels))
    assert found.metrics["alignment"] == pytest.approx(((image - classes[labels]) ** 2).sum(1).mean())
    assert found.metrics["modality_gap"] == pytest.approx(np.linalg.norm(image.mean(0) - classes.mean(0)))
    assert "hub_share_image" not in found.metrics
    assert any("fewer texts" in note for note in found.notes)
    assert any("2 at most" in note for note in found.notes)
    assert found.details["k_text"] == 1


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_rotating_both_modalities_changes_nothing(seed):
    image, text, turn = rows(14, 6, seed), rows(20, 6, seed + 1), rotation(6, seed + 2)
    dataset = pairs_of(*[1, 2] * 6, 1, 1)
    plain = Geometry(k=3)(FakeSubject(image, text), dataset).metrics
    turned = Geometry(k=3)(FakeSubject(image @ turn, text @ turn), dataset).metrics
    assert turned == pytest.approx(plain, abs=1e-5)


def test_a_sample_reads_only_its_pictures_and_says_so():
    dataset = pairs_of(*[2] * 20)
    image = rows(20, 4)
    texts = dict(zip(dataset.pairs.captions, rows(40, 4, seed=5)))
    subject = FakeSubject(image, texts)
    found = Geometry(sample=7)(subject, dataset)
    chosen = dataset.sample(7)
    assert subject.asked[0][2] == chosen.tolist()
    assert subject.asked[1][1] == [c for i in chosen for c in dataset.pairs.captions_of(int(i))]
    assert found.units["alignment"].tolist() == np.repeat(chosen, 2).tolist()
    assert found.metrics["uniformity_image"] == pytest.approx(uniformity(image[chosen]), abs=1e-6)
    assert any("7 of 20" in note for note in found.notes)


def test_what_has_no_shape_is_skipped():
    assert Geometry().skipped(pairs_of(1, 1)) is None
    assert Geometry().skipped(labelled_dataset(4)) is None
    assert "too few" in Geometry().skipped(pairs_of(3))
    assert "too few" in Geometry().skipped(labelled_dataset(3, 1))
    assert "no captions" in Geometry().skipped(pairs_of(0, 0))


def test_bad_settings_are_named():
    with pytest.raises(UserError, match="sample is 1"):
        Geometry(sample=1)
    with pytest.raises(UserError, match="k is 0"):
        Geometry(k=0)
    assert TypeAdapter(Geometry).validate_python({"sample": None, "k": 5}) == Geometry(None, 5)
