"""CLIP-PING on your own pairs against plain CLIP on the same budget, over three seeds, with a report.

python examples/train_ping.py photos/ runs/mine
"""

from __future__ import annotations

from pathlib import Path

import clipling
from clipling.mistakes import script


def main(source: str = "demo:emoji", out: str = "runs/example-ping", seeds: str = "0,1,2", *settings: str) -> None:
    folder = Path(out)
    for recipe in ("clip", "ping"):
        clipling.train(recipe, data=source, out=folder / recipe, seeds=seeds, resume=True, set=settings)
    runs = tuple(folder / recipe / f"seed-{seed}" for recipe in ("clip", "ping") for seed in seeds.split(","))
    made = clipling.compare(runs, out=folder / "report.html")
    print(made["verdict"])
    print(made["report"])


if __name__ == "__main__":
    script(main)
