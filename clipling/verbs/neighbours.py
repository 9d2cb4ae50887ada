"""`clipling neighbours BANK --data SRC`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional


def neighbours(
    bank: Positional[Path],
    /,
    data: str,
    val: str | None = None,
    k: int = 5,
    max_in_degree: int | None = None,
    query: Literal["mean", "caption"] = "mean",
    centre: bool = True,
    method: Literal["auto", "exact"] = "auto",
    update: Path | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    group: str | None = None,
    threads: int | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """Neighbour tables of a bank, where `clipling train ping --guide BANK` finds them. Continues where it was stopped.

    Training makes them itself where they are missing; this verb is for many pairs. Several processes (torchrun) share the work.

    Args:
        bank: The bank folder.
        data: The pairs that the student will be trained on, as in `clipling train`.
        val: Pairs for validation, as in `clipling train`: they are never neighbours.
        k: Neighbours of each pair (the recipe's guide.k).
        max_in_degree: Most pairs that may have one pair as neighbour (guide.max_in_degree).
        query: Text neighbours of the pair's mean caption, or of each caption (guide.query).
        centre: Subtract the mean of the training rows first (guide.centre; --no-centre to leave it out).
        method: auto is exact up to 200,000 rows on a CPU and approximate above, with measured recall.
        update: The folder of older tables ("tables" in what this verb printed): only new pairs are compared with all.
        image_column: Column of the picture's path, when it cannot be guessed.
        caption_column: Column of the caption, when it cannot be guessed.
        group: Column that names a product; its pairs are never neighbours of each other.
        threads: Threads of torch (default: all cores).
        json: Print as JSON.
    """
    from clipling.build import tables_folder
    from clipling.engine.runtime import start
    from clipling.guides.progress import ShowProgress, silent
    from clipling.guides.tables import make_tables
    from clipling.recipe import Data
    from clipling.run import open_data
    from clipling.run import threads as set_threads
    from clipling.settings import GuideSpec

    set_threads(threads)
    with start() as runtime:
        with runtime.first_before_others():
            opened = open_data(Data(source=data, val=val, image_column=image_column, caption_column=caption_column, group=group))
        spec = GuideSpec(k=k, max_in_degree=max_in_degree, query=query, centre=centre)
        folder = tables_folder(bank, opened.train, spec)
        tables = make_tables(
            bank,
            opened.train,
            folder,
            k=k,
            cap=max_in_degree,
            centre=centre,
            query=query,
            method=method,
            update=update,
            progress=ShowProgress() if runtime.first and not json else silent,
            rank=runtime.rank,
            world=runtime.world,
        )
        runtime.wait()  # for what the first process writes beside them
    found: dict[str, Any] = {"bank": str(bank), "tables": str(folder), "pairs": len(opened.train)}
    for space, table in tables.items():
        found[f"{space}_method"], found[f"{space}_recall"] = table.info["method"], table.info["recall"]
        found[f"{space}_largest_in_degree"] = table.hubness["largest"]
    return found
