"""CLIP-KD: a student from scratch learns from a teacher's affinities, features and contrasts. Yang et al., CVPR 2024.

The recommended combination: task + 1 CRD + 2000 FD + 1 ICL.
"""

from __future__ import annotations

from typing import Literal

from clipling.recipe import Data, Optimiser, Recipe, Stage, TeacherSpec, TermSpec
from clipling.recipes import clip

TERMS = "clipling.objectives.clip_kd"


def recipe(smoke: bool = False, scale: Literal["cpu", "paper"] = "cpu") -> Recipe:
    made = clip.recipe(smoke, scale)
    made.name = "clip_kd"
    made.teachers = {"teacher": TeacherSpec()}
    made.objective |= {
        "crd": TermSpec(use=f"{TERMS}:CRD", weight=1.0),
        "fd": TermSpec(use=f"{TERMS}:FD", weight=2000.0),
        "icl": TermSpec(use=f"{TERMS}:ICL", weight=1.0),
    }
    if scale == "paper" and not smoke:
        made.stages = [Stage(epochs=32, learning_rate=1e-3, warmup=0.8)]  # 10,000 steps of 12.9 M pairs
        made.optimiser = Optimiser(batch=1024, weight_decay=0.1, autocast="bf16")
        made.data = Data(crop=(0.9, 1.0), workers=8)
    return made
