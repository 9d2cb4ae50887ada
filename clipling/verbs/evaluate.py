"""`clipling eval MODEL --data SRC`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from clipling.errors import UserError


def evaluate(
    model: Positional[str],
    /,
    data: str,
    task: Literal["auto", "retrieval", "zeroshot"] = "auto",
    classes: Path | None = None,
    templates: Path | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    group: str | None = None,
    out: Path | None = None,
    threads: int | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """Measures a model on your own pairs (retrieval) or labelled pictures (zero-shot classification).

    Args:
        model: A run folder, a folder in open_clip layout, or an open_clip name such as ViT-B-32@laion2b_s34b_b79k.
        data: Pairs as in `clipling train`; for zero-shot: class folders, CLIP_benchmark's layout, or demo:emoji.
        task: retrieval, zeroshot, or auto (zeroshot where the source has classes and no captions).
        classes: Zero-shot: a file with one class name a line, in the order of the classes.
        templates: Zero-shot: a file with one prompt a line, {c} where the class name goes.
        image_column: Column of the picture's path, when it cannot be guessed.
        caption_column: Column of the caption, when it cannot be guessed.
        group: Column that names a product; its pictures are right answers to each other's captions.
        out: Write the result as CLIP_benchmark-compatible JSON.
        threads: Threads of torch (default: all cores).
        json: Print as JSON.
    """
    from clipling.assess import assess
    from clipling.run import threads as set_threads

    if task == "retrieval" and (classes or templates):
        raise UserError("--classes and --templates are for --task zeroshot: retrieval would ignore them")
    set_threads(threads)
    columns = {"image_column": image_column, "caption_column": caption_column, "group": group}
    return assess(model, data, task, classes=classes, templates=templates, columns=columns, out=out)
