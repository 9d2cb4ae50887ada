"""How far the exported towers of the zoo are from torch: `python benchmarks/onnx_parity.py [NAME ...]` (all of them by default).

Weights are random (seed 0), but batch normalisation has statistics of pictures: parity needs no training. One arm a student; of each
precision the lowest cosine and the largest error of any number, over batches of 1 and 5, texts of several lengths, and pictures of the
model's size (`image`) and of other sizes (`resized`: the graph against Pillow). Arms that are there already are kept: `--again` for all.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import load, save

from clipling.data.views import eval_pixels
from clipling.deploy.export import export_fp32
from clipling.deploy.fixtures import TEXTS, photos
from clipling.deploy.parity import agreement
from clipling.models.catalogue import zoo_names
from clipling.models.dual import Student
from clipling.models.hub import new_student
from clipling.runtime.model import Runtime

BATCHES = (1, 5)
WORDS = (0, 1, 4, 10, 20, 40, 90)
MADE_OF = "random weights of seed 0, batch statistics of 64 random pictures"


def student_of(name: str) -> Student:
    """A student whose batch normalisation has seen pictures, in evaluation mode."""
    student = new_student(name, seed=0)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (64, 3, 8, 8), generator=generator).float()
    pictures = torch.nn.functional.interpolate(coarse, size=student.image_size, mode="bilinear").to(torch.uint8)
    with torch.no_grad():
        for part in pictures.split(8):
            student.encode_image(student.normalise(part))
    return student.eval()


def differences(student: Student, model: Runtime) -> dict[str, float]:
    """Largest errors and lowest cosines of `image`, `resized` and `text`."""
    images = [photo.image for photo in photos(student.image_size)]
    pixels = np.stack([eval_pixels(image, student.preprocess_cfg) for image in images])
    texts = [*TEXTS, *(" ".join(["snow"] * words) for words in WORDS)]
    pairs = {"image": [], "resized": [], "text": []}
    for size in BATCHES:
        for start in range(0, len(images), size):
            rows = slice(start, start + size)
            expected = student.encode_images_in_batches(pixels[rows])
            pairs["image"].append((model.encode_image(pixels[rows]), expected))
            pairs["resized"].append((model.encode_image(images[rows]), expected))
        for start in range(0, len(texts), size):
            part = texts[start : start + size]
            pairs["text"].append((model.encode_text(part), student.encode_texts_in_batches(part)))
    found = {}
    for what, rows in pairs.items():
        value = agreement(*(np.concatenate(side) for side in zip(*rows)))
        found |= {f"{what}_max_error": value.max_error, f"{what}_cosine": value.cosine}
    return found


def fp32(student: Student, folder: Path) -> dict[str, float]:
    """The row of the fp32 graphs; sizes in bytes."""
    model = Runtime(folder, precision="fp32", threads=1)
    sizes = {f"{side}_bytes": (folder / f"{side}.onnx").stat().st_size for side in ("image", "text")}
    return {**differences(student, model), **sizes}


# What is measured of a student's exported folder, by precision. Each is given the student and the folder, in this order.
PRECISIONS = {"fp32": fp32}


def measure(name: str) -> dict[str, list[float]]:
    student, found = student_of(name), {}
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        export_fp32(student, Path(folder), name)
        found["export_seconds"] = [round(time.perf_counter() - started, 1)]
        for precision, row in PRECISIONS.items():
            found |= {f"{precision}_{key}": [value] for key, value in row(student, Path(folder)).items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--again", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.names or zoo_names():
        result: dict[str, Any] = load("onnx_parity")
        if name in result["arms"] and not arguments.again:
            continue
        result["arms"][name] = {**result["arms"].get(name, {}), **measure(name)}
        result["made_of"] = MADE_OF
        save(result)
        print(name, {key: value[0] for key, value in result["arms"][name].items()}, flush=True)


if __name__ == "__main__":
    main()
