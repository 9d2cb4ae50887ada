"""Tiny ViT students that no start value makes easy, and masks for them."""

from __future__ import annotations

import torch
from torch import Tensor

from clipling.models.dual import Student
from clipling.models.hub import new_student
from clipling.models.masked import alive_masks
from tests.models import making


def vit(vision: dict | None = None, text: dict | None = None, vocabulary: list[str] | None = None, init=None, **model) -> Student:
    """A student of 3 image layers (128 wide, 4 heads) and 2 text layers (64 wide, 2 heads), with every weight moved."""
    config = making.tiny(**(text or {}))
    config["model_cfg"]["vision_cfg"].update(vision or {})
    config["model_cfg"].update(model)
    student = new_student(config, vocabulary=vocabulary, init=init)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # biases, gains and layer scales too, so that a forgotten one is noticed
        for name, parameter in student.named_parameters():
            if name != "model.logit_scale":
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return student.eval()


def random_masks(student: Student, kind: str, zeros: float = 0.4, seed: int = 0) -> dict[str, Tensor]:
    """Masks of zeros (about that share) and ones (`binary`) or numbers from 0.2 to 1 (`soft`), which make every tower irregular."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, alive in alive_masks(student).items():
        uniform = torch.rand(alive.shape, generator=generator)
        soft = 0.2 + 0.8 * torch.rand(alive.shape, generator=generator) if kind == "soft" else torch.ones_like(alive)
        masks[name] = torch.where(uniform < zeros, 0.0, soft) * alive
    return masks


def inputs(student: Student, rows: int = 40) -> tuple[Tensor, Tensor]:
    """Normalised images [6, 3, s, s] and token ids [rows, 77]."""
    return student.normalise(making.pictures(6, student.image_size)), making.tokens(rows, longest=20)


def embeddings(student: Student, rows: int = 40) -> Tensor:
    """The rows of both towers, one below the other."""
    images, ids = inputs(student, rows)
    with torch.no_grad():
        return torch.cat([student.encode_image(images), student.encode_text(ids)])
