"""The student: a stock open_clip model, wrapped with what training and evaluation need."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipling.errors import UserError, near
from clipling.models import masked as masking
from clipling.models import towers
from clipling.models.build import build_model, checked_config
from clipling.models.convolutions import make_safe
from clipling.models.tokens import Tokenise, tokenizer
from clipling.models.vocabulary import CLIPS_TOKENS, RestrictedEmbedding, kept_ids

NORMS = ("local", "frozen", "sync")
TOKENISED_AT_ONCE = 65_536


class Student(nn.Module):
    """A small dual encoder. `.model` is a stock open_clip `CustomTextCLIP`.

    Built from `config` = {"model_cfg": ..., "preprocess_cfg": ...}, the content of `open_clip_config.json`. With `pruned` in it
    (see irregular.py) layers differ in their numbers of heads and MLP units, and stock open_clip cannot open the model.
    `text_folder` holds config and tokenizer of a Hugging Face text tower (None for open_clip's own).
    """

    def __init__(self, config: dict[str, Any], text_folder: Path | None = None) -> None:
        super().__init__()
        self.config = checked_config(config)
        self.text_folder = text_folder
        self.model = build_model(self.config, text_folder)
        if "timm_model_name" in self.config["model_cfg"]["vision_cfg"]:
            # Convolutions on CPU are about twice as quick in this layout.
            self.model.visual.to(memory_format=torch.channels_last)
            make_safe(self.model.visual)
        # What never learns in any mode: open_clip's fixed sine-cosine positions.
        self._fixed = [name for name, parameter in self.model.named_parameters() if not parameter.requires_grad]
        self.norm = "local"
        self._frozen = {"visual": False, "text": False}
        self._projections_frozen = False
        self._tokenise: Tokenise | None = None
        self._masks: dict[str, masking.TowerMasks] = {}
        self._text_forward: towers.Forward | None = None

    @property
    def preprocess_cfg(self) -> dict[str, Any]:
        """open_clip's preprocessing: size, mean, std, interpolation, resize_mode, fill_color, mode."""
        return self.config["preprocess_cfg"]

    @property
    def local_config(self) -> dict[str, Any]:
        """The config, by which a student of the same shape can be built here: a Hugging Face text tower is named by its folder."""
        made = copy.deepcopy(self.config)
        text = made["model_cfg"]["text_cfg"]
        for key in ("hf_model_name", "hf_tokenizer_name"):
            if key in text and self.text_folder is not None:
                text[key] = str(self.text_folder)
        return made

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
        """The logarithm of the scale of the similarity logits."""
        return self.model.logit_scale

    @property
    def logit_bias(self) -> nn.Parameter | None:
        return self.model.logit_bias

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    # Inputs

    def normalise(self, images: Tensor) -> Tensor:
        """Pixels uint8 [n, 3, s, s] from any device to the float input of `encode_image`, on the student's device."""
        images = images.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        shape = (1, 3, *images.shape[2:])
        mean, std = (torch.tensor(self.preprocess_cfg[key], device=self.device).view(1, 3, 1, 1) for key in ("mean", "std"))
        # Whole pictures of constants: a broadcast along the innermost three channels would not be vectorised.
        scale, shift = (value.expand(shape).contiguous(memory_format=torch.channels_last) for value in (1 / (255 * std), -mean / std))
        return torch.addcmul(shift, images.to(torch.float32), scale)

    def tokenise(self, texts: Sequence[str]) -> Tensor:
        """Token ids int64 [n, context_length], those of stock open_clip's tokenizer for this model."""
        if self._tokenise is None:
            self._tokenise = tokenizer(self.config["model_cfg"]["text_cfg"], self.text_folder)
        return self._tokenise(list(texts))

    def tokenise_all(self, texts: Sequence[str]) -> Tensor:
        """Token ids of many texts to keep, int32 [n, L]: a part at a time, cut to the longest text where padding decides nothing."""
        parts, longest = [], 1
        for start in range(0, max(1, len(texts)), TOKENISED_AT_ONCE):
            ids = self.tokenise(texts[start : start + TOKENISED_AT_ONCE])
            lengths = towers.needed_lengths(self.model.text, ids)
            longest = max(longest, ids.shape[1] if lengths is None else int(lengths.max()) if len(lengths) else 1)
            parts.append(ids.to(torch.int32))
        return torch.cat([part[:, :longest] for part in parts])

    # Embeddings

    def encode_image(self, images: Tensor) -> Tensor:
        """Unit rows fp32 [n, embed_dim] of normalised images [n, 3, s, s]."""
        tower = self.model.visual
        features = masking.image_features(tower, images, self._masks["image"]) if "image" in self._masks else tower(images)
        return F.normalize(features.float(), dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Unit rows fp32 [n, embed_dim] of token ids [n, L], L <= context_length; padding costs nothing."""
        tower, tokens = self.model.text, tokens.to(self.device)
        if "text" in self._masks or masking.is_irregular(tower):
            features = masking.text_features(tower, tokens, self._masks.get("text", masking.NO_MASKS))
        else:
            features = towers.text_features(tower, tokens, self._text_forward)
        return F.normalize(features.float(), dim=-1)

    @contextmanager
    def masked(self, masks: Mapping[str, Tensor]) -> Iterator[None]:
        """Meanwhile `encode_image` and `encode_text` multiply units by `masks`; see masked.py. Without masks, nothing changes.

        masks: `image.hidden` [C], `image.heads` [L, H], `image.intermediate` [L, F] and the same with `text.`, any of them,
        in [0, 1], through which gradients flow; the sizes are `masked.mask_shapes(student)`.
        """
        before, self._masks = self._masks, masking.tower_masks(self, masks)
        try:
            yield
        finally:
            self._masks = before

    def encode_images_in_batches(self, images: Any, batch: int = 256) -> np.ndarray:
        """Unit rows float32 [P, embed_dim] of pixels uint8 [P, s, s, 3] (an array or `Pixels`), in evaluation mode."""
        out = np.empty((len(images), self.embed_dim), np.float32)
        with self.evaluating():
            for start in range(0, len(out), batch):
                rows = np.arange(start, min(start + batch, len(out)))
                pixels = torch.from_numpy(np.ascontiguousarray(images[rows])).permute(0, 3, 1, 2)
                out[rows] = self.encode_image(self.normalise(pixels)).cpu().numpy()
        return out

    def encode_texts_in_batches(self, texts: Sequence[str], batch: int = 256) -> np.ndarray:
        """Unit rows float32 [n, embed_dim] of texts, in evaluation mode."""
        out = np.empty((len(texts), self.embed_dim), np.float32)
        with self.evaluating():
            for start in range(0, len(out), batch):
                tokens = self.tokenise(texts[start : start + batch])
                out[start : start + batch] = self.encode_text(tokens).cpu().numpy()
        return out

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode without gradients; the former mode afterwards."""
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(training)

    # What is trained, and how

    def freeze(self, image: bool = False, text: bool = False, projections: bool = False) -> None:
        """Locks towers as LiT does (arXiv 2111.07991): no gradients, and evaluation mode whatever `train()` says.

        The linear map of a frozen tower into the shared space stays trainable (it is random in a tower that starts from
        unimodal weights) unless `projections`.
        """
        self._frozen = {"visual": image, "text": text}
        self._projections_frozen = projections
        for name, frozen in self._frozen.items():
            tower = getattr(self.model, name)
            tower.requires_grad_(not frozen)
            if frozen and not projections:
                for part in towers.projection(tower):
                    part.requires_grad_(True)
        for name in self._fixed:
            self.model.get_parameter(name).requires_grad_(False)
        self.train(self.training)

    def set_norm(self, norm: str) -> None:
        """How batch normalisation works in training: `local` (statistics of this process's batch), `frozen` (running
        statistics, as in evaluation) or `sync` (statistics over all processes; needs CUDA). Once `sync`, always `sync`."""
        if norm not in NORMS:
            raise UserError(f"norm is {norm!r}. {near(norm, NORMS)}")
        if norm == "sync":
            if not torch.cuda.is_available():
                raise UserError("norm 'sync' (SyncBatchNorm) needs CUDA. Use 'local' or 'frozen'.")
            from timm.layers import convert_sync_batchnorm

            self.model = convert_sync_batchnorm(self.model)
        self.norm = norm
        self.train(self.training)

    def train(self, mode: bool = True) -> Student:
        """As `nn.Module.train`, but frozen towers and frozen batch normalisation stay in evaluation mode."""
        super().train(mode)
        for name, frozen in self._frozen.items():
            if not frozen:
                continue
            tower = getattr(self.model, name).eval()
            for part in () if self._projections_frozen else towers.projection(tower):
                if isinstance(part, nn.Module):
                    part.train(mode)
        if self.norm == "frozen":
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def compile_towers(self) -> None:
        """Has `torch.compile` translate both towers on their next use, for any length of text. Weights and names stay."""
        self.model.visual.compile()
        self._text_forward = torch.compile(towers._cut_forward, dynamic=True)

    @property
    def can_restrict_vocabulary(self) -> bool:
        """Whether the text tower has CLIP's own tokens, all of them."""
        tower = self.model.text
        return isinstance(getattr(tower, "token_embedding", None), nn.Embedding) and tower.vocab_size == CLIPS_TOKENS

    def restrict_vocabulary(self, tokens: Tensor, frozen_rest: bool = False) -> None:
        """Keeps only the token rows that `tokens` (ids of the training captions, any shape) use; see vocabulary.py.

        With `frozen_rest` (for a trained table) the other rows stay as they are, frozen.
        """
        tower = self.model.text
        if not self.can_restrict_vocabulary:
            raise UserError(
                "the vocabulary can be restricted once, in a text tower with CLIP's own tokens (49,408 rows), and this one has not got "
                "them. Use --set student.vocabulary=full"
            )
        tower.token_embedding = RestrictedEmbedding(tower.token_embedding.weight, kept_ids(tokens), frozen_rest)
        self.train(self.training)

    def set_step(self, step: int) -> None:
        """Tells what draws at random inside the model which step it is, so that the draw depends on nothing else."""
        embedding = getattr(self.model.text, "token_embedding", None)
        if isinstance(embedding, RestrictedEmbedding):
            embedding.step = step

    # What it is

    def sizes(self) -> dict[str, int]:
        """Numbers of parameters: each tower without token rows, the token rows as trained, both totals, and the total as saved, where a
        restricted vocabulary is filled up to all rows."""
        table = towers.token_rows(self.model.text)
        rows, width = table.numel(), table.shape[-1]
        embedding = getattr(self.model.text, "token_embedding", None)
        whole = embedding.row_of.numel() * width if isinstance(embedding, RestrictedEmbedding) else rows
        image, text, total = (
            sum(parameter.numel() for parameter in module.parameters()) for module in (self.model.visual, self.model.text, self.model)
        )
        return {
            "image": image,
            "text": text - rows,
            "token_rows": rows,
            "total": total,
            "total_without_token_rows": total - rows,
            "total_as_saved": total - rows + whole,
        }

    def stock_state(self) -> dict[str, Tensor]:
        """The state dict of the stock open_clip model, on the CPU: a restricted vocabulary is filled up."""
        prefix = "text.token_embedding."
        state = self.model.state_dict()
        embedding = getattr(self.model.text, "token_embedding", None)
        if isinstance(embedding, RestrictedEmbedding):
            state = {name: value for name, value in state.items() if not name.startswith(prefix)}
            state[prefix + "weight"] = embedding.expanded()
        return {name: value.detach().cpu().contiguous() for name, value in state.items()}
