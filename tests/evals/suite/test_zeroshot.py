"""The two zero-shot evaluators of a suite: their numbers are those of the plain functions, their details point at real mistakes."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from clipling.evals.retrieval import recall
from clipling.evals.suite.zeroshot_classification import ZeroShotClassification
from clipling.evals.suite.zeroshot_retrieval import ZeroShotRetrieval
from clipling.evals.zeroshot import zero_shot
from tests.evals.suite.fakes import FakeSubject, labelled_dataset, pairs_dataset


@pytest.fixture
def classified():
    rng = np.random.default_rng(0)
    classes = rng.normal(size=(7, 16))
    labels = rng.integers(0, 7, 200)
    image = classes[labels] + rng.normal(size=(200, 16)) * 1.5
    subject = FakeSubject(image, class_features=classes, scale=20)
    return subject, labelled_dataset(200, 7, labels), labels


def test_classification_is_zero_shot_with_items(classified):
    subject, dataset, labels = classified
    found = ZeroShotClassification()(subject, dataset)
    assert found.metrics == pytest.approx(zero_shot(subject.images(dataset), labels, subject.classes(dataset)))
    for name in ("acc1", "acc5"):
        assert found.items[name].mean() == pytest.approx(found.metrics[name])
    assert sum(c["accuracy"] * c["count"] for c in found.details["classes"]) / 200 == pytest.approx(found.metrics["acc1"])


def test_confusions_are_the_confusion_matrix(classified):
    subject, dataset, labels = classified
    guessed = (subject.images(dataset) @ subject.classes(dataset).T).argmax(1)
    matrix = confusion_matrix(labels, guessed)
    shown = ZeroShotClassification()(subject, dataset).details
    counts = [c["count"] for c in shown["confusions"]]
    assert counts == sorted(matrix[~np.eye(7, dtype=bool)], reverse=True)[: len(counts)]
    for c in shown["confusions"]:
        t, g = int(c["true"][-1]), int(c["predicted"][-1])
        assert (c["count"], c["share"]) == (matrix[t, g], pytest.approx(matrix[t, g] / matrix[t].sum()))
    confident = [f["guesses"][0][1] for f in shown["failures"]]
    assert confident == sorted(confident, reverse=True)
    assert all(guessed[f["row"]] != labels[f["row"]] for f in shown["failures"])
    assert all(f["guesses"][0][0] == f"class {guessed[f['row']]}" for f in shown["failures"])


def test_a_constant_model_scores_chance():
    dataset = labelled_dataset(60, 6)
    found = ZeroShotClassification()(FakeSubject(np.ones((60, 4)), class_features=np.ones((6, 4))), dataset)
    assert found.metrics["acc1"] == pytest.approx(1 / 6)


def test_retrieval_is_recall_with_units_of_pictures():
    rng = np.random.default_rng(1)
    dataset = pairs_dataset([[f"one {i}", f"two {i}"] for i in range(120)])
    image = rng.normal(size=(120, 8))
    text = np.repeat(image, 2, axis=0) + rng.normal(size=(240, 8))
    subject = FakeSubject(image, text_features=text)
    found = ZeroShotRetrieval()(subject, dataset)
    assert found.metrics == pytest.approx(recall(subject.images(dataset), subject.texts(dataset.pairs.captions), dataset.pairs.offsets))
    assert found.units["t2i_recall@10"].tolist() == np.repeat(np.arange(120), 2).tolist()
    for name, values in found.items.items():
        assert values.mean() == pytest.approx(found.metrics[name])
    scores = subject.images(dataset) @ subject.texts(dataset.pairs.captions).T
    for shown in found.details["gallery"]:
        t = dataset.pairs.captions.index(shown["caption"])
        assert shown["found"] == np.argsort(-scores[:, t], kind="stable")[:5].tolist()
        assert shown["row"] == t // 2
        assert shown["rank"] == 1 + (scores[:, t] > scores[t // 2, t]).sum()
    ranks = [f["rank"] for f in found.details["failures"]]
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[0] == max(1 + (scores[:, t] > scores[t // 2, t]).sum() for t in range(240))


def test_pictures_without_captions_are_skipped():
    assert ZeroShotRetrieval().skipped(pairs_dataset([[], []])) == "it has no captions"
