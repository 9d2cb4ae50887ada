"""CLIP-PING's guide: which neighbours a batch's pairs have, and the bank's features of those neighbours.

After "CLIP-PING: Boosting Lightweight Vision-Language Models with Proximus Intrinsic Neighbors Guidance" (Thwal et al.,
arXiv 2412.03871); our reading, see `objectives/ping.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from clipling.data import draw
from clipling.data.pairs import Pairs
from clipling.errors import UserError
from clipling.guides.control import random_tables
from clipling.guides.neighbours import Base, Table, build_table
from clipling.guides.progress import Progress
from clipling.guides.stored import BankRows, caption_rows
from clipling.objectives.term import Neighbours

Caption = Literal["random", "mean", "nearest"]
Control = Literal["none", "random"]
SPACES = ("image", "text", "self")
SAMPLES = 12


class BankGuide:
    """Looks up neighbours in tables and their features in a bank. A look-up is a pure function of (seed, epoch, pair).

    bank: rows joined to the training source; centred or not, as the tables were made. image_table: p(i), nearest in the image
    space. text_table: q(i), nearest in the text space, by pair or by caption.
    k: neighbours of which one is drawn at each step (None: all of the tables).
    control "random": neighbours of another pair (`control.random_tables`); it needs `links` of the source.
    caption: the text of a neighbour is one of its captions drawn at random, their mean, or the one nearest to the pair's own caption.
    spaces: those that are looked up; leave out what no term needs.
    """

    def __init__(
        self,
        bank: BankRows,
        image_table: Table,
        text_table: Table,
        *,
        k: int | None = None,
        control: Control = "none",
        caption: Caption = "random",
        seed: int = 0,
        links: Sequence[Sequence[int]] | None = None,
        spaces: Sequence[str] = SPACES,
    ) -> None:
        if control not in ("none", "random") or caption not in ("random", "mean", "nearest"):
            raise ValueError(f"control={control!r}, caption={caption!r}: expected none or random; random, mean or nearest")
        if not set(spaces) <= set(SPACES):
            raise ValueError(f"spaces={spaces}: expected some of {SPACES}")
        smallest = min(image_table.k, text_table.k)
        if k is not None and not 1 <= k <= smallest:
            raise ValueError(f"k={k}, but the tables hold {smallest} neighbours")
        if len(image_table.ids) != len(bank):
            raise ValueError(f"an image table of {len(image_table.ids)} pairs for a bank of {len(bank)}")
        self.bank, self.k, self.control, self.caption, self.seed = bank, k or smallest, control, caption, seed
        self.spaces = tuple(spaces)
        self.hubness = {"image": image_table.hubness, "text": text_table.hubness}
        self.tables_info = {"image": image_table.info, "text": text_table.info}
        self.left = {}
        if control == "random":
            if links is None:
                raise ValueError("the random control needs the links of the source")
            (image_table, text_table), self.left = random_tables([image_table, text_table], bank.offsets, links, seed)
        self.tables = {"image": image_table, "text": text_table}

    @property
    def provides(self) -> frozenset[str]:
        """What a term may ask for."""
        return frozenset(f"neighbours.{space}" for space in self.spaces)

    @property
    def dims(self) -> dict[str, int]:
        """Sizes of the bank's features: `image` and `text`."""
        return self.bank.dims

    @property
    def licences(self) -> dict[str, str]:
        """Licence of the weights of each encoder, for the model card."""
        return dict(self.bank.manifest["licences"])

    def lookup(self, pair_all: np.ndarray, epoch: int, caption_all: np.ndarray | None = None) -> dict[str, Neighbours]:
        """Neighbours of the pairs int64 [N] of a batch, for each of `spaces`.

        caption_all int64 [N]: the caption rows that the student sees; with them the text of `self` is that caption, and a
        table by caption is asked for that caption's neighbours (else for the first one's).
        """
        pair_all = np.asarray(pair_all, dtype=np.int64)
        found = {}
        for space in self.spaces:
            if space == "self":
                ids = np.where(self.bank.valid[pair_all], pair_all, -1)
                others, text = ids[:, None], self._own_text(pair_all, epoch, caption_all)
            else:
                others = self.others(space, pair_all, epoch, caption_all)
                ids = self._drawn(space, others, pair_all, epoch)
                text = self._text(space, ids, pair_all, epoch, caption_all)
            found[space] = _neighbours(ids, others, self.bank.image[np.maximum(ids, 0)], text)
        return found

    def others(self, space: str, pair: np.ndarray, epoch: int, caption: np.ndarray | None) -> np.ndarray:
        """int64 [N, k]: all neighbours of each pair in a space, nearest first, -1 where there are fewer."""
        table = self.tables[space]
        rows = pair
        if table.info["by_caption"]:
            rows = self.bank.offsets[pair] if caption is None else caption
        return table.ids[rows, : self.k]

    def _drawn(self, space: str, others: np.ndarray, pair: np.ndarray, epoch: int) -> np.ndarray:
        """int64 [N]: one of `others`, -1 where there is none."""
        count = (others >= 0).sum(axis=1)
        pick = draw.integers(self.seed, epoch, pair, f"neighbour {space}", np.maximum(count, 1))
        return others[np.arange(len(pair)), pick]

    def _text(self, space: str, ids: np.ndarray, pair: np.ndarray, epoch: int, caption: np.ndarray | None) -> np.ndarray:
        """fp16 [N, d_T]: the text of pairs `ids` as targets of `pair`."""
        bank, ids = self.bank, np.maximum(ids, 0)
        if self.caption == "mean":
            return bank.text_mean[ids]
        if self.caption == "nearest":
            return bank.text[self._nearest_caption(ids, bank.text_mean[pair] if caption is None else bank.text[caption])]
        count = bank.offsets[ids + 1] - bank.offsets[ids]
        return bank.text[bank.offsets[ids] + draw.integers(self.seed, epoch, pair, f"caption of {space} neighbour", count)]

    def _nearest_caption(self, ids: np.ndarray, own: np.ndarray) -> np.ndarray:
        """int64 [N]: of the captions of each of `ids` the row nearest to `own` [N, d_T]."""
        count = self.bank.offsets[ids + 1] - self.bank.offsets[ids]
        rows, query = caption_rows(self.bank.offsets, ids), np.repeat(np.arange(len(ids)), count)
        near = (torch.from_numpy(self.bank.text[rows]).float() * torch.from_numpy(own).float()[query]).sum(dim=1).numpy()
        best = np.lexsort((rows, -near, query))
        return rows[best[np.cumsum(count) - count]]

    def _own_text(self, pair: np.ndarray, epoch: int, caption: np.ndarray | None) -> np.ndarray:
        if caption is not None:
            return self.bank.text[np.asarray(caption, dtype=np.int64)]
        if self.caption == "random":
            return self._text("self", pair, pair, epoch, None)
        return self.bank.text_mean[pair]

    def describe(self, pairs: Pairs) -> dict[str, Any]:
        """What guides a run, for its folder: settings, hubness, and a sample of pairs with their neighbours' keys."""
        manifest = self.bank.manifest
        about = {
            "kind": type(self).__name__,
            "k": self.k,
            "control": self.control,
            "caption": self.caption,
            "centred": self.bank.image.centre is not None,
            "encoders": {side: manifest[side]["encoder"] for side in ("image", "text")},
            "licences": self.licences,
            "pairs_without_features": int((~self.bank.valid).sum()),
            "hubness": self.hubness,
            "tables": self.tables_info,
            "neighbours_sample": [self._sample(pairs, i) for i in self._sampled()],
        }
        most = {space: int((table.ids[:, : self.k] >= 0).sum(axis=1).max(initial=0)) for space, table in self.tables.items()}
        short = [f"{count} in the {space} space" for space, count in most.items() if count < self.k]
        if short:
            about["note"] = f"k is {self.k}, but no pair has more neighbours than {' and '.join(short)}: one of those is drawn"
        return {**about, "control_left": self.left} if self.left else about

    def _sampled(self) -> list[int]:
        """Pairs with neighbours in both spaces, spread over the source."""
        image, text = self.tables["image"].ids, self.tables["text"].ids
        rows = self.bank.offsets[:-1] if self.tables["text"].info["by_caption"] else np.arange(len(self.bank))
        rows = np.minimum(rows, len(text) - 1)
        guided = np.flatnonzero((image[:, 0] >= 0) & (text[rows, 0] >= 0))
        return guided[np.linspace(0, len(guided) - 1, min(SAMPLES, len(guided))).astype(int)].tolist()

    def _sample(self, pairs: Pairs, pair: int) -> dict[str, Any]:
        row = int(self.bank.offsets[pair]) if self.tables["text"].info["by_caption"] else pair
        named = {"image": self.tables["image"].ids[pair, : self.k], "text": self.tables["text"].ids[row, : self.k]}
        keys = {f"{space}_neighbours": [pairs.keys[i] for i in ids.tolist() if i >= 0] for space, ids in named.items()}
        return {"pair": pairs.keys[pair], **keys}


