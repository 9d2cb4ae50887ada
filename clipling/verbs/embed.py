"""`clipling embed MODEL SRC --out FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tyro.conf import Positional


def embed(
    model: Positional[str],
    source: Positional[str],
    /,
    out: Path,
    image_column: str | None = None,
    caption_column: str | None = None,
    threads: int | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """Writes the embeddings of all pictures and captions of a source.

    Args:
        model: A run folder, a folder of a model, an exported folder, or an open_clip name with @TAG.
        source: Pairs as in `clipling train`, or photos without captions.
        out: A .parquet file, or a folder that gets image.npy, text.npy and rows.jsonl.
        image_column: Column of the picture's path, when it cannot be guessed.
        caption_column: Column of the caption, when it cannot be guessed.
        threads: Threads of torch (default: all cores).
        json: Print as JSON.
    """
    from clipling.files import embed as make
    from clipling.run import threads as set_threads

    set_threads(threads)
    return make(model, source, out, {"image_column": image_column, "caption_column": caption_column})
