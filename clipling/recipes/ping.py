"""CLIP-PING: neighbour guidance from frozen unimodal encoders. Thwal et al., arXiv 2412.03871 (a reconstruction).

The paper's equations could not be read: docs/ping.md says which choices are ours.
"""

from __future__ import annotations

from typing import Literal

from clipling.recipe import GuideSpec, Recipe, TermSpec
from clipling.recipes import clip


def recipe(smoke: bool = False, scale: Literal["cpu", "paper"] = "cpu") -> Recipe:
    made = clip.recipe(smoke, scale)
    made.name = "ping"
    made.guide = GuideSpec()
    made.objective["ping"] = TermSpec(use="clipling.objectives.ping:Ping", weight={"self": 1.0, "nn": 1.0, "xnn": 1.0})
    if smoke:
        made.guide.image_size = 64
    return made
