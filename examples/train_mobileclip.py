"""MobileCLIP from a reinforced source: a loss for each kind of caption, or one caption a picture at the cost of a plain step.

clipling reinforce photos/ --teacher runs/teacher --captions rules --out runs/source
python examples/train_mobileclip.py runs/source runs/mobileclip
"""

from __future__ import annotations

from pathlib import Path

import clipling
from clipling.mistakes import script


def main(source: str, out: str = "runs/example-mobileclip", *settings: str) -> None:
    for captions in ("both", "mix"):
        options = f"objective.reinforced.options={{captions: {captions}, scales: 100.0}}"
        made = clipling.train("mobileclip", data=source, out=Path(out) / captions, set=(options, *settings), resume=True)
        print(captions, {name: f"{100 * value:.1f} %" for name, value in made["val"].items() if name.endswith("@10")})


if __name__ == "__main__":
    script(main)
