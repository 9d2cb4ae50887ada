"""`clipling search index MODEL IMAGES --out IDX`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tyro.conf import Positional


def search_index(
    model: Positional[str],
    images: Positional[str],
    /,
    out: Path,
    threads: int | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> dict[str, Any]:
    """Makes an index of pictures to be searched, or brings it up to date: only what is new is looked at. Without torch.

    Args:
        model: A folder that `clipling export` made, or a run or model, which is exported first.
        images: A folder of pictures, at any depth, or .tar files (braces allowed).
        out: The folder of the index. Where it is one already, new, changed and deleted pictures are found out.
        threads: Threads for reading pictures, and of the model (default: all cores).
        overwrite: Forget what is in the index first, also that of another model or folder.
        json: Print as JSON.
    """
    from clipling.deploy.search.making import make_index

    return make_index(model, images, out, threads=threads, overwrite=overwrite)
