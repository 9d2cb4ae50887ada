"""TinyCLIP with automatic inheritance: masks on the teacher's units are learned, then what they left is cut out. Wu et al., ICCV 2023."""

from __future__ import annotations

from typing import Literal

from clipling.recipe import Data, Recipe, Stage, StudentSpec, SurgerySpec, TeacherSpec, TermSpec
from clipling.recipes.tinyclip_manual import sized, smoked


def recipe(smoke: bool = False, scale: Literal["cpu", "paper"] = "cpu") -> Recipe:
    made = Recipe(
        name="tinyclip_auto",
        data=Data(crop=(0.9, 1.0)),
        student=StudentSpec(config="init", init={"model": "teacher"}, vocabulary="full"),
        teachers={"teacher": TeacherSpec()},
        objective={
            "affinity": TermSpec(use="clipling.objectives.affinity:Affinity"),
            "sparsity": TermSpec(use="clipling.objectives.sparsity:Sparsity", options={"target": 0.5, "warmup": 100, "lr": 0.1}),
        },
    )
    made = sized(made, smoke, scale)
    rate = made.stages[0].learning_rate
    surgery = SurgerySpec(use="clipling.surgery.prune:by_masks")
    if scale == "paper":
        made.objective["sparsity"].options = {"target": 0.25, "warmup": 1000, "lr": 0.02}
        masked, rest = 0.24, 5.76  # 3,000 steps of masks, the learning rate rising all the while
    else:
        masked, rest = 8.0, 8.0
    made.stages = [
        Stage(name="masks", epochs=masked, learning_rate=rate, warmup=masked),
        Stage(name="recovery", epochs=rest, learning_rate=rate, warmup=0, surgery=surgery, drop=["sparsity"]),
    ]
    if smoke:
        smoked(made)
    return made
