"""How far an exported folder is from the torch model: what every export must pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipling.data.views import eval_pixels
from clipling.deploy.fixtures import TEXTS, photos
from clipling.errors import UserError
from clipling.models.dual import Student
from clipling.runtime.model import Runtime

MAX_ERROR = 1e-4
COSINE = 0.99999
COSINE_RESIZED = 0.999  # where the graph resizes: pixels may differ by one level from Pillow's


@dataclass(frozen=True)
class Agreement:
    """max_error: of any number of any embedding; cosine: the lowest of any row."""

    max_error: float
    cosine: float
    rows: int


def agreement(got: np.ndarray, expected: np.ndarray) -> Agreement:
    """Of rows [n, d] of two models; rows are normalised for the cosine."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    lengths = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
    return Agreement(float(np.abs(got - expected).max()), float(((got * expected).sum(1) / lengths).min()), len(got))


def measure(student: Student, model: Runtime, texts: Sequence[str] = TEXTS) -> dict[str, Agreement]:
    """`image`: on pixels of the model's size; `resized`: on picture files, which the graph resizes; `text`. And `tokens`: share
    of texts whose ids are equal."""
    images = [photo.image for photo in photos(student.image_size)]
    pixels = np.stack([eval_pixels(image, student.preprocess_cfg) for image in images])
    expected = student.encode_images_in_batches(pixels)
    return {
        "image": agreement(model.encode_image(pixels), expected),
        "resized": agreement(model.encode_image(images), expected),
        "text": agreement(model.encode_text(texts), student.encode_texts_in_batches(texts)),
    }


def check_tokens(student: Student, model: Runtime, texts: Sequence[str] = TEXTS) -> None:
    """UserError when the exported tokenizer gives other ids than the student's."""
    for text in texts:
        expected, got = student.tokenise([text])[0].numpy(), model.tokens([text])[0]
        padded = np.full_like(expected, model.manifest.text.pad)
        padded[: len(got)] = got
        if not np.array_equal(padded, expected):
            raise UserError(f"the exported tokenizer gives {got.tolist()} for {text!r}, but the student's gives {expected.tolist()}")


def check(student: Student, folder: Path) -> dict[str, dict[str, Any]]:
    """The fp32 graphs of `folder` against the student, JSON-able; UserError with the numbers when they differ by too much."""
    model = Runtime(folder, precision="fp32", threads=1)
    check_tokens(student, model)
    found = measure(student, model)
    for name, value in found.items():
        resized = name == "resized"
        lowest = COSINE_RESIZED if resized else COSINE
        if not (value.cosine >= lowest and (resized or value.max_error <= MAX_ERROR)):
            wanted = f"cosine {lowest} or more" + ("" if resized else f" and error {MAX_ERROR} or less")
            raise UserError(
                f"the exported model differs from the torch model ({name}): cosine {value.cosine:.6f}, largest error "
                f"{value.max_error:.2g}; expected {wanted}. Nothing was written"
            )
    return {name: asdict(value) for name, value in found.items()}
