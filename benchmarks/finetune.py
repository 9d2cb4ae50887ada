"""Does fine-tuning keep what the model knew? From the teacher of `benchmarks/teacher.py` (Flickr8k) to emoji; CIFAR-10 is only
watched.

    python benchmarks/teacher.py         first
    python benchmarks/finetune.py        arms and seeds; finished runs are not done again

`start`: the model before. `finetune`: `clipling finetune` as it comes. `tuned`: the same without WiSE-FT. `naive`: one high
learning rate for all layers, to the end. `val_recall@10`: emoji concepts held out, the mean of both directions; `kept`: CIFAR-10
zero-shot accuracy over the start's, and the start's recall@10 on Flickr8k dev likewise, all in percent.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import FLICKR, RUNS, load, merged, save
from teacher import DEV, TEACHER

import clipling
from clipling.assess import assess
from clipling.evals.results import weights_hash
from clipling.store import read_json, write_json

FOLDER = RUNS / "finetune"
CIFAR = str(FLICKR.parent / "cifar10")
ARMS: dict[str, dict[str, Any]] = {
    "finetune": {},
    "naive": {
        "lr": 1e-3,
        "layer_decay": 1.0,
        "wise": False,
        "set": ("evaluation.patience=null", "evaluation.best=last", "student.norm=local"),
    },
}
TEN = ("i2t_recall@10", "t2i_recall@10")
EPOCHS = 6


def run(arm: str, seed: int) -> dict[str, Any]:
    out, options = FOLDER / arm / f"seed-{seed}", dict(ARMS[arm])
    chosen = ("data.workers=0", *options.pop("set", ()))
    clipling.finetune(
        str(TEACHER),
        "demo:emoji",
        out=out,
        watch=(CIFAR,),
        epochs=EPOCHS,
        seed=seed,
        set=chosen,
        resume=True,
        threads=1,
        json=True,
        **options,
    )
    dev = FOLDER / f"{arm}-{seed}-dev.json"
    if not dev.is_file():
        write_json(dev, assess(str(out), DEV))
    return read_json(out / "summary.json") | {"dev": read_json(dev)["metrics"]}


def values(metrics: dict[str, float], dev: dict[str, float], start: tuple[dict[str, float], dict[str, float]]) -> dict[str, float]:
    """What is reported of one model: recall on val, CIFAR-10 and Flickr8k dev, and what is kept of the start's."""
    accuracy = next(value for name, value in metrics.items() if name.startswith("watch/") and name.endswith("/acc1"))
    before = next(value for name, value in start[0].items() if name.startswith("watch/") and name.endswith("/acc1"))
    flickr, then = (fmean(d[m] for m in TEN) for d in (dev, start[1]))
    made = {"val_recall@10": fmean(metrics[m] for m in TEN), "cifar10_acc1": accuracy, "flickr8k_dev_recall@10": flickr}
    return {k: round(100 * v, 3) for k, v in (made | {"cifar10_kept": accuracy / before, "flickr8k_kept": flickr / then}).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--seeds", default="0,1,2")
    given = parser.parse_args()
    result = load("finetune")
    dev = read_json(RUNS / "teacher" / "teacher-dev.json")["metrics"]
    found: dict[str, dict[str, list]] = {}
    for seed in map(int, given.seeds.split(",")):
        for arm in given.arms.split(","):
            summary = run(arm, seed)
            start = (summary["untrained"], dev)
            rows = {arm: values(summary["val"], summary["dev"], start)}
            if arm == given.arms.split(",")[0]:
                rows["start"] = values(summary["untrained"], dev, start)
            if "interpolation" in summary:
                rows[arm]["share"] = summary["interpolation"]["share"]
                whole = next(row for row in summary["interpolation"]["rows"] if row["share"] == 1)
                rows["tuned"] = {k: v for k, v in values(whole, dev, start).items() if not k.startswith("flickr8k")}
            for name, row in rows.items():
                for key, value in {**row, "seed": seed}.items():
                    found.setdefault(name, {}).setdefault(key, []).append(value)
    weights = weights_hash(TEACHER / "model")
    same = result.get("start_weights") == weights
    result["arms"] = merged(result["arms"], found) if same else found  # seeds that another day made, of the same start, stay
    result["start_weights"] = weights
    result["settings"] = {"epochs": EPOCHS, "arms": ARMS}
    save(result)
    for name, row in result["arms"].items():
        print(name, row)


if __name__ == "__main__":
    main()
