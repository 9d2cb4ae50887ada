"""MobileCLIP2: as MobileCLIP, with a scale for each teacher. Faghri et al., TMLR 2025, arXiv 2508.20691.

The paper tunes the teachers' scales (70 and 60 for its two DFN teachers, the paper-scale variant here); otherwise each teacher keeps the
scale that it learned.
"""

from __future__ import annotations

from typing import Literal

from clipling.recipe import Recipe
from clipling.recipes import mobileclip


def recipe(smoke: bool = False, scale: Literal["cpu", "paper"] = "cpu") -> Recipe:
    made = mobileclip.recipe(smoke, scale)
    made.name = "mobileclip2"
    made.objective["reinforced"].options["scales"] = None
    if scale == "paper" and not smoke:
        made.student.config = "MobileCLIP2-S0"
        made.objective["reinforced"].options["scales"] = [70.0, 60.0]
    return made
