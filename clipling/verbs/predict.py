"""`clipling predict MODEL IMAGES --classes ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tyro.conf import Positional


def predict(
    model: Positional[str],
    images: Positional[str],
    /,
    classes: str,
    templates: Path | None = None,
    top: int | None = None,
    out: Path | None = None,
    image_column: str | None = None,
    threads: int | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """Predicts classes of pictures, which need no training: their names are enough (zero-shot classification).

    Args:
        model: A run folder, a folder of a model, an exported folder, or an open_clip name with @TAG.
        images: A folder of pictures, or any source that `clipling train` reads.
        classes: A file with one class name a line, or names separated by commas: cat,dog,horse
        templates: A file with one prompt a line, {c} where the class name goes (default: a photo of a {c}.).
        top: How many guesses a picture (default: 3, or as many as there are classes).
        out: A .csv, .jsonl or .parquet file with a row a picture.
        image_column: Column of the picture's path, when it cannot be guessed.
        threads: Threads of torch (default: all cores).
        json: Print as JSON.
    """
    from clipling.files import predict as make
    from clipling.run import threads as set_threads

    set_threads(threads)
    return make(model, images, classes, templates=templates, top=top, out=out, columns={"image_column": image_column})
