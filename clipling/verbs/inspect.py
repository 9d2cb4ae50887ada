"""`clipling data inspect SRC`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tyro.conf import Positional


def inspect(
    source: Positional[str],
    /,
    image_column: str | None = None,
    caption_column: str | None = None,
    separator: str | None = None,
    group: str | None = None,
    problems: Path | None = None,
    size: int = 224,
    rate: float | None = None,
    workers: int = 1,
    json: bool = False,
) -> dict[str, Any]:
    """Prints what was parsed of a source: pairs, captions, duplicates, problems, samples, and how quickly its pictures load.

    Args:
        source: A folder, .csv/.tsv, .jsonl, .tar files (braces allowed), or demo:emoji.
        image_column: Column of the picture's path, when it cannot be guessed.
        caption_column: Column of the caption, when it cannot be guessed.
        separator: Separator of a CSV file, when it cannot be guessed.
        group: Column that names a product.
        problems: Write the list of bad rows to this .tsv file.
        size: Pixels that the student will see.
        rate: Pairs a second that training takes, to say whether loading keeps up.
        workers: Processes that load (data.workers).
        json: Print as JSON.
    """
    from clipling.data.inspect import inspect as look
    from clipling.data.source import open_pairs
    from clipling.data.speed import loading

    pairs = open_pairs(source, image_column=image_column, caption_column=caption_column, group=group, separator=separator, max_bad=1.0)
    if problems is not None:
        pairs.problems.write(problems)
    return {**look(pairs), "loading": {**loading(pairs, size, rate, workers), "student": _default_student()}}


def _default_student() -> dict[str, Any]:
    """Name and picture size of the student that recipes begin with. Its file is read, for the zoo's own reader wants torch."""
    from clipling.settings import StudentSpec
    from clipling.store import read_json

    name = StudentSpec().config
    config = read_json(Path(__file__).parents[1] / "models" / "zoo" / f"{name}.json")
    return {"name": name, "size": config["model_cfg"]["vision_cfg"]["image_size"]}
