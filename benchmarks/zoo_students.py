"""Every tower of the zoo, briefly trained, so that what int8 costs it can be told from its recall.

    python benchmarks/teacher.py                                 first: the teacher
    python benchmarks/reinforced_efficiency.py                   then: what it knows, stored beside Flickr8k train
    python benchmarks/zoo_students.py [NAME ...] [--minutes 6]   about so many minutes of one core a tower; what is finished is kept

Students learn from the stored teacher (MobileCLIP2's loss, its distillation part alone, and its features, which needs embeddings of the
teacher's size) for as many samples as their pace on this machine allows, at most two and a half epochs; vision transformers see a quarter
of their patches (FLIP, Li et al., CVPR 2023). They are no good models: the larger the tower, the less it saw (`samples` in the result of
int8_parity, and how it was called in that result's note). Towers that would see less than 0.4 of an epoch are left out.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import RUNS
from ping_gain import as_yaml
from teacher import TEACHER

import clipling
from clipling.models.catalogue import zoo_config, zoo_names
from clipling.models.hub import new_student, open_student
from clipling.store import read_json, write_json

SOURCE = RUNS / "reinforced_efficiency" / "source"
FOLDER = RUNS / "zoo"
TEACHER_SHAPE = "efficientnet_lite0_minilm"  # runs/teacher is one of these, well trained
PAIRS, BATCH, MOST_EPOCHS, FEWEST_EPOCHS = 5786, 64, 2.5, 0.4
SETTINGS: dict[str, Any] = {
    "optimiser.batch": BATCH,
    "stages.0.warmup": 0.2,
    "objective.reinforced.weight": {"clip": 0.0, "distill": 1.0},
    "objective.reinforced.options": {"captions": "real", "scales": None},
    "objective.fd": {"use": "clipling.objectives.clip_kd:FD", "weight": 2000.0},
    "data.workers": 0,
    "evaluation.best": "last",
    "evaluation.every": 1000.0,
}


def config_of(name: str) -> Path:
    """The student's config with embeddings of the teacher's size, and with patches left out in training where the tower can."""
    content, path = zoo_config(name), FOLDER / f"{name}.json"
    content["model_cfg"]["embed_dim"] = open_student(str(TEACHER)).embed_dim
    vision = content["model_cfg"]["vision_cfg"]
    if "patch_size" in vision and "timm_model_name" not in vision:
        vision["patch_dropout"] = 0.75
    write_json(path, content)
    return path


def seconds_a_sample(config: Path) -> float:
    """One forward and backward pass of 16 pairs, after one that does not count; texts are as long as captions are."""
    student = new_student(read_json(config), seed=0).train()
    tokens = student.tokenise(["a dog runs over the snow with a red ball"] * 16)[:, :16]
    pixels = torch.randint(0, 256, (16, 3, student.image_size, student.image_size), dtype=torch.uint8)
    for _ in range(2):
        began = time.perf_counter()
        (student.encode_image(student.normalise(pixels)).square().sum() + student.encode_text(tokens).square().sum()).backward()
    return (time.perf_counter() - began) / 16


def train(name: str, minutes: float) -> None:
    config = config_of(name)
    pace = seconds_a_sample(config)
    epochs = round(min(MOST_EPOCHS, 60 * minutes / pace / PAIRS), 2)
    if epochs < FEWEST_EPOCHS:
        print(f"{name}: left out, {60 * pace:.0f} minutes of one core for 3,600 samples", flush=True)
        return
    rate = 1e-3 if "vit" in name.lower() else 2e-3
    changes = {**SETTINGS, "student.config": str(config), "stages.0.epochs": epochs, "stages.0.learning_rate": rate}
    chosen = tuple(f"{key}={as_yaml(value)}" for key, value in changes.items())
    clipling.train("mobileclip2", data=str(SOURCE), seed=0, out=FOLDER / name, set=chosen, resume=True, threads=1, json=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--minutes", type=float, default=6)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.names or [name for name in zoo_names() if name != TEACHER_SHAPE]:
        if (FOLDER / name / "summary.json").is_file():
            continue
        began = time.monotonic()
        train(name, given.minutes)
        print(f"{name}: {(time.monotonic() - began) / 60:.1f} min", flush=True)


if __name__ == "__main__":
    sys.exit(main())
