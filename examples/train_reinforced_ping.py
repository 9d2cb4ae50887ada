"""Stored teachers and neighbours in frozen encoders' spaces together, against the stored teachers alone.

clipling reinforce photos/ --teacher runs/teacher --captions rules --out runs/source
python examples/train_reinforced_ping.py runs/source runs/both
"""

from __future__ import annotations

from pathlib import Path

import clipling
from clipling.mistakes import script


def main(source: str, out: str = "runs/example-reinforced-ping", *settings: str) -> None:
    plain = tuple(setting for setting in settings if not setting.startswith("guide."))
    for recipe, chosen in (("mobileclip2", plain), ("reinforced_ping", settings)):
        made = clipling.train(recipe, data=source, out=Path(out) / recipe, set=chosen, resume=True)
        print(recipe, {name: f"{100 * value:.1f} %" for name, value in made["val"].items() if name.endswith("@10")})


if __name__ == "__main__":
    script(main)
