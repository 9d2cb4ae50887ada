"""Zero-shot metrics against scikit-learn, and prompt ensembles against the formula."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score

from clipling.errors import UserError
from clipling.evals.zeroshot import class_features, prompts, zero_shot


def problem(classes: int = 12, images: int = 300):
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((classes, 10))
    labels = rng.choice(classes, size=images, p=rng.dirichlet(np.ones(classes)))
    features = weights[labels] + 2.0 * rng.standard_normal((images, 10))
    features, weights = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (features, weights))
    return features, weights, labels


def test_metrics_equal_scikit_learn():
    features, weights, labels = problem()
    found = zero_shot(features, labels, weights)
    scores = features @ weights.T
    assert found["acc1"] == pytest.approx(accuracy_score(labels, scores.argmax(1)))
    assert found["acc5"] == pytest.approx(top_k_accuracy_score(labels, scores, k=5, labels=np.arange(12)))
    assert found["mean_per_class_recall"] == pytest.approx(balanced_accuracy_score(labels, scores.argmax(1)))
    assert found["acc1"] != pytest.approx(found["mean_per_class_recall"], abs=1e-3), "classes must be unbalanced"


def test_a_constant_model_scores_chance():
    labels = np.array([0] * 90 + [1] * 10)
    found = zero_shot(np.ones((100, 3)), labels, np.ones((4, 3)))
    assert found == {"acc1": pytest.approx(0.25), "mean_per_class_recall": pytest.approx(0.25)}


def test_classes_without_pictures_do_not_count():
    found = zero_shot(np.eye(3)[[0, 0, 1]], [0, 0, 1], np.eye(3))
    assert found["mean_per_class_recall"] == 1


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 3], [0, 1, -1]])
def test_labels_that_do_not_fit_are_refused(labels):
    with pytest.raises(ValueError, match=r"labels|classes"):
        zero_shot(np.eye(3), labels, np.eye(3))


class Words:
    """Encodes a text by the letters it holds, not normalised."""

    def encode_texts_in_batches(self, texts):
        return np.array([[text.count(letter) + 0.1 for letter in "abcdefgh"] for text in texts])


def test_class_features_are_normalised_means_of_normalised_prompts():
    names, templates = ["bead", "cage"], ["a {c}", "{c}, a face", "{}"]
    found = class_features(Words(), names, templates)
    for row, name in zip(found, names):
        rows = Words().encode_texts_in_batches([f"a {name}", f"{name}, a face", name])
        mean = np.mean([r / np.sqrt((r**2).sum()) for r in rows], axis=0)
        np.testing.assert_allclose(row, mean / np.sqrt((mean**2).sum()), rtol=1e-6)


def test_prompts_with_braces_in_names_and_templates_without_a_place():
    assert prompts(["{c}x", "y"], ["a {c}."]) == ["a {c}x.", "a y."]
    with pytest.raises(UserError, match="no place for the class name"):
        prompts(["y"], ["a photo"])
    with pytest.raises(UserError, match="class names and templates"):
        class_features(Words(), [], ["{c}"])
