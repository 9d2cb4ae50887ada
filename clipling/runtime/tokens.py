"""Texts to token ids without torch: the exported tokenizer and its cleaning rule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipling.errors import UserError, missing_extra
from clipling.runtime.cleaning import cleaner
from clipling.runtime.manifest import TextSide


class Tokens:
    """The ids that the exported model was trained with."""

    def __init__(self, folder: Path, side: TextSide) -> None:
        self.side = side
        self.clean = cleaner(side.clean)
        self.tokenizer = _open(folder / side.tokenizer)
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(side.context_length)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Token ids int64 [n, L] of texts; shorter ones are filled up with `pad`.

        L is the longest text's (0 texts: 1), or the context length where the tower needs rows of that length.
        """
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch([self.clean(text) for text in texts])]
        length = self.side.context_length if self.side.fixed_length else max([1, *map(len, rows)])
        out = np.full((len(rows), length), self.side.pad, dtype=np.int64)
        for row, ids in zip(out, rows):
            row[: len(ids)] = ids
        return out


def checked_texts(texts: str | Sequence[str]) -> list[str]:
    """One text or several as a list; UserError for anything else."""
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, bytes) or not hasattr(texts, "__iter__"):
        raise UserError(f"expected a text or a sequence of texts, not {type(texts).__name__}")
    found = list(texts)
    for place, text in enumerate(found):
        if not isinstance(text, str):
            raise UserError(f"text {place} is of the kind {type(text).__name__}; expected a str")
    return found


def _open(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise missing_extra("tokenizers, which exported models read texts with,", "runtime") from error
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise UserError(f"{path} is not a tokenizer that this version of tokenizers reads: {error}") from error
