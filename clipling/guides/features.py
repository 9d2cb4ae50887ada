"""Features of blocks of pictures and captions: decode, render, encode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from clipling.data.images import ImageError
from clipling.data.pairs import Pairs
from clipling.data.views import Augment, crops_of_view, eval_pixels, render
from clipling.guides.encoders import ImageEncoder, TextEncoder
from clipling.guides.known import Known

BATCH = 32  # pictures in one forward pass
DECODERS = 2


@dataclass(frozen=True)
class Block:
    """Rows start ... stop of one kind of features: pictures for `image` and `views`, captions for `text`."""

    kind: str
    start: int
    stop: int

    @property
    def file(self) -> str:
        return f"{self.kind}-{self.start:010d}.npy"


@dataclass(frozen=True)
class Features:
    """fp16 unit rows of blocks. A block's rows depend on nothing but the block, and on what is known from an older bank."""

    pairs: Pairs
    image: ImageEncoder
    text: TextEncoder
    views: int = 0
    augment: Augment | None = None
    seed: int = 0
    known: Known | None = None

    def of(self, kind: str, blocks: Sequence[Block]) -> Iterator[tuple[Block, np.ndarray]]:
        """The blocks of one kind, each with its rows: [n, d], or [n * views, d] for views."""
        return self._texts(blocks) if kind == "text" else self._pictures(blocks)

    def _texts(self, blocks: Sequence[Block]) -> Iterator[tuple[Block, np.ndarray]]:
        for block in blocks:
            numbers = np.arange(block.start, block.stop)
            new = numbers if self.known is None else numbers[self.known.text[numbers] < 0]
            rows = np.zeros((len(numbers), self.text.dim), dtype=np.float16)
            if len(new):
                rows[new - block.start] = fp16_rows(self.text.encode([self.pairs.captions[i] for i in new.tolist()]))
            if self.known is not None:
                self.known.fill("text", block.start, rows)
            yield block, rows

    def _pictures(self, blocks: Sequence[Block]) -> Iterator[tuple[Block, np.ndarray]]:
        """The next block is decoded while one is encoded."""
        with ThreadPoolExecutor(DECODERS) as pool:
            coming = None
            for block in [*blocks, None]:
                following = None
                if block is not None:
                    make = self._crops if block.kind == "views" else self._whole
                    following = block, [pool.submit(make, i) for i in range(block.start, block.stop)]
                if coming is not None:
                    decoding, pictures = coming
                    rows = self._encoded([p.result() for p in pictures], self.views if decoding.kind == "views" else 1)
                    if self.known is not None:
                        self.known.fill("image", decoding.start, rows)
                    yield decoding, rows
                coming = following

    def _encoded(self, pictures: Sequence[np.ndarray | None], each: int) -> np.ndarray:
        """fp16 rows of pictures uint8 [each, s, s, 3], one after the other; zeros for those that could not be decoded."""
        rows = np.zeros((len(pictures), each, self.image.dim), dtype=np.float16)
        present = [i for i, picture in enumerate(pictures) if picture is not None]
        if present:
            stack = torch.from_numpy(np.concatenate([pictures[i] for i in present])).permute(0, 3, 1, 2)
            made = [self.image.encode(stack[at : at + BATCH]).cpu().numpy() for at in range(0, len(stack), BATCH)]
            rows[present] = fp16_rows(np.concatenate(made)).reshape(len(present), each, -1)
        return rows.reshape(len(pictures) * each, -1)

    def _whole(self, i: int) -> np.ndarray | None:
        """uint8 [1, s, s, 3], or None when the picture cannot be decoded, or need not be."""
        if self.known is not None and self.known.image[i] >= 0:
            return None
        try:
            return eval_pixels(self.pairs.image(i), self.image.preprocess)[None]
        except ImageError:
            return None

    def _crops(self, i: int) -> np.ndarray | None:
        """uint8 [views, s, s, 3] of one picture, or None when it cannot be decoded."""
        assert self.augment is not None
        try:
            image = self.pairs.image(i)
        except ImageError:
            return None
        aspect = np.full(self.views, image.width / image.height)
        boxes, flips = crops_of_view(self.augment, self.seed, np.arange(self.views), np.full(self.views, i), aspect)
        how, pixels = self.image.preprocess, np.asarray(image)
        return np.stack([render(pixels, box, bool(flip), how["size"], how["interpolation"]) for box, flip in zip(boxes, flips)])


def fp16_rows(features: np.ndarray) -> np.ndarray:
    """fp16 rows; those with a number that is not finite become zeros."""
    rows = features.astype(np.float16)
    rows[~np.isfinite(rows).all(axis=1)] = 0
    return rows