def _neighbours(ids: np.ndarray, others: np.ndarray, image: np.ndarray, text: np.ndarray) -> Neighbours:
    """Tensors of a look-up; rows without a neighbour get features of zeros."""
    absent = torch.from_numpy(ids < 0)
    features = [torch.from_numpy(np.ascontiguousarray(rows)).float() for rows in (image, text)]
    if bool(absent.any()):
        features = [rows.masked_fill(absent[:, None], 0) for rows in features]
    return Neighbours(torch.from_numpy(ids), torch.from_numpy(np.ascontiguousarray(others)), *features)


def open_tables(
    bank: BankRows,
    pairs: Pairs,
    rows: np.ndarray,
    folder: Path | str,
    *,
    k: int,
    cap: int | None = None,
    query: Literal["mean", "caption"] = "mean",
    method: Literal["auto", "exact"] = "auto",
    base: Mapping[str, Base] | None = None,
    progress: Progress | None = None,
    rank: int = 0,
    world: int = 1,
) -> dict[str, Table]:
    """The tables of the `image` and the `text` space over the training pairs `rows`, kept in `folder`.

    query: text neighbours of the pair's mean caption, or of each caption on its own. base: older tables, as for `build_table`.
    """
    by_caption = query == "caption"
    owner = np.repeat(np.arange(len(bank)), np.diff(bank.offsets)) if by_caption else None
    made = {}
    for space, features in (("image", bank.image), ("text", bank.text if by_caption else bank.text_mean)):
        made[space] = build_table(
            features,
            rows,
            pairs.links(),
            bank.valid,
            k,
            cap=cap,
            owner=owner if space == "text" else None,
            folder=folder,
            space=space,
            method=method,
            base=None if base is None else base[space],
            progress=progress,
            rank=rank,
            world=world,
        )
    if all((table.ids < 0).all() for table in made.values()):
        raise UserError(f"no training pair of {pairs.name} has a neighbour: {len(rows)} pairs, all alike or without features")
    return made
