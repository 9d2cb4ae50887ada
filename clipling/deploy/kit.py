"""The app kit: what a developer of an app checks a port of the exported model by, and short samples to begin with."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from clipling.data.views import eval_pixels
from clipling.deploy.fixtures import TEXTS, Photo, photos
from clipling.models.dual import Student
from clipling.runtime.manifest import Manifest
from clipling.store import atomic_write, write_json

FIXTURES = "fixtures.json"
TOLERANCE = {
    "exact": {"max_error": 1e-3, "cosine": 0.9999},
    "lossless": {"max_error": 0.05, "cosine": 0.995},
    "lossy": {"max_error": 0.1, "cosine": 0.98},
}
"""Of embeddings. exact: pixels are fed that need no resize; lossless: PNG, resized by the graph; lossy: JPEG, whose decoders differ."""


def write_kit(student: Student, manifest: Manifest, folder: Path) -> None:
    """Writes `folder`: photos, `fixtures.json` and the samples.

    A fixture of a photo: decoded size, pixels uint8 [s, s, 3] after open_clip's preprocessing (a .bin file), the torch model's
    embedding (float32, a .bin file). Of a text: token ids and embedding. Numbers in .bin files are little-endian, rows first.
    """
    rows = [_photo(student, photo, folder) for photo in photos(student.image_size)]
    write_json(folder / FIXTURES, {"format": 1, "tolerance": TOLERANCE, "photos": rows, "texts": _texts(student, manifest, folder)})
    for file in sorted((resources.files("clipling.deploy") / "kit_files").iterdir(), key=lambda file: file.name):
        atomic_write(folder / file.name, file.read_bytes())


def _photo(student: Student, photo: Photo, folder: Path) -> dict[str, Any]:
    image = photo.image
    pixels = np.ascontiguousarray(eval_pixels(image, student.preprocess_cfg))
    embedding = student.encode_images_in_batches(pixels[None])[0]
    atomic_write(folder / photo.name, photo.data)
    return {
        "file": photo.name,
        "width": image.width,
        "height": image.height,
        "tolerance": "exact" if image.size == (student.image_size,) * 2 else "lossless" if photo.lossless else "lossy",
        "pixels": _binary(folder, f"{photo.name}.pixels.bin", pixels),
        "embedding": _binary(folder, f"{photo.name}.embedding.bin", embedding),
    }


def _texts(student: Student, manifest: Manifest, folder: Path) -> list[dict[str, Any]]:
    rows = []
    embeddings = student.encode_texts_in_batches(TEXTS)
    for place, (text, embedding) in enumerate(zip(TEXTS, embeddings)):
        tokens = student.tokenise([text])[0].tolist()
        while not manifest.text.fixed_length and len(tokens) > 1 and tokens[-1] == manifest.text.pad:
            tokens.pop()
        rows.append(
            {"text": text, "tokens": tokens, "tolerance": "exact", "embedding": _binary(folder, f"text{place}.embedding.bin", embedding)}
        )
    return rows


def _binary(folder: Path, name: str, values: np.ndarray) -> dict[str, Any]:
    """Writes an array, and says how it is read."""
    atomic_write(folder / name, values.astype(values.dtype.newbyteorder("<")).tobytes())
    return {"file": name, "dtype": values.dtype.name, "shape": list(values.shape)}
