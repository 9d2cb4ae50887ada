"""Small teachers: another picture size, context and embedding size than `tiny_vit_32`; untrained, or trained on toy pairs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from clipling.data.pairs import Pairs
from clipling.data.pixels import Pixels
from clipling.models.catalogue import zoo_config
from clipling.models.dual import Student
from clipling.models.hub import new_student, save_student


def teacher_config(size: int = 48, length: int = 24, embed: int = 48, **vision: Any) -> dict[str, Any]:
    """A ViT of two layers (or `vision`, a tower of timm) and two layers of text, with a normalisation of its own."""
    config = copy.deepcopy(zoo_config("tiny_vit_32"))
    model = config["model_cfg"]
    model["embed_dim"] = embed
    model["vision_cfg"] |= {"image_size": size, "width": 64, "layers": 2}
    if vision:
        model["vision_cfg"] = {"image_size": size, **vision}
    model["text_cfg"] |= {"context_length": length}
    config["preprocess_cfg"] |= {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.25]}
    return config


def batch_norm_config() -> dict[str, Any]:
    """A teacher with batch normalisation, of the student's own embedding size."""
    return teacher_config(32, 24, 64, timm_model_name="mobilenetv3_small_050", timm_pool="avg", timm_proj=None)


def teacher_folder(folder: Path, config: dict[str, Any] | None = None, seed: int = 5) -> str:
    """An untrained teacher, saved; its spec."""
    save_student(new_student(config or teacher_config(), seed=seed).eval(), folder)
    return str(folder)


def learned(student: Student, pairs: Pairs, steps: int, rate: float = 1e-3) -> Student:
    """The student after `steps` plain steps of CLIP's loss on all pairs at once: it knows them by heart, more or less."""
    pixels = torch.from_numpy(np.ascontiguousarray(Pixels.open(pairs, student.image_size, student.preprocess_cfg)[np.arange(len(pairs))]))
    images = student.normalise(pixels.permute(0, 3, 1, 2))
    tokens = student.tokenise([pairs.captions[i] for i in pairs.offsets[:-1]])
    optimiser = torch.optim.AdamW(student.parameters(), lr=rate)
    own = torch.arange(len(pairs))
    for _ in range(steps):
        logits = student.logit_scale.exp() * student.encode_image(images) @ student.encode_text(tokens).T
        optimiser.zero_grad()
        ((F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2).backward()
        optimiser.step()
    return student.eval()
