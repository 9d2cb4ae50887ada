"""From what a user names to an index: opens the model, then brings the index up to date, telling how far it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clipling.deploy.search.index import update
from clipling.deploy.search.opening import model_for
from clipling.guides.progress import ShowProgress


def make_index(model: str, images: str, out: Path | str, *, threads: int | None = None, overwrite: bool = False) -> dict[str, Any]:
    """See the verb `search index`. Returns what changed. Raises UserError."""
    out = Path(out)
    encoder, about = model_for(model, out, threads, overwrite)
    shown = ShowProgress()
    result = update(
        encoder, about, images, out,
        overwrite=overwrite, threads=threads, progress=lambda done, total: shown("indexing pictures", done, total),
    )  # fmt: skip
    return {**result, "model": about["model"]}
