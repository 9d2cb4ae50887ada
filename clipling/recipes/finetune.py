"""Fine-tune a small model on your pairs without ruining it: low rate, layer-wise decay, early stop, WiSE-FT (Wortsman et al. 2022).

The contrastive loss of the pre-training, as FLYP found best (Goyal et al. 2023, arXiv 2212.00638).
"""

from __future__ import annotations

from typing import Literal

from clipling.recipe import Data, Evaluation, Optimiser, Recipe, Stage, StudentSpec, TermSpec
from clipling.recipes.tinyclip_manual import smoked


def recipe(smoke: bool = False, scale: Literal["cpu", "paper"] = "cpu") -> Recipe:
    made = Recipe(
        name="finetune",
        data=Data(crop=(0.9, 1.0)),
        student=StudentSpec(config="init", vocabulary="full", norm="frozen"),
        objective={"clip": TermSpec(use="clipling.objectives.contrastive:Clip")},
        stages=[Stage(epochs=10, learning_rate=5e-5, warmup=1)],
        optimiser=Optimiser(batch=128, weight_decay=0.1, layer_decay=0.8),
        evaluation=Evaluation(every=0.5, patience=4, interpolate=[i / 10 for i in range(11)]),
    )
    if scale == "paper":
        made.stages = [Stage(epochs=10, learning_rate=1e-5, warmup=0.5)]
        made.optimiser = Optimiser(batch=512, weight_decay=0.1, layer_decay=0.9, autocast="bf16")
        made.data.workers = 8
    if smoke:
        smoked(made)
    return made
