"""LiT: a text tower is trained onto a frozen, pre-trained image tower; then both are trained a little at a low rate.

python examples/train_lit.py photos/ runs/lit
"""

from __future__ import annotations

from pathlib import Path

import clipling
from clipling.mistakes import script

LIT = "{name: lit, epochs: 10, learning_rate: 1.0e-3, warmup: 1, freeze: [image]}"
BOTH = "{name: both, epochs: 5, learning_rate: 1.0e-4, warmup: 1}"


def main(source: str = "demo:emoji", out: str = "runs/example-lit", *settings: str) -> None:
    summary = clipling.train("lit", data=source, out=Path(out), resume=True, set=(f"stages=[{LIT}, {BOTH}]", *settings))
    print({name: round(100 * value, 1) for name, value in summary["val"].items()})


if __name__ == "__main__":
    script(main)
