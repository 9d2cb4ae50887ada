"""MobileCLIP's way: teachers are asked once, what they say is stored beside the pairs, and small students learn from that.

python examples/reinforce.py runs/teacher photos/ runs/reinforced mobileclip
"""

from __future__ import annotations

from pathlib import Path

import clipling
from clipling.mistakes import script

CAPTIONS = ("rules",)  # or others, field:NAME, template:NAME, ./mine.py:rewrite, coca:MODEL@TAG, transformers:NAME


def main(teachers: str, source: str, out: str = "runs/example-reinforced", recipe: str = "mobileclip", *settings: str) -> None:
    gate = "off" if "gate=off" in settings else "on"
    stored = Path(out) / "source"
    models = tuple(teachers.split(","))
    made = clipling.reinforce(source, teacher=models, captions=CAPTIONS, augmentations=4, out=stored, gate=gate)
    print(f"{made['pairs']} pairs, {made['bytes'] / made['pairs']:.0f} bytes each, synthetic captions: {made['captions']}")
    chosen = tuple(s for s in settings if s != "gate=off")
    run = clipling.train(recipe, data=str(stored), out=Path(out) / recipe, set=chosen, resume=True)
    print(recipe, {name: f"{100 * value:.1f} %" for name, value in run["val"].items() if name.endswith("@10")})


if __name__ == "__main__":
    script(main)
