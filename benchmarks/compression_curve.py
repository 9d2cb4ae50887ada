"""Recall against parameters and CPU latency: how should the units be chosen that a smaller student keeps?

    python benchmarks/teacher.py                   first: the convolutional teacher
    python benchmarks/compression_curve.py         the ViT teacher (taught by it), then every arm; finished runs are not done again

A ViT teacher with a transformer text tower (masks need them) is compressed to 75, 50 and 25 % of its parameters without token
rows, by affinity mimicking at the same number of samples: `manual` (TinyCLIP's inheritance: the first units, interval_front),
`magnitude` and `first_order` (manual, but the units of largest weights, or of largest weight times gradient), `auto` (learned
masks, then pruned; half of the samples learn masks). `relative_recall`: dev recall@10, the mean of both directions, over the
teacher's, in percent. Dev is read once a run. `latency_of_teacher`: percent, both measured in turn in one process.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import RESULTS, RUNS, in_parallel, load, save
from teacher import DEV, METRICS, TEACHER, TRAIN

import clipling
from clipling.assess import assess
from clipling.engine.timing import latencies
from clipling.evals.results import weights_hash
from clipling.models.hub import open_student
from clipling.store import read_json, write_json

FOLDER = RUNS / "compression_curve"
VIT = FOLDER / "teacher"
SHARES = (75, 50, 25)
METHODS: dict[str, dict[str, Any]] = {
    "manual": {},
    "magnitude": {"width": "magnitude"},
    "first_order": {"width": "first_order"},
    "auto": {"method": "auto"},
}
EPOCHS, RATE, BATCH = 6, 3e-4, 256
TEN = ("i2t_recall@10", "t2i_recall@10")
COMMON = ("data.workers=0", "data.crop=[0.5, 1.0]", "evaluation.best=last")
# 64 px in 16 patches, heads of 32: small enough for minutes, with units of every kind to choose from.
CONFIG = {
    "model_cfg": {
        "embed_dim": 256,
        "vision_cfg": {"image_size": 64, "layers": 6, "width": 256, "head_width": 32, "patch_size": 16},
        "text_cfg": {"context_length": 64, "vocab_size": 49408, "width": 256, "heads": 8, "layers": 4},
    },
    "preprocess_cfg": {"size": 64, "interpolation": "bicubic", "resize_mode": "squash"},
}


def make_teacher() -> None:
    """A ViT that learned from the convolutional teacher (affinity and features) and from the captions."""
    path = FOLDER / "vit.json"
    write_json(path, CONFIG)
    clipling.train(
        "clip_kd",
        data=TRAIN,
        teacher=(str(TEACHER),),
        student=str(path),
        epochs=15,
        lr=1e-3,
        out=VIT,
        set=(*COMMON, "student.vocabulary=full", "optimiser.batch=256", "stages.0.warmup=1"),
        resume=True,
        threads=1,
        json=True,
    )
    measured(VIT, "teacher", None)


def run_one(method: str, share: int) -> None:
    out = FOLDER / f"{method}-{share}"
    clipling.compress(
        str(VIT),
        f"{share}%",
        TRAIN,
        out=out,
        epochs=EPOCHS,
        lr=RATE,
        batch=BATCH,
        set=COMMON,
        resume=out.is_dir(),
        threads=1,
        json=True,
        **METHODS[method],
    )
    measured(out / "model", f"{method}-{share}", out)


def measured(model: Path, name: str, out: Path | None) -> None:
    path = FOLDER / f"{name}-dev.json"
    if not path.is_file():
        write_json(path, assess(str(model), DEV))


def collect() -> None:
    """Gathers what is finished into benchmarks/results/compression_curve.json, and draws it. Latencies are measured here, in turn."""
    result = load("compression_curve")
    weights = weights_hash(VIT / "model")
    earlier = result["arms"] if result.get("teacher_weights") == weights else {}
    names = ["teacher"] + [f"{m}-{s}" for m in METHODS for s in SHARES if (FOLDER / f"{m}-{s}-dev.json").is_file()]
    models = {name: open_student(str(VIT if name == "teacher" else FOLDER / name / "model")) for name in names}
    times = latencies(models, rounds=40)
    whole = recall("teacher")
    result["arms"], result["teacher_weights"] = dict(earlier), weights  # arms that another day made, of the same teacher, stay
    took = {name: found["image_ms"] + found["text_ms"] for name, found in times.items()}
    for name, model in models.items():
        dev = read_json(FOLDER / f"{name}-dev.json")["metrics"]
        sizes = model.sizes()
        result["arms"][name.replace("-", "@")] = {
            **{m: [round(100 * dev[m], 3)] for m in METRICS},
            "relative_recall": [round(100 * recall(name) / whole, 2)],
            "parameters": [sizes["total_without_token_rows"]],
            "parameters_with_token_rows": [sizes["total"]],
            "latency_ms": [round(took[name], 3)],
            "latency_of_teacher": [round(100 * took[name] / took["teacher"], 1)],
            **{key: [round(value, 3)] for key, value in times[name].items()},
            "seed": [0],
        }
    result["settings"] = {"epochs": EPOCHS, "learning_rate": RATE, "batch": BATCH, "set": list(COMMON), "teacher": CONFIG}
    save(result)
    draw(result["arms"])
    for name, values in result["arms"].items():
        print(name, {k: values[k][0] for k in ("relative_recall", "parameters", "latency_ms", *TEN)})


def recall(name: str) -> float:
    dev = read_json(FOLDER / f"{name}-dev.json")["metrics"]
    return sum(dev[m] for m in TEN)


def draw(arms: dict[str, dict[str, list]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for axis, key, label in zip(
        axes,
        ("parameters", "latency_of_teacher"),
        ("million parameters without token rows", "time of one picture and one caption, % of the teacher's"),
    ):
        unit = 1e6 if key == "parameters" else 1
        for method in METHODS:
            found = [arms[n] for n in ("teacher", *(f"{method}@{s}" for s in SHARES)) if n in arms]
            axis.plot([a[key][0] / unit for a in found], [a["relative_recall"][0] for a in found], marker="o", label=method)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("recall@10, % of the teacher's")
    axes[0].legend(frameon=False)
    figure.suptitle("One ViT teacher, three sizes, four ways to choose what is kept (Flickr8k dev, one seed)", fontsize=10)
    figure.savefig(RESULTS / "compression_curve.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--shares", default=",".join(map(str, SHARES)))
    parser.add_argument("--at-once", type=int, default=2, help="runs that go on at a time, one thread each")
    parser.add_argument("--collect", action="store_true", help="only gather what is finished")
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "SHARE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        run_one(given.one[0], int(given.one[1]))
        return
    if not given.collect:
        make_teacher()
        jobs = [["--one", method, share] for share in given.shares.split(",") for method in given.methods.split(",")]
        in_parallel(__file__, jobs, given.at_once)
    collect()


if __name__ == "__main__":
    main()
