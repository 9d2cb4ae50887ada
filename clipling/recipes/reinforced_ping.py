"""Stored teachers and neighbours together: MobileCLIP's targets and the guidance of CLIP-PING; ours to add.

Two kinds of knowledge that are had before training and cost nothing in it: what CLIP teachers stored, and banks of unimodal encoders.
"""

from __future__ import annotations

from typing import Literal

from clipling.recipe import GuideSpec, Recipe, TermSpec
from clipling.recipes import mobileclip2


def recipe(smoke: bool = False, scale: Literal["cpu", "paper"] = "cpu") -> Recipe:
    made = mobileclip2.recipe(smoke, scale)
    made.name = "reinforced_ping"
    made.guide = GuideSpec()
    made.objective["reinforced"].weight = {"clip": 0.25, "distill": 0.75}
    made.objective["ping"] = TermSpec(use="clipling.objectives.ping:Ping", weight={"self": 0.25, "nn": 0.25, "xnn": 0.25})
    if smoke:
        made.guide.image_size = 64
    return made
