"""Training batches as a pure function of (seed, step): nothing to lose, nothing to restore, the same for any workers."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from clipling.data import draw
from clipling.data.mix import Mix
from clipling.data.pixels import Pixels
from clipling.data.views import Augment, crops, render_batch
from clipling.errors import UserError


class Captioned(Protocol):
    """The part of `Pairs` that batches need: caption rows of pair i are offsets[i] ... offsets[i + 1], or all T where
    captions belong to no picture (`unpaired`)."""

    offsets: np.ndarray
    unpaired: bool


@dataclass
class HostBatch:
    """One process's part of a training batch of N pairs, on the CPU.

    step, epoch, epoch_fraction: the step's number, its epoch, and the epochs trained before it (step / steps an epoch).
    pair_all, caption_all: int64 [N], the pairs of the whole batch and the caption row drawn for each; the same on all
        ranks, in the order of a gather over ranks.
    pair: int64 [n], this rank's pairs. tokens: int64 [n, L], their drawn captions.
    images: uint8 [n, 3, s, s] in channels-last memory. at_size: the same crops at the sizes that teachers see.
    boxes float64 [n, 4], flips bool [n]: what of each source picture they show (`views.crops`).
    more_tokens: int64 [n, L], other captions of the same pictures by view (`syn`, `mix`). stored: float32 [n, D], what is stored of
        teachers by `image`, `text` and `text:<view>`.
    """

    step: int
    epoch: int
    epoch_fraction: float
    pair_all: np.ndarray
    pair: np.ndarray
    caption_all: np.ndarray
    tokens: torch.Tensor
    images: torch.Tensor
    boxes: np.ndarray
    flips: np.ndarray
    rank: int = 0
    at_size: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)
    more_tokens: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    stored: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)

    def pin_memory(self) -> HostBatch:
        """The same batch in page-locked memory; called by the DataLoader."""
        names = ("at_size", "more_tokens", "stored")
        more = {name: {key: value.pin_memory() for key, value in getattr(self, name).items()} for name in names}
        return dataclasses.replace(self, tokens=self.tokens.pin_memory(), images=self.images.pin_memory(), **more)


class TrainBatches(Dataset):
    """`batches[step]` is the HostBatch of any step; epochs follow each other without end.

    rows: int64, the training pairs, numbers into `pairs`. pixels: of all pairs, squashed. tokens: int [T, L] of all
    captions. batch: pairs in the whole batch N, of which each of `world` ranks renders N / world. The last short batch
    of an epoch is dropped: `steps_per_epoch` is len(rows) // batch. more: pixels of all pairs by the size at which the same crops
    are rendered as well, for teachers (a size equal to the student's costs nothing). mix: of `rows`, where several sources are mixed
    by weight: an epoch is then as long as the mix.
    Raises UserError when the batch is larger than the data, or cannot be shared equally by the ranks.
    """

    def __init__(
        self,
        rows: np.ndarray,
        pairs: Captioned,
        pixels: Pixels,
        tokens: torch.Tensor,
        augment: Augment,
        size: int,
        batch: int,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        more: Mapping[int, Pixels] | None = None,
        mix: Mix | None = None,
    ) -> None:
        self.rows = np.asarray(rows, dtype=np.int64)
        self.offsets = np.asarray(pairs.offsets, dtype=np.int64)
        self.unpaired = pairs.unpaired
        _check(self.rows, self.offsets, len(pixels), len(tokens), batch, world, self.unpaired)
        self.pixels = pixels
        self.tokens = tokens
        self.augment = augment
        self.size = size
        self.batch = batch
        self.rank = rank
        self.world = world
        self.seed = seed
        self.more = dict(more or {})
        self.mix = mix
        self.steps_per_epoch = (len(self.rows) if mix is None else mix.length) // batch
        if not self.steps_per_epoch:
            raise UserError(f"the batch size is {batch}, but mixed by these weights an epoch has {mix.length} pairs")
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: int) -> HostBatch:
        epoch, place = divmod(int(step), self.steps_per_epoch)
        pair_all = self.rows[self._order_of(epoch)[place * self.batch : (place + 1) * self.batch]]
        caption_all = self.captions(epoch, pair_all)
        share = self.batch // self.world
        mine = slice(self.rank * share, (self.rank + 1) * share)
        pair = pair_all[mine]
        images, boxes, flips, at_size = self.pictures(epoch, pair)
        return HostBatch(
            step=int(step),
            epoch=epoch,
            epoch_fraction=step / self.steps_per_epoch,
            pair_all=pair_all,
            pair=pair,
            caption_all=caption_all,
            tokens=self.tokens[torch.from_numpy(caption_all[mine])].long(),
            images=images,
            boxes=boxes,
            flips=flips,
            rank=self.rank,
            at_size=at_size,
        )

    def pictures(self, epoch: int, pair: np.ndarray) -> tuple[torch.Tensor, np.ndarray, np.ndarray, dict[int, torch.Tensor]]:
        """Of each of `pair` in an epoch: the crop, its box and flip, and the crop at other sizes (see HostBatch)."""
        boxes, flips = crops(self.augment, self.seed, epoch, pair, self.pixels.aspect[pair])
        images = render_batch(self.pixels[pair], boxes, flips, self.size)
        at_size = {s: images if s == self.size else render_batch(p[pair], boxes, flips, s) for s, p in self.more.items()}
        return images, boxes, flips, at_size

    def captions(self, epoch: int, pairs: np.ndarray) -> np.ndarray:
        """The caption row drawn for each of `pairs` in an epoch, int64 [n]: one of its own, or of all where none has its own."""
        if self.unpaired:
            return draw.integers(self.seed, epoch, pairs, "caption", len(self.tokens))
        count = self.offsets[pairs + 1] - self.offsets[pairs]
        return self.offsets[pairs] + draw.integers(self.seed, epoch, pairs, "caption", count)

    def _order_of(self, epoch: int) -> np.ndarray:
        # Kept for the steps of one epoch: sorting millions of rows at every step would show.
        if self._order is None or self._order[0] != epoch:
            order = draw.order(self.seed, epoch, len(self.rows)) if self.mix is None else self.mix.order(self.seed, epoch)
            self._order = (epoch, order)
        return self._order[1]


def _check(rows: np.ndarray, offsets: np.ndarray, pictures: int, captions: int, batch: int, world: int, unpaired: bool) -> None:
    if batch < 1 or batch > len(rows):
        raise UserError(
            f"the batch size is {batch} but there are {len(rows)} training pairs. "
            f"Choose a batch size between 2 and {len(rows)}, or add pairs."
        )
    if batch % world:
        raise UserError(f"the batch size {batch} cannot be shared equally by {world} processes. Choose a multiple.")
    if pictures != len(offsets) - 1 or (captions < 1 if unpaired else captions != offsets[-1]):
        raise ValueError(f"{len(offsets) - 1} pairs with {offsets[-1]} captions, but {pictures} pictures, {captions} texts")
    without = int((offsets[rows + 1] == offsets[rows]).sum())
    if without and not unpaired:
        raise UserError(f"{without} of {len(rows)} training pairs have no caption. Training on pairs needs one each.")
