"""Small sources for the tests of surgery, with weights and statistics that are all different."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from clipling.models.dual import Student
from clipling.models.hub import new_student
from tests.models.making import tokens

VOCABULARY = 64


def config(vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, embed_dim: int = 24) -> dict[str, Any]:
    """A ViT of 4 layers, 4 heads of 8, MLP 64, patches of 8 at 32 px; a text tower of 4 layers, 3 heads of 8, 20 places."""
    base = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 4, "head_width": 8, "mlp_ratio": 2.0}
    words = {"context_length": 20, "vocab_size": VOCABULARY, "width": 24, "heads": 3, "layers": 4, "mlp_ratio": 2.0}
    if vision and ("timm_model_name" in vision or isinstance(vision.get("layers"), list)):
        base = {"image_size": 32}
    return {
        "model_cfg": {"embed_dim": embed_dim, "vision_cfg": {**base, **(vision or {})}, "text_cfg": {**words, **(text or {})}},
        "preprocess_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.1]},
    }


def timm(name: str, **text: Any) -> dict[str, Any]:
    return config({"timm_model_name": name, "timm_proj": None}, text)


def source(made: dict[str, Any], seed: int = 0) -> Student:
    """A student in evaluation mode; no two of its units are alike, normalisations included."""
    student = new_student(made, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in student.model.state_dict().items():
            noise = torch.rand(value.shape, generator=generator)
            if value.ndim == 1 and value.is_floating_point():
                value.copy_(0.5 + noise if name.endswith(("weight", "running_var")) else 0.2 * noise - 0.1)
        student.logit_scale.fill_(3.0)
    return student.eval()


def changed(made: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """A copy with other entries: vision=..., text=..., embed_dim=..."""
    out = copy.deepcopy(made)
    out["model_cfg"]["vision_cfg"] |= parts.pop("vision", {})
    out["model_cfg"]["text_cfg"] |= parts.pop("text", {})
    out["model_cfg"] |= parts
    return out


def images(n: int = 3, size: int = 32) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def words(n: int = 3) -> Tensor:
    return tokens(n, 20, 15, seed=2, vocabulary=VOCABULARY)


@torch.no_grad()
def embeddings(student: Student, size: int = 32) -> tuple[Tensor, Tensor]:
    student.eval()
    return student.encode_image(images(size=size)), student.encode_text(words())
