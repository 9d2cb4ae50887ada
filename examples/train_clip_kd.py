"""CLIP-KD: a student from scratch learns from a teacher; the recommended terms, and each of them alone.

python examples/train_clip_kd.py runs/teacher photos/ runs/kd
"""

from __future__ import annotations

from pathlib import Path

import clipling
from clipling.mistakes import script

ALONE = {"crd": 1.0, "fd": 2000.0, "icl": 1.0}


def main(teacher: str, source: str, out: str = "runs/example-kd", *settings: str) -> None:
    clipling.train("clip_kd", data=source, teacher=(teacher,), out=Path(out) / "all", set=settings, resume=True)
    for term in ALONE:
        off = tuple(f"objective.{other}.weight=0" for other in ALONE if other != term)
        made = clipling.train("clip_kd", data=source, teacher=(teacher,), out=Path(out) / term, set=(*settings, *off), resume=True)
        print(term, {name: f"{100 * value:.1f} %" for name, value in made["val"].items() if name.endswith("@10")})


if __name__ == "__main__":
    script(main)
