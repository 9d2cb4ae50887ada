"""What an older bank knows of a source: features that need not be made again, and must not, as other company gives them other last bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from clipling.data.pairs import Pairs
from clipling.errors import UserError
from clipling.guides.stored import Bank, caption_rows, captions_digest, differ


@dataclass(frozen=True)
class Known:
    """bank: the older one. image int64 [P], text int64 [T]: its row of each picture and caption, -1 where it has none."""

    bank: Bank
    image: np.ndarray
    text: np.ndarray

    @classmethod
    def of(cls, bank: Bank, pairs: Pairs, described: dict[str, Any]) -> Known:
        """described: `image` and `text` as the manifest of the new bank will say them.

        Raises UserError when other encoders made the older bank.
        """
        for side in ("image", "text"):
            other = [key for key, value in described[side].items() if bank.manifest[side].get(key) != value]
            if other:
                raise UserError(
                    f"the bank {bank.folder} was made with another {', '.join(f'{side} {key}' for key in other)}, so its features cannot "
                    "be taken over. Give the encoders and the image size that it names, or build a bank without --update."
                )
        place = {key: i for i, key in enumerate(bank.keys)}
        image = np.array([place.get(key, -1) for key in pairs.keys], dtype=np.int64)
        for i in np.flatnonzero(image >= 0).tolist():
            old, digest = int(image[i]), captions_digest(pairs.captions_of(i))
            if not bank.valid[old] or differ(bank.image_hashes[old], pairs.hashes[i]) or bank.caption_hashes[old] != digest:
                image[i] = -1  # changed, or worth another try
        text = np.full(len(pairs.captions), -1, dtype=np.int64)
        there = np.flatnonzero(image >= 0)
        text[caption_rows(pairs.offsets, there)] = caption_rows(bank.offsets, image[there])
        return cls(bank, image, text)

    def fill(self, kind: str, start: int, rows: np.ndarray) -> None:
        """Puts the known ones into the features [n, d] of rows start ... of `image` or `text`."""
        index = (self.image if kind == "image" else self.text)[start : start + len(rows)]
        there = index >= 0
        if there.any():
            rows[there] = (self.bank.image if kind == "image" else self.bank.text)[index[there]]
