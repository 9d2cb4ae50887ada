"""MobileCLIP2 from a reinforced source of two teachers, with a scale for each, and a share of CLIP's own loss.

clipling reinforce photos/ --teacher runs/one runs/two --captions rules --out runs/source
python examples/train_mobileclip2.py runs/source runs/mobileclip2 "[70.0, 60.0]"
"""

from __future__ import annotations

from pathlib import Path

import clipling
from clipling.mistakes import script


def main(source: str, out: str = "runs/example-mobileclip2", scales: str = "null", *settings: str) -> None:
    options = f"objective.reinforced.options={{captions: both, scales: {scales}}}"
    weight = "objective.reinforced.weight={clip: 0.25, distill: 0.75}"
    made = clipling.train("mobileclip2", data=source, out=Path(out), set=(options, weight, *settings), resume=True)
    print({name: f"{100 * value:.1f} %" for name, value in made["val"].items() if name.endswith("@10")})


if __name__ == "__main__":
    script(main)
