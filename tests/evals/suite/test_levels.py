"""What guessing reaches, against the counts themselves."""

from __future__ import annotations

import numpy as np
import pytest

from clipling.evals.suite.levels import level


@pytest.mark.parametrize(
    ("task", "metric", "size", "expected"),
    [
        ("zeroshot_classification", "acc1", {"images": 600, "classes": 10}, 0.1),
        ("zeroshot_classification", "acc5", {"images": 600, "classes": 4}, 1.0),
        ("zeroshot_retrieval", "i2t_recall@5", {"pairs": 1000, "captions": 5000}, 0.005),
        ("zeroshot_retrieval", "t2i_recall@10", {"pairs": 5}, 1.0),
        ("compositionality", "word_order", {"pairs": 9}, 0.5),
        ("compositionality", "blind/mean", {"pairs": 9}, None),
        ("outside", "auroc", {"classes": 10}, 0.5),
        ("outside", "fpr95", {"classes": 10}, 0.95),
        ("corruptions", "corrupted", {"classes": 8}, 0.125),
        ("corruptions", "corrupted", {"pairs": 8}, None),
        ("calibration", "ece", {"classes": 10}, None),
        ("geometry", "modality_gap", {"pairs": 10}, None),
        ("a task of nobody", "acc1", {"classes": 10}, None),
    ],
)
def test_levels(task, metric, size, expected):
    assert level(task, metric, size) == (None if expected is None else pytest.approx(expected))


def test_a_random_answerer_reaches_them():
    rng = np.random.default_rng(0)
    labels, guesses = rng.integers(0, 10, 20000), rng.random((20000, 10)).argsort(axis=1)
    top5 = (guesses[:, :5] == labels[:, None]).any(axis=1).mean()
    assert top5 == pytest.approx(level("zeroshot_classification", "acc5", {"classes": 10}), abs=0.02)
    own, foreign = rng.random(5000), rng.random(5000)
    assert (own[:, None] > foreign[None, :500]).mean() == pytest.approx(level("outside", "auroc", {}), abs=0.02)
    assert (foreign >= np.quantile(own, 0.05)).mean() == pytest.approx(level("outside", "fpr95", {}), abs=0.02)
