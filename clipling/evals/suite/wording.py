"""What tasks and metrics are called on a page, how a value is written, and how each section is to be read."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import Literal

from clipling.evals.results import Result
from clipling.evals.suite.catalogue import EVALUATIONS

Direction = Literal["up", "down", "none"]

# task -> (title of its section, how to read it)
SECTIONS: dict[str, tuple[str, str]] = {
    "zeroshot_classification": (
        "Zero-shot classes",
        "Each picture is put in the class whose prompts are nearest to it; no example of a class was shown.",
    ),
    "zeroshot_retrieval": (
        "Zero-shot retrieval",
        "A caption asks for its picture and a picture for its captions, among all of the dataset; recall@k says how often a right one "
        "is among the first k.",
    ),
    "queries": (
        "Own queries",
        "nDCG@10 is 1 when all relevant pictures come first; slices say for which queries it is high or low.",
    ),
    "linear_probe": (
        "Linear probe",
        "A logistic regression on frozen picture features, regularisation chosen on held-out training pictures: what the features hold, "
        "whatever the prompts.",
    ),
    "knn": ("Nearest neighbours", "A vote of the k most similar training pictures: what the features hold without any training."),
    "descriptions": (
        "Classes by description",
        "Pictures are compared with visual descriptions of the classes instead of their names, on the same pictures.",
    ),
    "prompt_sensitivity": (
        "How much the prompt matters",
        "Each template alone: where dots are far apart, the choice of the words decides the number.",
    ),
    "calibration": (
        "Does it know when it is wrong?",
        "On the diagonal, of the answers given with 80 % confidence 80 % are right; below it the model is too sure of itself.",
    ),
    "backgrounds": (
        "Common and rare backgrounds",
        "Accuracy of each class before the background where it does best and before the one where it does worst; the gap is what "
        "leaning on backgrounds costs.",
    ),
    "outside": (
        "Pictures that do not belong",
        "AUROC is the chance that a picture of the dataset gets a higher score than a foreign one (50 % is guessing); "
        "FPR95 is the share of foreign pictures let in when 95 % of its own are.",
    ),
    "corruptions": (
        "Damaged pictures",
        "The same pictures with noise, blur, weather and compression, from light (1) to heavy (5); severity 0 is the clean picture.",
    ),
    "attacks": (
        "Attacks",
        "Each pixel may move by up to ε of 255 steps, chosen against this model; a line that stays high is robust, if the checks pass.",
    ),
    "compositionality": (
        "Word order and attributes",
        "The true caption against one with words swapped or replaced; 50 % is guessing.",
    ),
    "geometry": (
        "Shape of the embedding space",
        "How far pictures and texts lie apart, how evenly they use their dimensions, and whether a few pictures crowd all answers; "
        "these describe and do not rank.",
    ),
    "cost": (
        "Cost",
        "Times are of torch on one machine, one process: compare within this page only. Of exported graphs: clipling latency.",
    ),
}

NAMES = {
    "acc1": "top-1 accuracy", "acc5": "top-5 accuracy", "mean_per_class_recall": "mean per class", "acc1_names": "top-1 by names",
    "acc1_normalised_mean": "top-1, normalised mean", "acc1_mean": "mean over templates", "acc1_worst": "worst template",
    "acc1_best": "best template", "acc1_spread": "spread over templates", "acc1_ensemble": "all templates together",
    "ece": "ECE", "ece_scaled": "ECE after scaling", "ece_unscaled_half": "ECE, same half before", "nll": "NLL",
    "nll_scaled": "NLL after scaling", "brier": "Brier score", "brier_scaled": "Brier after scaling",
    "clean": "clean pictures", "corrupted": "damaged pictures", "kept": "kept when damaged",
    "auroc": "AUROC", "fpr95": "FPR95", "auroc_logit": "AUROC by cosine", "fpr95_logit": "FPR95 by cosine",
    "auroc_mcm": "AUROC by MCM", "fpr95_mcm": "FPR95 by MCM",
    "common": "common backgrounds", "counter": "rare backgrounds", "gap": "gap", "worst_gap": "largest gap of a class",
    "gap_same_half": "gap on the same half (overstated)", "word_order": "word order", "blind/mean": "mean of kinds, blind",
    "mean": "mean of kinds",
    "uniformity_image": "uniformity, pictures", "uniformity_text": "uniformity, texts", "effective_rank_image": "effective rank, pictures",
    "effective_rank_text": "effective rank, texts", "hubness_skew_image": "hubness, pictures", "hubness_skew_text": "hubness, texts",
    "hub_share_image": "queries answered by 1\u00a0% of pictures", "lp_acc1": "linear probe, top-1", "knn_acc1": "k-NN, top-1",
    "lp_mean_per_class_recall": "linear probe, mean per class", "ndcg@10": "nDCG@10", "mrr": "MRR",
    "parameters": "parameters with token rows",
    "parameters_without_token_rows": "parameters without token rows", "image_gflops": "GFLOPs a picture", "text_gflops": "GFLOPs a text",
    "image_ms": "ms a picture", "text_ms": "ms a text", "file_mb": "file, MB",
}  # fmt: skip
# No direction is better: they describe.
DESCRIBES = frozenset({"temperature", "C", "k"})
_NO_FRACTION = re.compile(
    r"^(temperature|nll.*|brier.*|C|k|modality_gap|alignment|uniformity_.*|effective_rank_.*|hubness_skew_.*|parameters.*"
    r"|.*_(ms|s|mb|gflops))$"
)


def metric_name(name: str) -> str:
    """`i2t_recall@5` as "image → text, recall@5"; a name that is not known with blanks for its underscores."""
    if name in NAMES:
        return NAMES[name]
    for start, words in (("i2t_recall@", "image → text, recall@"), ("t2i_recall@", "text → image, recall@")):
        if name.startswith(start):
            return words + name.removeprefix(start)
    head, _, tail = name.partition("@")
    if head in ("fgsm", "pgd") and tail:
        return f"{head.upper()}, ε {tail}/255"
    if head in NAMES and tail:
        return f"{NAMES[head]}, {tail}"
    return name.replace("_", " ").replace("/", ", ")


def is_fraction(name: str) -> bool:
    """Whether a metric is written in percent."""
    return not _NO_FRACTION.match(name)


def value(name: str, number: float) -> str:
    """63.4 for a fraction, `12.30 M` for parameters, three digits for what has another unit."""
    if is_fraction(name):
        return f"{100 * number:.1f}".replace("-", "−")
    if name.startswith("parameters"):
        return f"{number / 1e6:.2f} M" if number >= 1e5 else f"{number / 1e3:.1f} k"
    return f"{number:.3g}".replace("-", "−")


def direction(task: str, name: str) -> Direction:
    """Whether more or less of a metric is better, as its evaluator says."""
    if task == "geometry" or name in DESCRIBES or name.startswith("blind/"):
        return "none"
    kind = _evaluation(task)
    return "down" if kind is not None and name in kind.lower else "up"


def headline(result: Result) -> Sequence[str]:
    """The metrics for the first table: those that the evaluator names, or the first two of a result that has none of them."""
    kind = _evaluation(result.task)
    named = [name for name in (kind.headline if kind is not None else ()) if name in result.metrics]
    return named or list(result.metrics)[:2]


def _evaluation(task: str) -> type | None:
    """The evaluator's class; None for a task of nobody here."""
    if task not in EVALUATIONS:
        return None
    module, _, name = EVALUATIONS[task].partition(":")
    return getattr(importlib.import_module(f"clipling.evals.suite.{module}"), name)
