"""`clipling convert MODEL --to transformers|open_clip --out DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional


def convert(
    model: Positional[str],
    /,
    to: Literal["open_clip", "transformers"],
    out: Path,
    config: str | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> dict[str, Any]:
    """Writes a model in another layout: open_clip's, or a CLIP of transformers.

    Args:
        model: A run folder, a folder in open_clip's layout or of a CLIP or SigLIP of transformers, NAME@TAG of open_clip, or, with
            --config, a checkpoint file (.pt, .safetensors) of TinyCLIP, MobileCLIP or open_clip.
        to: The layout.
        out: The folder that is made.
        config: What a checkpoint file does not say: a student of the zoo, a model of open_clip (MobileCLIP-S2), or a .json file.
        overwrite: Replace an older conversion in --out.
        json: Print as JSON.
    """
    from clipling.conversion import convert as make

    return make(model, to, out, config, overwrite=overwrite)
