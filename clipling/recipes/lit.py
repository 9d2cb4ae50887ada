"""LiT: the image tower starts from a frozen pre-trained encoder, only the text tower learns. Zhai et al. 2022, arXiv 2111.07991."""

from __future__ import annotations

from typing import Literal

from clipling.recipe import Recipe, StudentSpec
from clipling.recipes import clip


def recipe(smoke: bool = False, scale: Literal["cpu", "paper"] = "cpu") -> Recipe:
    made = clip.recipe(smoke, scale)
    made.name = "lit"
    made.student = StudentSpec(
        config="efficientnet_lite0_text128",
        init={"image": "efficientnet_lite0"},
        vocabulary="full" if scale == "paper" else "auto",
    )
    made.stages[0].freeze = ["image"]
    return made
