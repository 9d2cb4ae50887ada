"""The student: a stock open_clip model, wrapped with what training and evaluation need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipling.models.build import build_model, checked_config
from clipling.models.towers import text_features

Norm = Literal["local", "frozen", "sync"]


class Student(nn.Module):
    """A small dual encoder. `.model` is a stock open_clip `CustomTextCLIP`.

    Built from `config` = {"model_cfg": ..., "preprocess_cfg": ...}, the content of `open_clip_config.json`.
    `text_folder` holds config and tokenizer of a Hugging Face text tower (None for open_clip's own).
    """

    def __init__(self, config: dict[str, Any], text_folder: Path | None = None) -> None:
        super().__init__()
        self.config = checked_config(config)
        self.text_folder = text_folder
        self.model = build_model(self.config, text_folder)
        if "timm_model_name" in self.config["model_cfg"]["vision_cfg"]:
            self.model.visual.to(memory_format=torch.channels_last)
        mean, std = (torch.tensor(self.preprocess_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        self.register_buffer("pixel_scale", 1 / (255 * std), persistent=False)
        self.register_buffer("pixel_shift", -mean / std, persistent=False)
        self._tokenizer: Any = None

    @property
    def preprocess_cfg(self) -> dict[str, Any]:
        return self.config["preprocess_cfg"]

    @property
    def image_size(self) -> int:
        return self.preprocess_cfg["size"]

    @property
    def embed_dim(self) -> int:
        return self.config["model_cfg"]["embed_dim"]

    @property
    def context_length(self) -> int:
        return self.config["model_cfg"]["text_cfg"].get("context_length", 77)

    @property
    def logit_scale(self) -> nn.Parameter:
        """The log of the scale of the similarity logits."""
        return self.model.logit_scale

    @property
    def logit_bias(self) -> nn.Parameter | None:
        return self.model.logit_bias

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    def normalise(self, images: Tensor) -> Tensor:
        """Pixels uint8 [n, 3, s, s] to the float input of `encode_image`, on the student's device."""
        images = images.to(self.device, non_blocking=True)
        return torch.addcmul(self.pixel_shift, images.to(torch.float32), self.pixel_scale)

    def encode_image(self, images: Tensor) -> Tensor:
        """Unit rows fp32 [n, embed_dim] of normalised images [n, 3, s, s]."""
        return F.normalize(self.model.visual(images).float(), dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Unit rows fp32 [n, embed_dim] of token ids [n, L], L <= context_length."""
        return F.normalize(text_features(self.model.text, tokens.to(self.device)).float(), dim=-1)

    def tokenise(self, texts: Sequence[str]) -> Tensor:
        """Token ids int64 [n, context_length] of stock open_clip's tokenizer."""
        if self._tokenizer is None:
            from open_clip.tokenizer import SimpleTokenizer

            self._tokenizer = SimpleTokenizer(context_length=self.context_length)
        return self._tokenizer(list(texts))

    def sizes(self) -> dict[str, int]:
        """Numbers of parameters: image and text tower (without token rows), token rows, totals."""
        rows = self.model.text.token_embedding.weight.numel()
        total = sum(p.numel() for p in self.parameters())
        return {
            "image": sum(p.numel() for p in self.model.visual.parameters()),
            "text": sum(p.numel() for p in self.model.text.parameters()) - rows,
            "token_rows": rows,
            "total": total,
            "total_without_token_rows": total - rows,
        }

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode without gradients; the former mode afterwards."""
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(training)

    def encode_images_in_batches(self, images: Any, batch: int = 256) -> np.ndarray:
        """Unit rows float32 [P, embed_dim] of pixels uint8 [P, s, s, 3] (an array, or `Pixels`), in eval mode."""
        out = np.empty((len(images), self.embed_dim), np.float32)
        with self.evaluating():
            for start in range(0, len(images), batch):
                rows = np.arange(start, min(start + batch, len(images)))
                pixels = torch.from_numpy(np.ascontiguousarray(images[rows])).permute(0, 3, 1, 2)
                out[rows] = self.encode_image(self.normalise(pixels)).cpu().numpy()
        return out

    def encode_texts_in_batches(self, texts: Sequence[str], batch: int = 256) -> np.ndarray:
        """Unit rows float32 [n, embed_dim] of texts, in eval mode."""
        out = np.empty((len(texts), self.embed_dim), np.float32)
        with self.evaluating():
            for start in range(0, len(texts), batch):
                tokens = self.tokenise(texts[start : start + batch])
                out[start : start + batch] = self.encode_text(tokens).cpu().numpy()
        return out
