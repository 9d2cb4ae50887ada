"""TinyCLIP's inheritance and mimicking together with the neighbour guidance of CLIP-PING: two kinds of borrowed knowledge; ours to add."""

from __future__ import annotations

from typing import Literal

from clipling.recipe import GuideSpec, Recipe, TermSpec
from clipling.recipes import tinyclip_manual


def recipe(smoke: bool = False, scale: Literal["cpu", "paper"] = "cpu") -> Recipe:
    made = tinyclip_manual.recipe(smoke, scale)
    made.name = "tinyclip_ping"
    made.guide = GuideSpec()
    made.objective["ping"] = TermSpec(use="clipling.objectives.ping:Ping", weight={"self": 1.0, "nn": 1.0, "xnn": 1.0})
    if smoke:
        made.guide.image_size = 64
    return made
