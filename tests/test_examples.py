"""Every example is short, and runs (one step) from a folder that is not the checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from clipling.data.source import open_pairs
from clipling.models.hub import new_student, save_student
from tests.reinforcing import made
from tests.toy import toy_folder

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))
SMALL = ["max_steps=1", "optimiser.batch=16", "data.workers=0"]
TINY = ["student.config=tiny_vit_32", *SMALL]
GUIDED = [*TINY, "guide.image_size=64"]
UNGATED = "teachers.teacher.gate=false"
ARGUMENTS = {
    "train_clip": ["toy", "out", *TINY],
    "train_ping": ["toy", "out", "0,1", *TINY],
    "train_a_ping": ["toy", "out", "online", *GUIDED],
    "train_lit": ["toy", "out", *SMALL],
    "own_term": [],
    "plan": ["10k,5B", "clip", "student.config=tiny_vit_32"],
    "pack": ["toy", "out", "32"],
    "compress": ["teacher", "toy", "out", "50%", *SMALL, UNGATED],
    "finetune": ["teacher", "toy", "toy", "out", *SMALL],
    "distill": ["teacher", "toy", "out", "tiny_vit_32", *SMALL],
    "reinforce": ["teacher", "toy", "out", "mobileclip", *TINY, "gate=off"],
    "train_mobileclip": ["stored", "out", *TINY],
    "train_mobileclip2": ["stored", "out", "[70.0, 60.0]", *TINY],
    "train_reinforced_ping": ["stored", "out", *GUIDED],
    "train_clip_kd": ["teacher", "toy", "out", *TINY, UNGATED],
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.parametrize("path", [path for path in EXAMPLES if path.stem != "own_term"], ids=lambda p: p.stem)
def test_an_example_ends_through_the_one_way_to_end(path):
    """A call of `main` alone would show a traceback for a mistyped path."""
    assert path.read_text(encoding="utf-8").endswith('\n\nif __name__ == "__main__":\n    script(main)\n')


def test_a_mistake_in_an_example_is_one_line(tmp_path):
    path = next(path for path in EXAMPLES if path.stem == "pack")
    wrong = subprocess.run([sys.executable, str(path), "nowhere"], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("pack.py: nowhere does not exist")
    assert len(wrong.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_runs(path, tmp_path):
    toy_folder(tmp_path / "toy", count=48)
    if "teacher" in ARGUMENTS[path.stem]:
        save_student(new_student("tiny_vit_32"), tmp_path / "teacher")
    if "stored" in ARGUMENTS[path.stem]:
        made(open_pairs(str(tmp_path / "toy")), tmp_path / "stored", ("rules",), augmentations=2)
    done = subprocess.run([sys.executable, str(path), *ARGUMENTS[path.stem]], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
