"""Accuracy of each template alone against one zero-shot evaluation a template."""

from __future__ import annotations

import json
import statistics
from hashlib import blake2b

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from clipling.evals.suite.catalogue import evaluation
from clipling.evals.suite.prompt_sensitivity import PromptSensitivity, template_hits
from clipling.evals.zeroshot import class_features, prompts
from tests.evals.suite.fakes import FakeSubject, labelled_dataset, unit

NAMES, TEMPLATES = ["cat", "dog", "bird", "fish"], ["a photo of a {c}.", "a {c} drawn badly", "{c}"]


def noise(text: str, width: int = 6) -> np.ndarray:
    return np.random.default_rng(int.from_bytes(blake2b(text.encode(), digest_size=4).digest())).standard_normal(width)


def encode(texts: list[str]) -> np.ndarray:
    """A name's direction, blurred by its sentence."""
    return np.array([noise(next(name for name in NAMES if name in text)) + 0.9 * noise(text) for text in texts])


class Encoder:
    encode_texts_in_batches = staticmethod(encode)


def problem(templates=TEMPLATES, n: int = 80):
    rng = np.random.default_rng(0)
    dataset = labelled_dataset(n, NAMES, templates=templates)
    images = np.array([noise(NAMES[c]) for c in dataset.labelled.labels]) + 1.2 * rng.standard_normal((n, 6))
    return dataset, FakeSubject(images, encode)


def accuracy(images: np.ndarray, dataset, templates: list[str]) -> float:
    classes = class_features(Encoder(), NAMES, templates)
    return accuracy_score(dataset.labelled.labels, (unit(images) @ classes.T).argmax(1))


def test_every_template_equals_an_evaluation_of_its_own():
    dataset, subject = problem()
    found = PromptSensitivity()(subject, dataset)
    alone = [accuracy(subject.image_features, dataset, [template]) for template in TEMPLATES]
    assert len(set(alone)) == 3, "the templates must differ"
    assert [row["template"] for row in found.details["templates"]] == TEMPLATES
    assert [row["acc1"] for row in found.details["templates"]] == pytest.approx(alone)
    assert found.metrics == pytest.approx(
        {
            "acc1_mean": statistics.mean(alone),
            "acc1_worst": min(alone),
            "acc1_best": max(alone),
            "acc1_spread": statistics.stdev(alone),
            "acc1_ensemble": accuracy(subject.image_features, dataset, TEMPLATES),
        }
    )
    for name, values in found.items.items():
        assert values.shape == (80,)
        assert values.mean() == pytest.approx(found.metrics[name])
    json.dumps([found.details, found.notes], allow_nan=False)


def test_pictures_and_prompts_are_asked_for_alike_so_that_they_are_encoded_once():
    dataset, subject = problem()
    PromptSensitivity()(subject, dataset)
    assert [asked[0] for asked in subject.asked].count("images") == 1
    texts = [asked[1] for asked in subject.asked if asked[0] == "texts"]
    assert texts == [prompts(NAMES, TEMPLATES)] * 2


def test_a_template_that_is_given_twice_counts_once():
    dataset, subject = problem([TEMPLATES[0], TEMPLATES[1], TEMPLATES[0]])
    found = PromptSensitivity()(subject, dataset)
    alone = [accuracy(subject.image_features, dataset, [template]) for template in TEMPLATES[:2]]
    assert found.metrics["acc1_mean"] == pytest.approx(statistics.mean(alone))
    assert len(found.details["templates"]) == 2


def test_equal_texts_have_no_spread_and_ties_are_chance():
    dataset, _ = problem()
    found = PromptSensitivity()(FakeSubject(np.ones((80, 6)), lambda texts: np.ones((len(texts), 6))), dataset)
    assert found.metrics == pytest.approx(
        {"acc1_mean": 0.25, "acc1_worst": 0.25, "acc1_best": 0.25, "acc1_spread": 0.0, "acc1_ensemble": 0.25}
    )


def test_hits_have_a_row_a_template():
    texts = np.stack([np.eye(3), np.eye(3)[[1, 2, 0]]], axis=1)  # the second template names the wrong class
    assert template_hits(np.eye(3), texts, np.arange(3)).tolist() == [[1, 1, 1], [0, 0, 0]]


def test_one_template_is_skipped():
    assert "1 template" in PromptSensitivity().skipped(labelled_dataset(5, 2))
    assert "1 template" in PromptSensitivity().skipped(labelled_dataset(5, 2, templates=["{c}", "{c}"]))
    assert PromptSensitivity().skipped(problem()[0]) is None
    assert evaluation("prompt_sensitivity") == PromptSensitivity()
