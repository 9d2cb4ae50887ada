"""Captions to token ids: what stock open_clip gives, quicker on long lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import regex
import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from torch import Tensor

from clipling.errors import missing_extra

Tokenise = Callable[[list[str]], Tensor]

SOT, EOT = 49406, 49407
BYTE_IDS = 512  # the first ids of CLIP's table: each byte, then each byte that ends a word
MOST_WORDS = 500_000  # remembered, about 100 MB


@cache
def _clip_tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()


class ClipTokens:
    """CLIP's byte-pair tokens, equal to `open_clip.tokenizer.SimpleTokenizer`, with each word's ids remembered."""

    def __init__(self, context_length: int) -> None:
        self.context_length = context_length
        self.stock = _clip_tokenizer()
        self.words: dict[str, list[int]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> ClipTokens:
        return self  # copies of a student (a moving average) share what is remembered

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Token ids int64 [n, context_length]: start, text, end, zeros; a longer text is cut and ends with the end id."""
        out = torch.zeros(len(texts), self.context_length, dtype=torch.int64)
        filled = out.numpy()
        for row, text in enumerate(texts):
            ids = [SOT, *self.ids(text)[: self.context_length - 2], EOT]
            filled[row, : len(ids)] = ids
        return out

    def ids(self, text: str) -> list[int]:
        """The ids of one text, without start and end."""
        ids: list[int] = []
        for word in regex.findall(self.stock.pat, self._clean(text)):
            known = self.words.get(word)
            if known is None:
                if len(self.words) >= MOST_WORDS:
                    self.words.clear()
                letters = "".join(self.stock.byte_encoder[b] for b in word.encode("utf-8"))
                known = self.words[word] = [self.stock.encoder[part] for part in self.stock.bpe(letters).split(" ")]
            ids.extend(known)
        return ids

    def _clean(self, text: str) -> str:
        # The stock cleaning mends encodings and HTML; on plain printable ASCII it only folds blanks and case.
        if text.isascii() and text.isprintable() and "&" not in text:
            return " ".join(text.split()).lower()
        return self.stock.clean_fn(text)


def tokenizer(text_cfg: dict[str, Any], folder: Path | None) -> Tokenise:
    """The tokenizer that stock open_clip uses for this text tower; `folder` holds the files of a Hugging Face one."""
    length = text_cfg.get("context_length", 77)
    options = text_cfg.get("tokenizer_kwargs") or {}
    if folder is not None:
        try:
            return HFTokenizer(str(folder), context_length=length, tokenizer_mode=text_cfg.get("tokenizer_mode"), **options)
        except ModuleNotFoundError:
            raise
        except ImportError as error:  # transformers' own, of what a kind of tokenizer needs
            raise missing_extra(f"what the tokenizer of {folder} needs ({' '.join(str(error).split())[:200]})", "guides") from error
    return SimpleTokenizer(context_length=length, **options) if options else ClipTokens(length)
