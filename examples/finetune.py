"""A trained model fine-tuned on your pairs, with a set that it must not forget: WiSE-FT chooses how much of the new weights to keep.

python examples/finetune.py runs/start photos/ cifar10/ runs/finetuned
"""

from __future__ import annotations

from pathlib import Path

import clipling
from clipling.mistakes import script


def main(start: str, source: str, keep: str, out: str = "runs/example-finetune", *settings: str) -> None:
    made = clipling.finetune(start, source, out=Path(out), watch=(keep,), set=settings, resume=True)
    found = made["interpolation"]
    print(found["reason"])
    for name, before in made["untrained"].items():
        if name.startswith("watch/"):
            print(f"{name}: {100 * before:.1f} % before, {100 * made['val'][name]:.1f} % now")


if __name__ == "__main__":
    script(main)
