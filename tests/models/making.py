"""Small configs and batches for the tests of the models."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from clipling.models.catalogue import zoo_config

CAPTIONS = [
    "A black dog runs through the snow .",
    "two children play with a red ball in the park while their parents watch from a bench",
    "snow",
    "A man in a blue shirt is standing on a ladder cleaning a window .",
    "A girl going into a wooden building .",
    "someone rides",
]
ODD = [
    "",
    "   ",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich",
    "一只狗 🐕 \u200d and &amp; entities &lt;b&gt;",
    "!!! 0 ! !",
    "<end_of_text> in the middle, then more",
    "xylophonist " * 60,
    "don't they've we'll 12345 _under_score_",
    "\x00\x07 control\tcharacters\r\n",
]


def tiny(**text) -> dict:
    """The tiny_vit_32 config with other settings of its text tower."""
    config = copy.deepcopy(zoo_config("tiny_vit_32"))
    config["model_cfg"]["text_cfg"].update(text)
    return config


def small_conv() -> dict:
    """A quick student with batch normalisation and a hidden head layer, as MobileNetV3's."""
    config = tiny()
    config["model_cfg"]["vision_cfg"] = {
        "image_size": 32,
        "timm_model_name": "mobilenetv3_small_050",
        "timm_pool": "avg",
        "timm_proj": None,
    }
    return config


def pictures(n: int, size: int, seed: int = 0) -> Tensor:
    """Pixels uint8 [n, 3, size, size]."""
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def tokens(n: int, length: int = 77, longest: int = 40, seed: int = 0, vocabulary: int = 49408) -> Tensor:
    """Token ids [n, length] as CLIP's tokenizer makes them: start, 0 to `longest` words, end (the last id), zeros."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.zeros(n, length, dtype=torch.int64)
    for row in rows:
        words = int(torch.randint(0, min(longest, length - 2) + 1, (1,), generator=generator))
        row[0], row[words + 1] = vocabulary - 2, vocabulary - 1
        row[1 : words + 1] = torch.randint(0, vocabulary - 2, (words,), generator=generator)
    return rows
