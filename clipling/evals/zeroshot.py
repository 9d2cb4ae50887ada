"""Zero-shot classification: pictures against class names dressed in prompt templates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from clipling.errors import UserError
from clipling.evals.retrieval import ranks


def zero_shot(
    image_features: np.ndarray | torch.Tensor,
    labels: np.ndarray | Sequence[int],
    class_text_features: np.ndarray | torch.Tensor,
) -> dict[str, float]:
    """acc1, acc5 and mean_per_class_recall of `image_features [n, d]` against `class_text_features [C, d]`, unit rows.

    `labels [n]` are class numbers. Ties count as their expectation under random order, so a constant model scores 1/C.
    The mean recall is over the classes that have pictures, as scikit-learn's balanced accuracy. acc5 is left out when there
    are five classes or fewer: it would always be 1.
    """
    labels = np.asarray(labels, dtype=np.int64)
    classes = len(class_text_features)
    if len(labels) != len(image_features) or not len(labels):
        raise ValueError(f"{len(labels)} labels for {len(image_features)} images; expected one for each and at least one")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}, but there are {classes} classes")
    found = ranks(image_features, class_text_features, labels, np.arange(classes))
    first = found.hits(1)
    present = np.bincount(labels, minlength=classes)
    per_class = np.bincount(labels, weights=first, minlength=classes)[present > 0] / present[present > 0]
    metrics = {"acc1": float(first.mean()), "mean_per_class_recall": float(per_class.mean())}
    if classes > 5:
        metrics["acc5"] = float(found.hits(5).mean())
    return metrics


def prompts(classnames: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every class name in every template, class by class. The place of the name is `{c}` (CLIP_benchmark) or `{}`."""
    for template in templates:
        if "{c}" not in template and "{}" not in template:
            raise UserError(f"the prompt template {template!r} has no place for the class name; write {{c}} where it belongs")
    return [t.replace("{c}", name).replace("{}", name) for name in classnames for t in templates]


def class_features(student: Any, classnames: Sequence[str], templates: Sequence[str]) -> np.ndarray:
    """float32 [C, d], unit rows: the normalised mean of a class's normalised prompt features (OpenAI's prompt ensemble).

    Raises UserError without names or templates, or for a template that has no place for the name.
    """
    if not classnames or not templates:
        raise UserError(f"zero-shot needs class names and templates; got {len(classnames)} and {len(templates)}")
    features = np.asarray(student.encode_texts_in_batches(prompts(classnames, templates)), dtype=np.float64)
    features = _unit(features).reshape(len(classnames), len(templates), -1)
    return _unit(features.mean(1)).astype(np.float32)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
