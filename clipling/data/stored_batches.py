"""Training batches from stored knowledge: the crops that teachers saw, what they made of them, and synthetic captions."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from clipling.data import draw
from clipling.data.knowledge import Knowledge
from clipling.data.loader import HostBatch, TrainBatches
from clipling.data.pairs import Pairs
from clipling.data.replay import operated, replay
from clipling.data.views import render_batch

VIEWS = ("syn", "mix")


class StoredBatches(TrainBatches):
    """As `TrainBatches`; crops are stored records, and `stored` and `more_tokens` are filled.

    knowledge: of `pairs`, whose rows are all trained on. wanted: what terms need. text_tokens: int [S, L] of the synthetic captions.
    mix: how often the caption of the view "mix" is a synthetic one. exact: crops come from the pictures themselves instead of `pixels`.
    """

    def __init__(
        self,
        *args: Any,
        pairs: Pairs,
        knowledge: Knowledge,
        wanted: frozenset[str],
        text_tokens: torch.Tensor,
        mix: float = 0.5,
        exact: bool = False,
        **more: Any,
    ) -> None:
        super().__init__(np.arange(len(pairs), dtype=np.int64), pairs, *args, **more)
        self.source, self.knowledge, self.wanted = pairs, knowledge, wanted
        self.text_tokens, self.synthetic, self.exact = text_tokens, mix, exact

    def __getitem__(self, step: int) -> HostBatch:
        host = super().__getitem__(step)
        share = len(host.pair)
        captions = host.caption_all[host.rank * share : (host.rank + 1) * share]
        stored: dict[str, np.ndarray] = {}
        if "teacher.image" in self.wanted:
            stored["image"] = self.knowledge.image(self.knowledge.draw(self.seed, host.epoch, host.pair))
        if "teacher.text" in self.wanted:
            stored["text"] = self.knowledge.text(captions)
        tokens: dict[str, torch.Tensor] = {}
        for view in VIEWS:
            texts = self._texts(view, host.epoch, host.pair)
            if f"student.text:{view}" in self.wanted:
                tokens[view] = self._tokens(texts, captions)
            if f"teacher.text:{view}" in self.wanted:
                stored[f"text:{view}"] = self._features(texts, captions)
        return dataclasses.replace(host, more_tokens=tokens, stored={name: torch.from_numpy(rows) for name, rows in stored.items()})

    def _texts(self, view: str, epoch: int, pair: np.ndarray) -> np.ndarray:
        """The synthetic caption of each pair in a view, int64 [n]; -1 where the view shows the real one that was drawn."""
        texts = self.knowledge.draw_texts(self.seed, epoch, pair)
        return texts if view == "syn" else np.where(draw.uniform(self.seed, epoch, pair, "mix") < self.synthetic, texts, -1)

    def _tokens(self, texts: np.ndarray, captions: np.ndarray) -> torch.Tensor:
        made = self.tokens[torch.from_numpy(captions)].long()
        there = torch.from_numpy(texts >= 0)
        made[there] = self.text_tokens[torch.from_numpy(texts[texts >= 0])].long()
        return made

    def _features(self, texts: np.ndarray, captions: np.ndarray) -> np.ndarray:
        made = self.knowledge.text(captions)
        made[texts >= 0] = self.knowledge.synthetic(texts[texts >= 0])
        return made

    def pictures(self, epoch: int, pair: np.ndarray) -> tuple[torch.Tensor, np.ndarray, np.ndarray, dict[int, torch.Tensor]]:
        rows = self.knowledge.draw(self.seed, epoch, pair)
        boxes, flips = self.knowledge.boxes[rows], self.knowledge.flips[rows]
        if self.exact:
            at = self._from_sources(pair, rows)
        else:
            at = {s: self._from_held(p[pair], boxes, flips, rows, s) for s, p in {**self.more, self.size: self.pixels}.items()}
        return at[self.size], boxes, flips, {s: at[s] for s in self.more}

    def _from_sources(self, pair: np.ndarray, rows: np.ndarray) -> dict[int, torch.Tensor]:
        """Crops by size, uint8 [n, 3, s, s]; one picture is held at a time: a batch of photographs may be gigabytes."""
        made = {s: np.empty((len(pair), s, s, 3), np.uint8) for s in {self.size, *self.more}}
        for place, (i, row) in enumerate(zip(pair, rows)):
            picture = np.asarray(self.source.image(int(i)))
            for s, crops in made.items():
                crops[place] = replay(picture, self.knowledge.records[row], s)
        return {s: torch.from_numpy(crops).permute(0, 3, 1, 2) for s, crops in made.items()}

    def _from_held(self, pictures: np.ndarray, boxes: np.ndarray, flips: np.ndarray, rows: np.ndarray, size: int) -> torch.Tensor:
        images = render_batch(pictures, boxes, flips, size)
        crops = images.permute(0, 2, 3, 1).numpy()
        for crop, row in zip(crops, rows):
            if self.knowledge.records[row].operations:
                crop[:] = operated(crop, self.knowledge.records[row].operations)
        return images
