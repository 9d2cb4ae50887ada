"""MobileCLIP: trained from what teachers stored beside the pairs. Vasu et al., CVPR 2024, arXiv 2311.17049.

The source is one that `clipling reinforce` made, with synthetic captions, or DataCompDR's tars beside their pictures. The paper-scale
variant is the released script for 12 M pairs (30,000 steps, teachers at a scale of 100); of the paper's students open_clip has no S0.
"""

from __future__ import annotations

from typing import Literal

from clipling.recipe import Data, Optimiser, Recipe, ReinforcedSpec, Stage, StudentSpec, TermSpec
from clipling.recipes import clip

REINFORCED = "clipling.objectives.reinforced:Reinforced"
PAIRS, STEPS, BATCH = 12_800_000, 30_000, 8192  # DataCompDR-12M


def recipe(smoke: bool = False, scale: Literal["cpu", "paper"] = "cpu") -> Recipe:
    made = clip.sized(Recipe(name="mobileclip"), smoke, scale)
    made.data = Data(crop=(1.0, 1.0), workers=made.data.workers)
    made.reinforced = ReinforcedSpec()
    options = {"captions": "both", "scales": 100.0}
    made.objective = {"reinforced": TermSpec(use=REINFORCED, weight={"clip": 0.0, "distill": 1.0}, options=options)}
    if scale == "paper" and not smoke:
        per_epoch = PAIRS // BATCH
        made.student = StudentSpec(config="MobileCLIP-S2", vocabulary="full")
        made.stages = [Stage(epochs=STEPS / per_epoch, learning_rate=1e-3, warmup=1000 / per_epoch)]
        made.optimiser = Optimiser(batch=BATCH, weight_decay=0.2, beta2=0.95, clip_norm=1.0, autocast="bf16")
    return made
