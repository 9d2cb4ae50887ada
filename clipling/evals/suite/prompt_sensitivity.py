"""How much zero-shot accuracy depends on the words around the class name. Letters: n pictures, C classes, K templates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from clipling.evals.retrieval import ranks
from clipling.evals.suite.dataset import Dataset
from clipling.evals.suite.found import LABELLED, Found, floats
from clipling.evals.suite.subject import Subject
from clipling.evals.zeroshot import prompts


def template_hits(images: np.ndarray, texts: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float64 [K, n]: whether each template alone classifies each picture rightly, tied classes sharing the credit.

    images: [n, d] unit rows. texts: [C, K, d] unit rows, the class names in the templates.
    """
    numbers = np.arange(len(texts))
    return np.stack([ranks(images, texts[:, k], labels, numbers).hits(1) for k in range(texts.shape[1])])


@dataclass(frozen=True)
class PromptSensitivity:
    """Accuracy with each template of the dataset alone: mean, worst, best, spread; and with their ensemble.

    `acc1_spread` is the standard deviation over templates (K - 1). The worst and the best are chosen on the pictures that they are measured
    on, so the best is no fair choice of a template. A template that is given twice counts once, except in the ensemble.
    """

    task: ClassVar[str] = "prompt_sensitivity"
    takes: ClassVar[frozenset[str]] = frozenset({LABELLED})
    version: ClassVar[int] = 1
    headline: ClassVar[tuple[str, ...]] = ("acc1_mean", "acc1_worst", "acc1_spread", "acc1_ensemble")
    lower: ClassVar[frozenset[str]] = frozenset({"acc1_spread"})

    def skipped(self, dataset: Dataset) -> str | None:
        count = len(set(dataset.labelled.templates))
        return f"it has {count} template, and sensitivity needs 2 or more: give it a file of templates" if count < 2 else None

    def __call__(self, subject: Subject, dataset: Dataset) -> Found:
        source = dataset.labelled
        images = subject.images(dataset)
        # The texts that the ensemble is made of: asked for in the same order, they are encoded once.
        texts = subject.texts(prompts(source.classnames, source.templates))
        texts = np.asarray(texts).reshape(len(source.classnames), len(source.templates), -1)
        single = list(dict.fromkeys(source.templates))
        hits = template_hits(images, texts[:, [source.templates.index(template) for template in single]], source.labels)
        classes = subject.classes(dataset)
        ensemble = ranks(images, classes, source.labels, np.arange(len(classes))).hits(1)
        accuracy = hits.mean(1)
        metrics = {
            "acc1_mean": accuracy.mean(),
            "acc1_worst": accuracy.min(),
            "acc1_best": accuracy.max(),
            "acc1_spread": accuracy.std(ddof=1),
            "acc1_ensemble": ensemble.mean(),
        }
        return Found(
            metrics=floats(metrics),
            items={"acc1_mean": hits.mean(0), "acc1_ensemble": ensemble},
            details={"templates": [{"template": t, "acc1": float(a)} for t, a in zip(single, accuracy)]},
            notes=[f"{len(single)} templates; the worst and the best are chosen on the pictures that they are measured on."],
        )
