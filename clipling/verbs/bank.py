"""`clipling bank SRC --out BANK`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tyro.conf import Positional


def bank(
    source: Positional[str],
    /,
    out: Path,
    image_encoder: str = "efficientnet_lite0",
    text_encoder: str = "all-MiniLM-L6-v2",
    image_size: int | None = None,
    update: Path | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    group: str | None = None,
    threads: int | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """Features of pictures and captions by frozen encoders, for `clipling train ping --guide BANK`. Continues where it was stopped.

    Several processes (torchrun) share the work.

    Args:
        source: The pairs that the student will be trained on.
        out: The bank folder.
        image_encoder: efficientnet_lite0, timm:NAME or timm:NAME@weights.safetensors (`clipling show encoders`).
        text_encoder: all-MiniLM-L6-v2, or st:NAME_OR_FOLDER of a sentence-transformers model.
        image_size: Pixels at which the image encoder sees the pictures (default: its own).
        update: An older bank: pairs that it has, unchanged, keep their features and are not encoded again.
        image_column: Column of the picture's path, when it cannot be guessed.
        caption_column: Column of the caption, when it cannot be guessed.
        group: Column that names a product.
        threads: Threads of torch (default: all cores).
        json: Print as JSON.
    """
    from clipling.data.source import open_pairs
    from clipling.engine.runtime import start
    from clipling.guides.bank import build_bank
    from clipling.guides.progress import ShowProgress, silent
    from clipling.run import threads as set_threads

    set_threads(threads)
    with start() as runtime:
        with runtime.first_before_others():
            pairs = open_pairs(source, image_column=image_column, caption_column=caption_column, group=group)
        encoders = {"image_encoder": image_encoder, "text_encoder": text_encoder, "image_size": image_size, "update": update}
        progress = ShowProgress() if runtime.first and not json else silent
        made = build_bank(pairs, out, rank=runtime.rank, world=runtime.world, progress=progress, **encoders)
    return {
        "bank": str(out),
        "pairs": len(made.keys),
        "failed_rows": int((~made.valid[:]).sum()),
        "image_features": list(made.image.shape),
        "text_features": list(made.text.shape),
        "licences": made.manifest["licences"],
    }
