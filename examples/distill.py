"""A small image tower in a teacher's space, from photos without captions; the teacher's text tower is kept.

python examples/distill.py runs/teacher photos/ runs/distilled
"""

from __future__ import annotations

from pathlib import Path

import clipling
from clipling.mistakes import script


def main(teacher: str, photos: str, out: str = "runs/example-distill", student: str = "mobilenetv3_small_64", *settings: str) -> None:
    made = clipling.distill(teacher, photos, out=Path(out), student=student, captions="ignore", set=settings, resume=True)
    print(f"cosine to the teacher's features: {made['untrained']['teacher_cosine']:.2f} before, {made['val']['teacher_cosine']:.2f} now")
    print(made["model"])


if __name__ == "__main__":
    script(main)
