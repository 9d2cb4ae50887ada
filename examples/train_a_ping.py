"""A-CLIP-PING: the frozen image encoder sees the student's own crop.

python examples/train_a_ping.py photos/ runs/a_ping           # a few fixed crops a picture, encoded once
python examples/train_a_ping.py photos/ runs/online online    # the encoder at every step: for a GPU
"""

from __future__ import annotations

from pathlib import Path

import clipling
from clipling.mistakes import script


def main(source: str = "demo:emoji", out: str = "runs/example-a-ping", active: str = "views", *settings: str) -> None:
    summary = clipling.train("a_ping", data=source, out=Path(out), resume=True, set=(f"guide.active={active}", *settings))
    print({name: round(100 * value, 1) for name, value in summary["val"].items()})


if __name__ == "__main__":
    script(main)
