"""A-CLIP-PING: as `ping`, with an active image encoder that sees the student's own crop (arXiv 2412.03871; our reading).

At CPU scale the crops of a picture are a few fixed ones, encoded once (`views`); at the paper's scale the encoder runs at every step.
"""

from __future__ import annotations

from typing import Literal

from clipling.recipe import Recipe
from clipling.recipes import ping


def recipe(smoke: bool = False, scale: Literal["cpu", "paper"] = "cpu") -> Recipe:
    made = ping.recipe(smoke, scale)
    made.name = "a_ping"
    assert made.guide is not None
    made.guide.active = "online" if scale == "paper" else "views"
    if smoke:
        made.guide.views = 1
    return made
