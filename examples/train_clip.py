"""Plain CLIP on your own pairs, from Python.

python examples/train_clip.py photos/ runs/clip
"""

from __future__ import annotations

from pathlib import Path

import clipling
from clipling.mistakes import script


def main(source: str = "demo:emoji", out: str = "runs/example-clip", *settings: str) -> None:
    summary = clipling.train("clip", data=source, out=Path(out), resume=True, set=settings)
    print(f"{summary['train_pairs']} pairs, {summary['samples_seen']} samples seen")
    for name, value in summary["val"].items():
        print(f"{name}: {100 * value:.1f} % (untrained {100 * summary['untrained'][name]:.1f} %)")


if __name__ == "__main__":
    script(main)
