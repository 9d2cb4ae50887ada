"""TinyCLIP with manual inheritance: a student cut out of its teacher learns to mimic the teacher's affinities. Wu et al., ICCV 2023."""

from __future__ import annotations

from typing import Literal

from clipling.recipe import Data, Evaluation, Inherit, Optimiser, Recipe, Stage, StudentSpec, TeacherSpec, TermSpec


def recipe(smoke: bool = False, scale: Literal["cpu", "paper"] = "cpu") -> Recipe:
    made = Recipe(
        name="tinyclip_manual",
        data=Data(crop=(0.9, 1.0)),
        student=StudentSpec(config="inherit", inherit=Inherit(to="50%"), vocabulary="full"),
        teachers={"teacher": TeacherSpec()},
        objective={"affinity": TermSpec(use="clipling.objectives.affinity:Affinity")},
    )
    return sized(made, smoke, scale)


def sized(made: Recipe, smoke: bool, scale: str) -> Recipe:
    """Rates and lengths. `paper`: the released scripts' (6 epochs of 400 M pairs in batches of 32,768, warm-up of 2,000 steps)."""
    if scale == "paper":
        made.stages = [Stage(epochs=6, learning_rate=1e-4, warmup=0.16)]
        made.optimiser = Optimiser(batch=32768, weight_decay=0.2, clip_norm=5.0, autocast="bf16")
        made.objective["affinity"].options = {"scale": 50.0, "teacher_scale": 50.0}
        made.data.workers = 8
    else:
        made.stages = [Stage(epochs=10, learning_rate=3e-4, warmup=1)]
        made.optimiser = Optimiser(batch=128, weight_decay=0.2, clip_norm=5.0)
    if smoke:
        smoked(made)
    return made


def smoked(made: Recipe) -> None:
    """One step a stage of a small batch."""
    made.optimiser.batch = 8
    made.optimiser.autocast = "none"
    made.data.workers = 0
    for stage in made.stages:
        stage.epochs = 1e-6
    made.evaluation = Evaluation(log_every=1)
