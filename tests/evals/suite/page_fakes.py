"""A suite's results made up for its page: every task, three models, two datasets with real small pictures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from clipling.data.classes import open_labelled
from clipling.data.source import open_pairs
from clipling.evals.results import Result
from clipling.evals.suite.compared import Comparison, Gap, ModelResults
from tests.toy import COLOURS, SHAPES, toy_folder

EVIL = "<script>alert('x')</script> & \"quoted\" $x_1$"
MODELS = (("ping-small", 1, "model", 0.0), ("clip-small", 2, "model", -0.06), ("untrained start", 0, "untrained", -0.35))
LONG = "a-very-long-name-of-a-dataset-that-nobody-broke-into-words-before-it-was-given-to-this-page"
CORRUPTIONS = {
    "gaussian_noise": "noise",
    "shot_noise": "noise",
    "impulse_noise": "noise",
    "defocus_blur": "blur",
    "motion_blur": "blur",
    "zoom_blur": "blur",
    "fog": "weather",
    "frost": "weather",
    "brightness": "weather",
    "contrast": "digital",
    "pixelate": "digital",
    "jpeg_compression": "digital",
}


def sources(folder: Path) -> tuple[Path, Path]:
    """(pairs, class folders): the second holds the pictures of the first sorted by colour and shape."""
    pairs = toy_folder(folder / "pairs", count=60)
    classes = folder / "classes"
    for picture in sorted(pairs.glob("*.png")):
        words = picture.with_suffix(".txt").read_text().split()
        (classes / f"{words[1]}_{words[2]}").mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, classes / f"{words[1]}_{words[2]}" / picture.name)
    for text in pairs.glob("*.txt"):
        text.write_text(text.read_text() + EVIL + text.stem + "\n")
    return pairs, classes


def suite(folder: Path) -> tuple[list[ModelResults], Comparison]:
    """Models and their comparison; the numbers are made up, the rows and hashes are those of the sources."""
    pairs, classes = sources(folder)
    models = []
    for label, colour, role, shift in MODELS:
        rng = np.random.default_rng(colour)
        results = [
            _result("photos", task, str(pairs), *made, label) for task, made in _of_pairs(open_pairs(str(pairs)), shift, rng).items()
        ]
        labelled = open_labelled(str(classes))
        results += [_result(LONG, task, str(classes), *made, label, labelled) for task, made in _of_classes(labelled, shift, rng).items()]
        for result in results:
            source = labelled if result.dataset == LONG else open_pairs(str(pairs))
            result.data_hash = source.fingerprint
        models.append(ModelResults(label, colour, results, role))  # type: ignore[arg-type]
    return models, comparison(models)


def comparison(models: list[ModelResults]) -> Comparison:
    gaps = []
    for other, shift in zip(models[1:], (0.06, 0.35)):
        for dataset, task, metrics in (
            ("photos", "zeroshot_retrieval", ("i2t_recall@10", "t2i_recall@10")),
            (LONG, "zeroshot_classification", ("acc1",)),
        ):
            gaps += [Gap(dataset, task, m, models[0].label, other.label, shift, shift - 0.07, shift + 0.05, 180) for m in metrics]
    points = ["Against clip-small: +6.0 points of recall@10, 95 % interval −1.0 to +11.0.", "Both saw 640,000 pictures."]
    warnings = ["clip-small: 12 of the 60 pictures here were trained on by this model: the numbers say nothing about new pictures."]
    text = "ping-small reaches 61.0 % recall@10 on photos against 55.0 % of clip-small; the interval of the difference holds 0."
    return Comparison("plain", "No difference shown", text, points, warnings, gaps)


def _result(dataset: str, task: str, spec: str, metrics: dict, details: dict, notes: list[str], label: str, labelled: Any = None) -> Result:
    wide = 0.04 if task.startswith("zeroshot") else 0.02
    shares = (
        "acc",
        "i2t",
        "t2i",
        "mean",
        "ndcg",
        "mrr",
        "lp_",
        "knn",
        "corrupted",
        "clean",
        "pgd",
        "word",
        "attribute",
        "relation",
        "object",
        "fgsm",
    )
    headline = {n: (max(0.0, v - wide), min(1.0, v + wide)) for n, v in metrics.items() if n.startswith(shares)}
    size = {"images": 60, "classes": len(labelled.classnames)} if labelled is not None else {"pairs": 60, "captions": 180}
    return Result(
        dataset=dataset,
        model=label,
        task=task,
        metrics={n: float(v) for n, v in metrics.items()},
        details=details,
        notes=notes,
        spec=spec,
        size=size,
        intervals=headline,
        prompts=["a photo of a {c}.", f"a drawing of {{c}} {EVIL}"] if labelled is not None else [],
        model_hash=f"{sum(map(ord, label)):064x}"[::-1],
        settings={"version": 1, "sample": 128},
        preprocessing={"size": 64, "mean": [0.5, 0.5, 0.5]},
        budget={"parameters": 8_400_000 + 900_000 * len(label), "samples_seen": 640_000, "seconds": 4321.0},
        warnings=["12 of the 60 pictures here were trained on."] if label == "clip-small" and task.startswith("zeroshot") else [],
        made={
            "command": f"clipling suite {label} --data {dataset}",
            "date": "2026-01-02",
            "seconds": 1.5,
            "packages": {"torch": "2.99.1"},
            "machine": {"cores": 2},
        },
    )


def _of_pairs(pairs: Any, shift: float, rng: np.random.Generator) -> dict[str, tuple[dict, dict, list[str]]]:
    def found(k: int) -> dict[str, Any]:
        return {"found": rng.choice(60, k, replace=False).tolist(), "scores": sorted(rng.random(k).tolist(), reverse=True)}

    recalls = {f"{d}_recall@{k}": max(0.01, base + shift) for d in ("i2t", "t2i") for k, base in ((1, 0.36), (5, 0.52), (10, 0.61))}
    gallery = [{"caption": pairs.captions_of(i)[i % 3], "row": i, "rank": float(1 + i % 7), **found(5)} for i in range(0, 56, 7)]
    for entry in gallery[::2]:
        entry["found"][entry["row"] % 5] = entry["row"]
    failures = [{"caption": pairs.captions_of(i)[2], "row": i, "rank": 60.0 - i, **found(3)} for i in range(12)]
    by_picture = [{"row": i, "rank": 171.0, "captions": [pairs.captions_of(int(j))[0] for j in rng.choice(60, 3)]} for i in range(8)]
    kinds = ["word_order", "attribute", "relation", "object"]
    accuracy = {kind: 0.75 + shift / 2 + 0.04 * i for i, kind in enumerate(kinds)}
    examples = [
        {"row": i, "caption": "a red disc on white", "negative": "a white disc on red", "margin": m}
        for i, m in enumerate((-0.2, -0.1, 0.1, 0.3))
    ]
    slices = ("head", "tail", "short", "long", "unseen_words")
    ndcg = {name: max(0.05, 0.6 + shift - 0.08 * i) for i, name in enumerate(slices)}
    queries = {"ndcg@10": 0.5 + shift, "mrr": 0.45 + shift, "recall@1": 0.3 + shift / 2, "recall@5": 0.5 + shift, "recall@10": 0.6 + shift}
    return {
        "zeroshot_retrieval": (
            recalls,
            {"gallery": gallery, "failures": failures, "failures_i2t": by_picture},
            ["Chance is 16.7 % at recall@10."],
        ),
        "compositionality": (
            {**accuracy, "mean": float(np.mean(list(accuracy.values())))},
            {"kinds": [{"kind": k, "accuracy": v, "count": 50, "blind": 0.55, "examples": examples} for k, v in accuracy.items()]},
            ["Captions without a colour have no attribute to change."],
        ),
        "geometry": _geometry(shift),
        "queries": (
            {**queries, **{f"ndcg@10/{name}": v for name, v in ndcg.items()}},
            {
                "slices": [
                    {"slice": n, "queries": 20 + 3 * i, "ndcg@10": v, "mrr": v, "recall@10": v} for i, (n, v) in enumerate(ndcg.items())
                ],
                "worst": [
                    {"query": f"something {EVIL} {i}", "ndcg": 0.1, "found": rng.choice(60, 5).tolist(), "relevant": [i, i + 1]}
                    for i in range(12)
                ],
            },
            [],
        ),
        "cost": (
            {
                "parameters": 8.4e6 - 2e7 * shift,
                "image_gflops": 0.21,
                "text_gflops": 0.12,
                "image_ms": 4.2 - 5 * shift,
                "text_ms": 1.9,
                "file_mb": 33.1,
            },
            {},
            ["Times are of this machine."],
        ),
    }


def _of_classes(labelled: Any, shift: float, rng: np.random.Generator) -> dict[str, tuple[dict, dict, list[str]]]:
    names = labelled.classnames
    by_class = {name: float(np.clip(0.65 + shift + rng.normal(0, 0.18), 0, 1)) for name in names}
    classes = [{"name": n, "accuracy": v, "count": 4} for n, v in by_class.items()]
    acc1 = max(0.05, 0.64 + shift)
    wrong = rng.permutation(60)[:24]

    def guesses(row: int) -> list[list[Any]]:
        true = names[labelled.labels[row]]
        others = [n for n in names if n != true][:2]
        return [[others[0], 0.81], [true, 0.12], [others[1], 0.05]]

    failures = [{"row": int(i), "key": labelled.keys[i], "true": names[labelled.labels[i]], "guesses": guesses(int(i))} for i in wrong]
    confusions = [{"true": names[i], "predicted": names[i + 1], "count": 8 - i // 2, "share": 0.5 - 0.03 * i} for i in range(12)]
    levels = [acc1 - 0.08 * s for s in range(1, 6)]
    curves = {c: [max(0.02, v - 0.02 * i) for v in levels] for i, c in enumerate(CORRUPTIONS)}
    corrupted = {f"corrupted/{c}": float(np.mean(v)) for c, v in curves.items()}
    severities = {f"severity_{s}": max(0.02, v) for s, v in enumerate(levels, 1)}
    mean = float(np.mean(list(corrupted.values())))
    epsilons = [0.25, 0.5, 1, 2, 4]
    pgd = [max(0.0, acc1 - 0.2 * e) for e in epsilons]
    checks = [
        {"name": "stronger attacks are no weaker", "passed": True, "value": 0.0, "what": "largest rise of accuracy with ε"},
        {"name": "PGD beats noise", "passed": shift == 0, "value": 0.02, "what": "accuracy under noise of the same size"},
    ]
    bins = np.linspace(0.15, 0.95, 9)
    curve = [
        {"confidence": b, "accuracy": max(0.0, b - 0.15), "count": 20, "low": max(0.0, b - 0.25), "high": b - 0.03} for b in bins.tolist()
    ]
    scaled = [
        {"confidence": b, "accuracy": b - 0.02, "count": 10, "low": max(0.0, b - 0.12), "high": min(1, b + 0.1)} for b in bins.tolist()
    ]
    edges = np.linspace(0, 1, 21)
    inside, outside = (np.histogram(rng.beta(a, 2, 200), edges)[0].tolist() for a in (5 + 3 * shift, 2))
    sets = [
        {
            "name": name,
            "pictures": 200,
            "auroc": 0.85 + shift / 2,
            "fpr95": 0.4,
            "auroc_logit": 0.8 + shift / 2,
            "fpr95_logit": 0.5,
            "histogram": {"edges": edges.tolist(), "inside": inside, "outside": outside},
        }
        for name in ("emoji", "toyworld")
    ]
    templates = [
        "a photo of a {c}.",
        f"{{c}} {EVIL}",
        "a drawing of a {c} on a table beside a window in the afternoon.",
        "{c}",
        "itap of a {c}.",
    ]
    alone = {t: max(0.02, acc1 - 0.03 * i) for i, t in enumerate(templates)}
    gaps = [
        {
            "name": n,
            "common": min(1, v + 0.1),
            "counter": max(0, v - 0.15),
            "common_group": "white",
            "counter_group": "pink",
            "common_count": 9,
            "counter_count": 5,
        }
        for n, v in by_class.items()
    ]
    return {
        "zeroshot_classification": (
            {"acc1": acc1, "acc5": min(1, acc1 + 0.2), "mean_per_class_recall": acc1 - 0.01},
            {"classes": classes, "failures": failures, "confusions": confusions},
            [],
        ),
        "calibration": (
            {
                "ece": 0.13,
                "nll": 1.2 - shift,
                "brier": 0.5,
                "temperature": 1.7,
                "ece_unscaled_half": 0.12,
                "ece_scaled": 0.03,
                "nll_scaled": 1.0,
                "brier_scaled": 0.45,
            },
            {"curve": curve, "curve_scaled": scaled},
            ["The temperature is fitted on one half."],
        ),
        "corruptions": (
            {"clean": acc1, "corrupted": mean, "kept": mean / acc1, **severities, **corrupted},
            {"measure": "acc1", "pictures": 60, "curves": curves, "families": CORRUPTIONS},
            [],
        ),
        "attacks": (
            {"clean": acc1, **{f"pgd@{e:g}": v for e, v in zip(epsilons, pgd)}, **{f"fgsm@{e:g}": v + 0.05 for e, v in zip(epsilons, pgd)}},
            {"epsilons": epsilons, "pgd": pgd, "fgsm": [v + 0.05 for v in pgd], "steps": 10, "checks": checks},
            [],
        ),
        "outside": ({"auroc": 0.85 + shift / 2, "fpr95": 0.4, "auroc_logit": 0.8 + shift / 2, "fpr95_logit": 0.5}, {"sets": sets}, []),
        "prompt_sensitivity": (
            {"acc1_mean": acc1 - 0.06, "acc1_worst": max(0.02, acc1 - 0.12), "acc1_best": acc1, "acc1_spread": 0.05, "acc1_ensemble": acc1},
            {"templates": [{"template": t, "acc1": v} for t, v in alone.items()]},
            [],
        ),
        "backgrounds": (
            {"common": 0.8 + shift, "counter": 0.6 + shift, "gap": 0.2, "worst_gap": 0.4, "gap_same_half": 0.3},
            {
                "classes": gaps,
                "groups": [{"group": g, "accuracy": 0.6, "count": 20} for g in ("white", "grey", "")],
                "gap_interval": [-0.05, 0.3],
            },
            ["4 of 15 classes are left out."],
        ),
        "geometry": _geometry(shift),
        "linear_probe": (
            {"lp_acc1": 0.8 + shift / 2, "lp_mean_per_class_recall": 0.79 + shift / 2, "C": 1.0},
            {"tried": [{"C": 10.0**e, "acc1": 0.7 + shift / 2 - 0.02 * abs(e)} for e in range(-4, 3)], "train": 300, "test": 60},
            [],
        ),
        "knn": ({"knn_acc1": 0.77 + shift / 2, "k": 10.0}, {"tried": [{"k": k, "acc1": 0.7 + shift / 2} for k in (1, 5, 10, 20)]}, []),
        "descriptions": (
            {"acc1": acc1 + 0.02, "mean_per_class_recall": acc1, "acc1_names": acc1, "acc1_normalised_mean": acc1 + 0.01},
            {
                "classes": [{"name": n, "accuracy": min(1, v + 0.05), "by_name": v} for n, v in by_class.items()],
                "explained": [
                    {
                        "row": i,
                        "class": names[labelled.labels[i]],
                        "descriptions": [[f"which is {c}", 0.31 - 0.04 * k] for k, c in enumerate((*COLOURS, *SHAPES))][:4],
                    }
                    for i in range(6)
                ],
            },
            [],
        ),
    }


def _geometry(shift: float) -> tuple[dict, dict, list[str]]:
    metrics = {
        "modality_gap": 0.62,
        "alignment": 1.1,
        "uniformity_image": -2.1,
        "uniformity_text": -1.9,
        "effective_rank_image": 41.3,
        "effective_rank_text": 33.8,
        "hubness_skew_image": 2.4,
        "hubness_skew_text": 1.1,
        "hub_share_image": 0.08,
    }
    spectrum = [float(np.exp(-i / (14 + 20 * shift))) for i in range(64)]
    return metrics, {"spectrum_image": spectrum, "spectrum_text": spectrum[:48], "occurrence_image": [4, 9, 3]}, []
