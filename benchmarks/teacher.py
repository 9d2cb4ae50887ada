"""A real teacher without a model hub: towers that start from EfficientNet-Lite0 and MiniLM, fine-tuned on Flickr8k train.

    python benchmarks/teacher.py

Beside it plain CLIP of the same size, from scratch, at the same number of samples seen. Dev is read once a run. Other benchmarks learn
from `runs/teacher/seed-0`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import FLICKR, RUNS, load, save

import clipling
from clipling.assess import assess
from clipling.models.hub import zoo_config
from clipling.store import read_json, write_json

TRAIN = str(FLICKR / "train-{00000..00005}.tar")
DEV = str(FLICKR / "dev-00000.tar")
TEACHER = RUNS / "teacher" / "seed-0"
METRICS = [f"{way}_recall@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)]
COMMON = ("student.vocabulary=full", "data.workers=0", "evaluation.best=last")
ARMS: dict[str, tuple[str, ...]] = {
    "teacher": ("student.init={image: efficientnet_lite0, text: all-MiniLM-L6-v2}",),
    "scratch": (),
}
EPOCHS, RATE, SIZE = 8, 5e-4, 64


def config() -> Path:
    """efficientnet_lite0_minilm of the zoo, at 64 px."""
    path = RUNS / "teacher" / "efficientnet_lite0_minilm_64.json"
    content = zoo_config("efficientnet_lite0_minilm")
    content["model_cfg"]["vision_cfg"]["image_size"] = content["preprocess_cfg"]["size"] = SIZE
    write_json(path, content)
    return path


def run(arm: str) -> dict[str, Any]:
    folder = TEACHER if arm == "teacher" else RUNS / "teacher" / arm
    clipling.train(
        "clip",
        data=TRAIN,
        student=str(config()),
        epochs=EPOCHS,
        lr=RATE,
        out=folder,
        set=(*COMMON, *ARMS[arm]),
        resume=True,
        threads=1,
        json=True,
    )
    dev = RUNS / "teacher" / f"{arm}-dev.json"
    if not dev.is_file():
        write_json(dev, assess(str(folder), DEV))
    summary, found = read_json(folder / "summary.json"), read_json(dev)["metrics"]
    values = {m: [round(100 * found[m], 3)] for m in METRICS}
    return values | {
        "samples_seen": [summary["samples_seen"]],
        "seconds": [summary["seconds"]],
        "parameters": [summary["parameters"]["total_without_token_rows"]],
        "seed": [summary["seed"]],
    }


def main() -> None:
    result = load("teacher")
    for arm in sys.argv[1:] or ARMS:
        result["arms"][arm] = run(arm)
    if result["arms"].keys() >= ARMS.keys():
        arms = result["arms"]
        result["ratios"] = {m: {"value": arms["teacher"][m][0] / arms["scratch"][m][0]} for m in ("i2t_recall@10", "t2i_recall@10")}
    result["settings"] = {"epochs": EPOCHS, "learning_rate": RATE, "image_size": SIZE, "batch": 256}
    save(result)
    print({arm: {m: v[m] for m in METRICS} for arm, v in result["arms"].items()}, result["ratios"])


if __name__ == "__main__":
    main()
