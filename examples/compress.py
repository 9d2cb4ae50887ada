"""A trained model at half its size: inherited weights, mimicked affinities (TinyCLIP), and what the rule of width is worth.

python examples/compress.py runs/teacher photos/ runs/half
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import clipling
from clipling.mistakes import script

WIDTHS: tuple[Literal["position", "first_order"], ...] = ("position", "first_order")


def main(teacher: str, source: str, out: str = "runs/example-compress", to: str = "50%", *settings: str) -> None:
    for width in WIDTHS:
        made = clipling.compress(teacher, to, source, out=Path(out) / width, width=width, set=settings, resume=True)
        student = made["rows"][-1]
        print(f"{width}: {student['parameters']:,} parameters, {100 * student['relative_recall']:.0f} % of the teacher's recall on val")


if __name__ == "__main__":
    script(main)
