"""kNN against a vote counted by hand and against scikit-learn called directly."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from sklearn.metrics import accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from clipling.errors import UserError
from clipling.evals.suite.halves import halves, share
from clipling.evals.suite.knn import KNN, similarity_weights
from tests.evals.suite.fakes import FakeSubject, labelled_dataset, unit


def blobs(n: int = 200, classes: int = 3, width: int = 6, noise: float = 0.9):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, classes, n)
    return labelled_dataset(n, classes, labels), unit(np.eye(classes, width)[labels] + noise * rng.standard_normal((n, width)))


def voted(train: np.ndarray, labels: np.ndarray, test: np.ndarray, truth: np.ndarray, k: int, temperature: float | None) -> np.ndarray:
    """Hits by hand: votes of the k most similar, the best class taken, ties shared."""
    hits = []
    for row, wanted in zip(test.astype(np.float64), truth):
        cosines = train.astype(np.float64) @ row
        nearest = np.argsort(-cosines)[:k]
        votes = np.zeros(labels.max() + 1)
        for i in nearest:
            votes[labels[i]] += 1.0 if temperature is None else np.exp(cosines[i] / temperature)
        best = np.flatnonzero(votes >= votes.max() * (1 - 1e-9))
        hits.append(1 / len(best) if wanted in best else 0.0)
    return np.array(hits)


@pytest.mark.parametrize(("weights", "temperature"), [("uniform", None), ("similarity", 0.07), ("similarity", 0.5)])
@pytest.mark.parametrize("k", [1, 4, 15])
def test_equals_a_vote_by_hand(weights, temperature, k):
    dataset, features = blobs()
    labels, first = dataset.labelled.labels, halves(dataset.source.keys)
    given = {} if temperature in (None, 0.07) else {"temperature": temperature}
    found = KNN(ks=(k,), weights=weights, **given)(FakeSubject(features), dataset)
    expected = voted(features[first], labels[first], features[~first], labels[~first], k, temperature)
    np.testing.assert_allclose(found.items["knn_acc1"], expected, atol=1e-12)
    assert found.metrics == pytest.approx({"knn_acc1": expected.mean(), "k": k})
    if weights == "uniform" and k == 4:
        assert ((expected > 0) & (expected < 1)).any(), "some votes must be tied"


def test_k_is_chosen_on_a_fifth_of_the_first_half():
    dataset, features = blobs(400, noise=0.6)
    labels, first = dataset.labelled.labels, halves(dataset.source.keys)
    inner = np.zeros(len(labels), dtype=bool)
    inner[first] = share(np.array(dataset.source.keys)[first], 0.2, "choice")
    fit, ks = first & ~inner, (1, 3, 25)

    def direct(k, a, b):
        model = KNeighborsClassifier(k, weights=similarity_weights(0.07), metric="cosine", algorithm="brute")
        return accuracy_score(labels[b], model.fit(features[a], labels[a]).predict(features[b]))

    tried = [direct(k, fit, inner) for k in ks]
    assert len(set(tried)) > 1, "the choice must matter"
    best = ks[int(np.argmax(tried))]
    found = KNN(ks=ks)(FakeSubject(features), dataset)
    assert found.metrics == pytest.approx({"knn_acc1": direct(best, first, ~first), "k": best})
    assert found.details == {
        "tried": [{"k": k, "acc1": pytest.approx(a)} for k, a in zip(ks, tried)],
        "train": int(first.sum()),
        "test": int((~first).sum()),
    }


def test_k_above_the_pictures_is_passed_over():
    dataset, features = blobs(60)
    found = KNN(ks=(1, 3, 500))(FakeSubject(features), dataset)
    assert [row["k"] for row in found.details["tried"]] == [1, 3]
    assert any("passed over" in note for note in found.notes)
    with pytest.raises(UserError, match="every one of ks"):
        KNN(ks=(500,))(FakeSubject(features), dataset)


def test_weights_neither_overflow_nor_vanish():
    distances = np.array([[0.2, 0.3], [1.9, 2.0]])
    weights = similarity_weights(1e-4)(distances)
    np.testing.assert_allclose(weights, [[1, 0], [1, 0]], atol=1e-300)
    ratio = similarity_weights(0.07)(distances)
    np.testing.assert_allclose(ratio[:, 0] / ratio[:, 1], np.exp(0.1 / 0.07))


def test_a_model_that_knows_nothing_is_no_better_than_the_commonest_class():
    dataset = labelled_dataset(200, 4)
    found = KNN(ks=(1, 200), weights="uniform")(FakeSubject(np.ones((200, 3))), dataset)
    tested = dataset.labelled.labels[~halves(dataset.source.keys)]
    assert found.metrics["knn_acc1"] <= np.bincount(tested).max() / len(tested) + 1e-9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ks": ()}, "ks are"),
        ({"ks": (5, 1)}, "rising"),
        ({"ks": (0, 1)}, "ks are"),
        ({"weights": "uniform", "temperature": 0.1}, "no temperature"),
        ({"temperature": 0.0}, "above 0"),
        ({"sample": 0}, "sample is"),
        ({"train_classes": "x"}, "no train"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        KNN(**settings)


def test_settings_come_from_a_mapping():
    assert TypeAdapter(KNN).validate_python({"ks": [1, 2], "weights": "uniform"}) == KNN(ks=(1, 2), weights="uniform")
    with pytest.raises(ValidationError):
        TypeAdapter(KNN).validate_python({"weights": "distance"})


def test_it_is_skipped_where_nothing_can_be_learnt():
    assert "fewer than two classes" in KNN().skipped(labelled_dataset(40, 2, [0] * 40))
    assert KNN().skipped(labelled_dataset(40, 2)) is None
