"""From a source and a bank to a guide, in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from clipling.data.pairs import Pairs
from clipling.data.pixels import Pixels
from clipling.data.views import Augment
from clipling.guides.active import ActiveGuide, OnlineQueries, ViewQueries, check_views
from clipling.guides.encoders import chosen_device, open_image_encoder
from clipling.guides.guidance import SPACES, BankGuide, Caption, Control, open_tables
from clipling.guides.progress import Progress
from clipling.guides.stored import Bank
from clipling.guides.tables import centred

# Held a little larger than the encoder sees them, so that a crop of half the area is not blown up.
PIXELS_MARGIN = 1.25


def open_guide(
    pairs: Pairs,
    bank: Path | str,
    *,
    rows: np.ndarray | None = None,
    k: int = 5,
    cap: int | None = None,
    centre: bool = True,
    query: Literal["mean", "caption"] = "mean",
    caption: Caption = "random",
    control: Control = "none",
    active: Literal["none", "online", "views"] = "none",
    augment: Augment | None = None,
    seed: int = 0,
    spaces: tuple[str, ...] = SPACES,
    tables: Path | str | None = None,
    progress: Progress | None = None,
    rank: int = 0,
    world: int = 1,
) -> BankGuide:
    """Joins the bank to `pairs`, makes or finds the neighbour tables, and returns the guide.

    rows: the training pairs, numbers into `pairs` (None: all). cap: largest in-degree. centre: subtract the mean of the training
    rows. active: "views" wants a bank of these very pairs with `views=K`, "online" runs the bank's image encoder at every
    step; both want the training's `augment` and `seed`. tables: where tables are kept (None: in the bank's folder).
    Raises UserError when the bank is of another source, or the crops of a bank are not the training's.
    """
    folder = Path(bank)
    joined = Bank.open(folder).join(pairs)
    rows = np.arange(len(pairs)) if rows is None else rows
    if active != "none" and augment is None:
        raise ValueError("an active guide needs the augmentation of the training")
    if active == "views":
        check_views(joined, augment, seed)
    kept = Path(tables or folder / "tables")
    joined = centred(joined, rows, kept) if centre else joined
    made = open_tables(joined, pairs, rows, kept, k=k, cap=cap, query=query, progress=progress, rank=rank, world=world)
    options = {"caption": caption, "control": control, "seed": seed, "spaces": spaces, "links": pairs.links()}
    if active == "none":
        joined.warm()
        return BankGuide(joined, made["image"], made["text"], **options)
    if active == "views":
        queries = ViewQueries(joined, augment, seed, rows, pairs.links(), k, chosen_device("auto"), progress)
    else:
        about = joined.manifest["image"]
        encoder = open_image_encoder(about["encoder"], about["preprocess"]["size"])
        size = encoder.preprocess["size"]
        pixels = Pixels.open(pairs, round(size * PIXELS_MARGIN) if augment.crops else size, "squash")
        queries = OnlineQueries(joined, encoder, pixels, augment, seed, rows, pairs.links(), k)
    return ActiveGuide(joined, made["image"], made["text"], queries, **options)
