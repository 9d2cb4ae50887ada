"""Plain CLIP from scratch: the baseline that every other recipe is compared with.

Radford et al. 2021, arXiv 2103.00020. The paper-scale variant is the student and data size of CLIP-PING (arXiv 2412.03871): ViT-XS and 3 M
pairs (for example the webdataset copies of CC3M named `pixparse/cc3m-wds`).
"""

from __future__ import annotations

from typing import Literal

from clipling.errors import UserError, near
from clipling.recipe import Data, Evaluation, Optimiser, Recipe, Stage, StudentSpec, TermSpec


def recipe(smoke: bool = False, scale: Literal["cpu", "paper"] = "cpu") -> Recipe:
    return sized(Recipe(name="clip", objective={"clip": TermSpec(use="clipling.objectives.contrastive:Clip")}), smoke, scale)


def sized(recipe: Recipe, smoke: bool, scale: str) -> Recipe:
    """The same recipe at the size that was asked for; smoke: one step of a tiny student."""
    if scale not in ("cpu", "paper"):
        raise UserError(f"--scale {scale!r}: {near(scale, ['cpu', 'paper'])}")
    if scale == "paper":
        recipe.student = StudentSpec(config="vit_xs_16", vocabulary="full")
        recipe.stages = [Stage(epochs=30, learning_rate=5e-4, warmup=1)]
        recipe.optimiser = Optimiser(batch=1024, weight_decay=0.2, autocast="bf16")
        recipe.data = Data(crop=(0.5, 1.0), workers=8)
    if smoke:
        recipe.student = StudentSpec(config="tiny_vit_32")
        recipe.optimiser.batch = 8
        recipe.optimiser.autocast = "none"
        recipe.data.workers = 0
        recipe.max_steps = 1
        recipe.evaluation = Evaluation(log_every=1)
    return recipe
