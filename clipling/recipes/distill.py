"""Distil a teacher's image space from bare photos: no captions needed, the teacher's text tower is kept.

The image tower learns to give the teacher's features (CLIP-KD's FD, CVPR 2024, on the image side alone). `clipling distill` fills in
the rest: texts that belong to no picture, captions where there are some, a smaller text tower.
"""

from __future__ import annotations

from typing import Literal

from clipling.recipe import Data, Evaluation, Recipe, Stage, StudentSpec, TeacherSpec, TermSpec
from clipling.recipes import clip

FD = "clipling.objectives.clip_kd:FD"


def recipe(smoke: bool = False, scale: Literal["cpu", "paper"] = "cpu") -> Recipe:
    made = clip.sized(Recipe(name="distill"), smoke, scale)
    made.data = Data(crop=(0.5, 1.0), bare=True, workers=made.data.workers)
    made.student = StudentSpec(config=made.student.config, text="teacher", vocabulary="full")
    made.teachers = {"teacher": TeacherSpec()}
    made.objective = {"fd": TermSpec(use=FD, weight=2000.0, options={"sides": ["image"]})}
    made.stages = [Stage(epochs=s.epochs, learning_rate=s.learning_rate, warmup=s.warmup) for s in made.stages]
    made.stages[0].freeze, made.stages[0].freeze_projections = ["text"], True
    made.evaluation = Evaluation(best="teacher_cosine", log_every=made.evaluation.log_every)
    return made
