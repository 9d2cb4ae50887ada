"""A-CLIP-PING: the image-space query is what the frozen encoder makes of the crop that the student sees.

After the "active teacher" of CLIP-PING (Thwal et al., arXiv 2412.03871), whose definition could not be read; our reading. The bank
stays as it is, and is searched exactly: training pairs only, never the pair itself or one that it shares a class with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from clipling.data.pixels import Pixels
from clipling.data.views import Augment, crops, crops_of_view, render_batch, view_number
from clipling.errors import UserError
from clipling.guides.encoders import ImageEncoder, device_text
from clipling.guides.guidance import BankGuide
from clipling.guides.neighbours import Table
from clipling.guides.progress import Progress, silent
from clipling.guides.search import ExactSearch
from clipling.guides.stored import BankRows

AT_ONCE = 2048
OTHERWISE = (
    "Leave the bank out (--guide), and one with the crops of this training is built and cached; or let the encoder run at every "
    "step: --set guide.active=online."
)


class Queries(Protocol):
    """Where an active guide's neighbours come from."""

    def neighbours(self, pair: np.ndarray, epoch: int) -> np.ndarray:
        """int64 [N, k] of the crops that pairs int64 [N] show in an epoch; -1 where there are fewer."""
        ...


class ActiveGuide(BankGuide):
    """A `BankGuide` whose image-space neighbours depend on the crop. Arguments as there, and

    queries: `OnlineQueries` (any crop; the encoder runs at every step) or `ViewQueries` (only as many crops as the bank holds).
    image_table is used to describe the guide; there is no random control.
    """

    def __init__(self, bank: BankRows, image_table: Table, text_table: Table, queries: Queries, **options: Any) -> None:
        if options.get("control", "none") != "none":
            raise UserError("the random control belongs to fixed tables; an active guide has none. Set guide.control to none.")
        super().__init__(bank, image_table, text_table, **options)
        self.queries = queries

    def others(self, space: str, pair: np.ndarray, epoch: int, caption: np.ndarray | None) -> np.ndarray:
        """See `BankGuide.others`."""
        if space != "image":
            return super().others(space, pair, epoch, caption)
        return self.queries.neighbours(pair, epoch)[:, : self.k]


class _Searched:
    """A search over the image rows of the training pairs."""

    def __init__(self, bank: BankRows, rows: np.ndarray, links: Sequence[Sequence[int]], k: int, device: str) -> None:
        rows = np.unique(np.asarray(rows, dtype=np.int64))
        self.usable = np.zeros(len(bank), dtype=bool)
        self.usable[rows] = bank.valid[rows]
        columns = np.flatnonzero(self.usable)
        self.search = ExactSearch(bank.image[columns].astype(np.float32), columns, links, device)
        self.bank, self.k = bank, k

    def __call__(self, features: np.ndarray, pair: np.ndarray) -> np.ndarray:
        """Features float [N, d_I] as the encoder gives them -> neighbours int64 [N, k]."""
        ids = np.full((len(pair), self.k), -1, dtype=np.int64)
        asked = self.usable[pair]
        # Through the same rounding as the bank's rows, so that the same picture gives the same neighbours.
        ids[asked] = self.search.top(self.bank.image.prepared(features[asked]), pair[asked], self.k)[0]
        return ids


