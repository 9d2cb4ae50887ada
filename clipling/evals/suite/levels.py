"""What guessing reaches, metric by metric: a number says little without it."""

from __future__ import annotations

from collections.abc import Mapping

from clipling.evals.chance import chance

# task -> metric -> right answers that one guess at a class has
_CLASSES: dict[str, Mapping[str, int]] = {
    "zeroshot_classification": {"acc1": 1, "acc5": 5, "mean_per_class_recall": 1},
    "linear_probe": {"lp_acc1": 1, "lp_mean_per_class_recall": 1},
    "knn": {"knn_acc1": 1},
    "descriptions": dict.fromkeys(("acc1", "acc1_names", "acc1_normalised_mean", "mean_per_class_recall"), 1),
    "prompt_sensitivity": dict.fromkeys(("acc1_mean", "acc1_worst", "acc1_best", "acc1_ensemble"), 1),
    "corruptions": {"clean": 1, "corrupted": 1},
    "backgrounds": {"common": 1, "counter": 1},
}
_FPR95 = dict.fromkeys(("fpr95", "fpr95_logit", "fpr95_mcm"), 0.95)
_AUROC = dict.fromkeys(("auroc", "auroc_logit", "auroc_mcm"), 0.5)


def level(task: str, metric: str, size: Mapping[str, int]) -> float | None:
    """The value of guessing as a fraction, None where there is none or it is not known.

    size: of the dataset, `{"pairs": ...}` or `{"classes": ...}`. Classes are taken as equally frequent. A hard negative is one of two; an
    AUROC without a signal is 1/2, and then 95 % of the foreign pictures pass where 95 % of the own ones do.
    """
    if task == "zeroshot_retrieval":
        return chance(metric, size.get("pairs"))
    if task == "compositionality":
        return None if "/" in metric or "@" in metric else 0.5
    if task == "outside":
        return {**_AUROC, **_FPR95}.get(metric)
    tries, classes = _CLASSES.get(task, {}).get(metric), size.get("classes")
    return min(1.0, tries / classes) if tries and classes else None