class OnlineQueries:
    """Encodes the student's crop and flip at every step, at the encoder's own size: as dear as the encoder's forward pass.

    encoder: that of the bank (name, weights and preprocessing are compared). pixels: squashed pictures of all pairs, at
    least as large as the encoder sees them. augment, seed: those of the training batches. rows: the training pairs.
    """

    def __init__(
        self,
        bank: BankRows,
        encoder: ImageEncoder,
        pixels: Pixels,
        augment: Augment,
        seed: int,
        rows: np.ndarray,
        links: Sequence[Sequence[int]],
        k: int,
    ) -> None:
        made = bank.manifest["image"]
        given = {"encoder": encoder.name, "weights": encoder.weights, "preprocess": dict(encoder.preprocess)}
        other = [key for key, value in given.items() if made[key] != value]
        if other:
            raise UserError(
                f"the bank was built by another image encoder ({', '.join(other)} differ). Use {made['encoder']}, or another bank."
            )
        if encoder.preprocess["resize_mode"] != "squash":
            raise UserError("crops are squashed to squares, so an active guide needs an encoder that squashes whole pictures too")
        self.encoder, self.pixels, self.augment, self.seed = encoder, pixels, augment, seed
        self.found = _Searched(bank, rows, links, k, encoder.device)

    def neighbours(self, pair: np.ndarray, epoch: int) -> np.ndarray:
        """See `Queries.neighbours`."""
        boxes, flips = crops(self.augment, self.seed, epoch, pair, self.pixels.aspect[pair])
        how = self.encoder.preprocess
        images = render_batch(self.pixels[pair], boxes, flips, how["size"], how["interpolation"])
        return self.found(self.encoder.encode(images).cpu().numpy(), pair)


class ViewQueries:
    """Neighbours of each of the bank's `views` crops, found once: a step costs what a `BankGuide`'s does.

    bank: built with `views=K` of this augmentation over these very pairs. augment, seed: those of the training batches, with
    `augment.views == K`. Raises UserError when the bank's crops are not the student's.
    """

    def __init__(
        self,
        bank: BankRows,
        augment: Augment,
        seed: int,
        rows: np.ndarray,
        links: Sequence[Sequence[int]],
        k: int,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> None:
        check_views(bank, augment, seed)
        self.augment, self.seed = augment, seed
        found = _Searched(bank, rows, links, k, device)
        assert bank.views is not None
        total = len(bank.views)
        self.table = np.full((total, k), -1, dtype=np.int64)
        progress, what = progress or silent, f"image neighbours of {augment.views} crops (exact, on {device_text(device)})"
        progress(what, 0, total)
        for start in range(0, total, AT_ONCE):
            numbers = np.arange(start, min(total, start + AT_ONCE))
            self.table[numbers] = found(bank.views.uncentred[numbers], numbers // augment.views)
            progress(what, numbers[-1] + 1, total)

    def neighbours(self, pair: np.ndarray, epoch: int) -> np.ndarray:
        """See `Queries.neighbours`."""
        return self.table[pair * self.augment.views + view_number(self.augment, self.seed, epoch, pair)]


def check_views(bank: BankRows, augment: Augment, seed: int) -> None:
    """Raises UserError unless the bank's views are the crops that `crops(augment, seed, ...)` shows of its pairs."""
    views = bank.manifest["views"]
    if views is None or bank.views is None:
        raise UserError(f"the bank has no views: it holds whole pictures, and not the crops that the student sees. {OTHERWISE}")
    if not bank.as_built:
        raise UserError(f"the bank's views belong to the pairs that it was built from, in their order, and these are others. {OTHERWISE}")
    count = views["count"]
    if augment.views != count:
        raise UserError(f"the bank holds {count} views of each picture, the augmentation draws from {augment.views}. {OTHERWISE}")
    made = Augment(**{key: tuple(value) if isinstance(value, list) else value for key, value in views["augment"].items()})
    pair = np.arange(min(len(bank), 64))
    aspect = np.linspace(0.5, 2, len(pair))
    for epoch in range(3):
        shown = crops(augment, seed, epoch, pair, aspect)
        held = crops_of_view(made, views["seed"], view_number(augment, seed, epoch, pair), pair, aspect)
        if not all(np.array_equal(one, other) for one, other in zip(shown, held)):
            raise UserError(
                f"the bank's views are crops of another augmentation or seed ({views['augment']}, seed {views['seed']}) than the "
                f"training's ({augment}, seed {seed}). {OTHERWISE}"
            )
